import { Injectable } from '@nestjs/common';
import { IsNull, MoreThan, type EntityManager, type FindOptionsWhere } from 'typeorm';
import {
  AppError,
  badInput,
  cursorPage,
  IdGenerator,
  SecretBox,
  type CursorPage,
  type CursorQuery,
  type ProviderId,
  type SealedRow,
  type SealedRows,
  type TenantId,
} from '../common';
import { Database, platformScope } from '../database';
import { HIDDEN, shownUrl } from '../outbound';
import { ModelProviderEntity } from './model-provider.entity';

export interface ProviderCredential {
  readonly apiKey: string;
  readonly weight: number;
}

/** `enter-again`: it was sealed under a key that is not known any more. */
export type SecretStatus = 'ok' | 'enter-again';

/** As operators see it: that there are credentials, and which headers, but no value of either, nor of the address's query. */
export interface ModelProvider {
  readonly id: ProviderId;
  readonly tenantId: TenantId | null;
  readonly name: string;
  readonly kind: 'openai-compatible' | 'builtin';
  readonly preset: string | null;
  readonly baseUrl: string | null;
  readonly credentials: readonly { readonly apiKey: string; readonly weight: number }[];
  readonly credentialStatus: SecretStatus;
  readonly headers: Readonly<Record<string, string>>;
  readonly headersStatus: SecretStatus;
  readonly quirks: Readonly<Record<string, unknown>>;
  readonly connectTimeoutMs: number;
  readonly firstPieceTimeoutMs: number;
  readonly idleTimeoutMs: number;
  readonly totalTimeoutMs: number;
  readonly maxConcurrency: number | null;
  readonly createdAt: Date;
  readonly updatedAt: Date;
}
export type ModelProviderInput = Partial<
  Omit<
    ModelProvider,
    'id' | 'tenantId' | 'createdAt' | 'updatedAt' | 'credentials' | 'credentialStatus' | 'headersStatus'
  >
> & { readonly credentials?: readonly ProviderCredential[] };

@Injectable()
export class ModelProvidersRepository implements SealedRows {
  constructor(
    private readonly ids: IdGenerator,
    private readonly box: SecretBox,
    private readonly database: Database,
  ) {}

  /** `tenantId` null: shared by the platform. */
  async create(
    tx: EntityManager,
    tenantId: TenantId | null,
    input: ModelProviderInput & { name: string; kind: ModelProvider['kind'] },
  ): Promise<ModelProvider> {
    const id = this.ids.next<ProviderId>();
    await tx.insert(ModelProviderEntity, { id, tenantId, ...this.mutable(id, input) });
    return this.get(tx, tenantId, id);
  }

  async get(tx: EntityManager, tenantId: TenantId | null, id: ProviderId): Promise<ModelProvider> {
    const row = await tx.findOneBy(ModelProviderEntity, { ...own(tenantId), id });
    if (!row) throw new AppError('NOT_FOUND');
    return this.toProvider(row);
  }

  async list(
    tx: EntityManager,
    tenantId: TenantId | null,
    query: CursorQuery,
  ): Promise<CursorPage<ModelProvider>> {
    const rows = await tx.find(ModelProviderEntity, {
      where: { ...own(tenantId), id: MoreThan(query.cursor ?? '0') },
      order: { id: 'asc' },
      take: query.limit + 1,
    });
    return cursorPage(
      rows.map((row) => this.toProvider(row)),
      query.limit,
    );
  }

  /**
   * BAD_INPUT when it moves to another origin and its credentials or headers stay as they are: what was entered for one
   * is not sent to another.
   */
  async update(
    tx: EntityManager,
    tenantId: TenantId | null,
    id: ProviderId,
    { baseUrl, ...rest }: ModelProviderInput,
  ): Promise<ModelProvider> {
    const lock = { mode: 'pessimistic_write' } as const;
    const row = await tx.findOne(ModelProviderEntity, { where: { ...own(tenantId), id }, lock });
    if (!row) throw new AppError('NOT_FOUND');
    // Who sends back what was shown means what there is.
    const kept = baseUrl !== undefined && row.baseUrl !== null && baseUrl === shownUrl(row.baseUrl);
    const change = { ...rest, ...(baseUrl !== undefined && !kept && { baseUrl }) };
    if (change.baseUrl) refuseMoving(row, change);
    await tx.update(
      ModelProviderEntity,
      { ...own(tenantId), id },
      { ...this.mutable(id, change), updatedAt: new Date() },
    );
    return this.get(tx, tenantId, id);
  }

