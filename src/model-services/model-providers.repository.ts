import { Injectable } from '@nestjs/common';
import { IsNull, MoreThan, type EntityManager, type FindOptionsWhere } from 'typeorm';
import {
  AppError,
  cursorPage,
  IdGenerator,
  type CursorPage,
  type CursorQuery,
  type ProviderId,
  type TenantId,
} from '../common';
import { ModelProviderEntity } from './model-provider.entity';
import { SecretBox } from './secret-box';

export interface ProviderCredential {
  readonly apiKey: string;
  readonly weight: number;
}

/** As operators see it: that there are credentials, and which headers, but no value of either. */
export interface ModelProvider {
  readonly id: ProviderId;
  readonly tenantId: TenantId | null;
  readonly name: string;
  readonly kind: 'openai-compatible' | 'builtin';
  readonly preset: string | null;
  readonly baseUrl: string | null;
  readonly credentials: readonly { readonly apiKey: string; readonly weight: number }[];
  readonly headers: Readonly<Record<string, string>>;
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
  Omit<ModelProvider, 'id' | 'tenantId' | 'createdAt' | 'updatedAt' | 'credentials'>
> & { readonly credentials?: readonly ProviderCredential[] };

const HIDDEN = '••••';

@Injectable()
export class ModelProvidersRepository {
  constructor(
    private readonly ids: IdGenerator,
    private readonly box: SecretBox,
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

  async update(
    tx: EntityManager,
    tenantId: TenantId | null,
    id: ProviderId,
    change: ModelProviderInput,
  ): Promise<ModelProvider> {
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

  private mutable(id: ProviderId, { credentials, headers, ...rest }: ModelProviderInput) {
    return {
      ...rest,
      ...(credentials && { credentials: this.box.seal(JSON.stringify(credentials), id) }),
      ...(headers && { headers: this.box.seal(JSON.stringify(headers), id) }),
    };
  }

  private toProvider(row: ModelProviderEntity): ModelProvider {
    const credentials = row.credentials
      ? (JSON.parse(this.box.open(row.credentials, row.id)) as ProviderCredential[])
      : [];
    const headers = row.headers
      ? (JSON.parse(this.box.open(row.headers, row.id)) as Record<string, string>)
      : {};
    return {
      ...row,
      id: row.id as ProviderId,
      tenantId: row.tenantId as TenantId | null,
      quirks: row.quirks as Record<string, unknown>,
      credentials: credentials.map(({ weight }) => ({ apiKey: HIDDEN, weight })),
      headers: Object.fromEntries(Object.keys(headers).map((name) => [name, HIDDEN])),
    };
  }
}

function own(tenantId: TenantId | null): FindOptionsWhere<ModelProviderEntity> {
  return { tenantId: tenantId ?? IsNull() };
}