  /** CONFLICT while a model service still stands on it. */
  async delete(tx: EntityManager, tenantId: TenantId | null, id: ProviderId): Promise<ModelProvider> {
    const provider = await this.get(tx, tenantId, id);
    await tx.delete(ModelProviderEntity, { ...own(tenantId), id }).catch((error: unknown) => {
      if ((error as { driverError?: { code?: string } }).driverError?.code !== '23503') throw error;
      throw new AppError('CONFLICT', { message: 'A model service still uses this provider.' });
    });
    return provider;
  }

  async sealedRows(tenants: readonly TenantId[], after: string, limit: number): Promise<SealedRow[]> {
    return this.database.one(platformScope(...tenants), {
      name: 'model-providers-sealed',
      text: `select id, tenant_id, name, array_remove(array[credentials, headers], null) as sealed
             from model_providers where (tenant_id is null or tenant_id = any($1::bigint[])) and id > $2
               and (credentials is not null or headers is not null) order by id limit $3`,
      values: [[...tenants], after, limit],
      map: (rows) =>
        rows.map((row) => ({
          id: row.id as string,
          tenantId: row.tenant_id as TenantId | null,
          name: row.name as string,
          context: row.id as string,
          sealed: row.sealed as string[],
        })),
    });
  }

  reseal({ id, tenantId, sealed: before }: SealedRow, sealed: readonly string[]): Promise<boolean> {
    // One of the two may be absent: the values tell which is which.
    const of = (column: string): string =>
      `${column} = coalesce(($3::text[])[array_position($2::text[], ${column})], ${column})`;
    return this.database.one(platformScope(...(tenantId ? [tenantId] : [])), {
      name: 'model-provider-reseal',
      text: `update model_providers set ${of('credentials')}, ${of('headers')}
             where id = $1 and array_remove(array[credentials, headers], null) = $2::text[] returning id`,
      values: [id, [...before], [...sealed]],
      map: (rows) => rows.length > 0,
    });
  }

  private mutable(id: ProviderId, { credentials, headers, ...rest }: ModelProviderInput) {
    if (rest.baseUrl?.includes(HIDDEN))
      throw badInput('baseUrl', 'holds a value as it is shown: enter the whole address');
    if (credentials?.some(({ apiKey }) => apiKey.includes(HIDDEN)))
      throw badInput('credentials', 'hold a key as it is shown: enter it, or leave them out to keep them');
    return {
      ...rest,
      ...(credentials && { credentials: this.box.seal(JSON.stringify(credentials), id) }),
      ...(headers && { headers: this.box.seal(JSON.stringify(headers), id) }),
    };
  }

  private toProvider(row: ModelProviderEntity): ModelProvider {
    const { id, baseUrl } = row;
    const credentials = this.opened<ProviderCredential[]>(row.credentials, id, []);
    const headers = this.opened<Record<string, string>>(row.headers, id, {});
    return {
      ...row,
      id: id as ProviderId,
      tenantId: row.tenantId as TenantId | null,
      baseUrl: baseUrl === null ? null : shownUrl(baseUrl),
      quirks: row.quirks as Record<string, unknown>,
      credentials: (credentials ?? []).map(({ weight }) => ({ apiKey: HIDDEN, weight })),
      credentialStatus: credentials ? 'ok' : 'enter-again',
      headers: Object.fromEntries(Object.keys(headers ?? {}).map((name) => [name, HIDDEN])),
      headersStatus: headers ? 'ok' : 'enter-again',
    };
  }

  /** Null when it can not be read any more. */
  private opened<T>(sealed: string | null, id: string, none: T): T | null {
    if (sealed === null) return none;
    const text = this.box.tryOpen(sealed, id);
    return text === null ? null : (JSON.parse(text) as T);
  }
}

function refuseMoving(row: ModelProviderEntity, change: ModelProviderInput): void {
  const origin = (url: string | null | undefined): string | null =>
    url && URL.canParse(url) ? new URL(url).origin : null;
  if (origin(row.baseUrl) === origin(change.baseUrl)) return;
  for (const field of ['credentials', 'headers'] as const)
    if (row[field] !== null && !change[field])
      throw badInput(field, 'have to be entered again, or be empty: baseUrl leads to another origin');
}

function own(tenantId: TenantId | null): FindOptionsWhere<ModelProviderEntity> {
  return { tenantId: tenantId ?? IsNull() };
}
