import { Injectable } from '@nestjs/common';
import { IsNull, MoreThan, type EntityManager, type FindOptionsWhere } from 'typeorm';
import {
  AppError,
  asId,
  badInput,
  cursorPage,
  FreshCache,
  IdGenerator,
  SecretBox,
  type CursorPage,
  type CursorQuery,
  type ModelServiceId,
  type ProviderId,
  type TenantId,
} from '../common';
import { Database, tenantScope, type Row, type Statement } from '../database';
import type { ProviderEndpoint } from './drivers/text-driver';
import type { ProviderCredential } from './model-providers.repository';
import { deletePrice, listPrices, priced, PRICE_NOW, setPrice, type ModelPrice } from './model-prices';
import { ModelServiceEntity } from './model-service.entity';

/** `modelServiceType` of the assistant-platform wire. */
export const SERVICE_TYPE = { text: 0, image: 1, embedding: 2, speech: 3 } as const;

export interface ModelService {
  readonly id: ModelServiceId;
  readonly tenantId: TenantId | null;
  readonly providerId: ProviderId;
  readonly name: string;
  readonly model: string;
  readonly type: number;
  readonly orderNum: number;
  /** Tokens. */
  readonly contextWindow: number;
  readonly parameters: Readonly<Record<string, unknown>>;
  /** Credits a million tokens. */
  readonly inputPrice: number;
  readonly outputPrice: number;
  readonly fallbackIds: readonly string[];
  readonly enabled: boolean;
  readonly createdAt: Date;
  readonly updatedAt: Date;
}
export type ModelServiceInput = Partial<Omit<ModelService, 'id' | 'tenantId' | 'createdAt' | 'updatedAt'>>;

/** A service and where it leads: the credential is in it, so it never reaches a wire or a log. */
export interface ResolvedService {
  readonly id: ModelServiceId;
  readonly model: string;
  readonly type: number;
  readonly contextWindow: number;
  readonly parameters: Readonly<Record<string, unknown>>;
  readonly inputPrice: number;
  readonly outputPrice: number;
  readonly kind: 'openai-compatible' | 'builtin';
  readonly endpoint: ProviderEndpoint;
}

export interface ServiceListQuery {
  readonly type?: number;
  readonly orderBy: 'order_num' | 'name';
  readonly descending: boolean;
  readonly offset: number;
  readonly limit: number;
}

const MAX_CACHED = 10_000;
/** A name has at most 200 code points. */
const MAX_NAME_CHARS = 400;

@Injectable()
export class ModelServicesRepository {
  private readonly resolved = new FreshCache<ResolvedService | null>(MAX_CACHED);
  /** Apart from the above: names come from clients, who may try many. */
  private readonly found = new FreshCache<ResolvedService | null>(MAX_CACHED);

  constructor(
    private readonly database: Database,
    private readonly ids: IdGenerator,
    private readonly box: SecretBox,
  ) {}

  /** The service as this tenant may use it: its own or a shared one, enabled; else null. Known within a second of a change. */
  resolve(tenantId: TenantId, id: ModelServiceId): ResolvedService | null | Promise<ResolvedService | null> {
    return this.resolved.get(`${tenantId}/${id}`, async () => {
      const row = await this.database.one(tenantScope(tenantId), findResolved(tenantId, id));
      return row && this.toResolved(row);
    });
  }

  /**
   * By id or by exact name, as {@link resolve}. Of several of that name a tenant's own comes before a shared one, then the
   * lowest `orderNum`, then the oldest.
   */
  async findUsable(tenantId: TenantId, nameOrId: string): Promise<ResolvedService | null> {
    if (nameOrId.length > MAX_NAME_CHARS || nameOrId.includes('\0')) return null;
    return this.found.get(`${tenantId}/${nameOrId}`, async () => {
      const row = await this.database.one(tenantScope(tenantId), findUsable(tenantId, nameOrId));
      return row && this.toResolved(row);
    });
  }

  /** The services a tenant may use, a page of them, and how many there are. */
  listUsable(tenantId: TenantId, query: ServiceListQuery): Promise<{ total: number; rows: ModelService[] }> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const builder = tx
        .createQueryBuilder(ModelServiceEntity, 's')
        .where('(s.tenantId = :tenantId or s.tenantId is null) and s.enabled', { tenantId })
        .orderBy(query.orderBy === 'name' ? 's.name' : 's.orderNum', query.descending ? 'DESC' : 'ASC')
        .addOrderBy('s.id', 'ASC')
        .skip(query.offset)
        .take(query.limit);
      if (query.type !== undefined) builder.andWhere('s.type = :type', { type: query.type });
      const [rows, total] = await builder.getManyAndCount();
      return { total, rows: await priced(tx, rows.map(toService)) };
    });
  }

  /** `tenantId` null: shared by the platform. BAD_INPUT for a provider that is not there to be used. */
  async create(
    tx: EntityManager,
    tenantId: TenantId | null,
    input: ModelServiceInput & { name: string; model: string; providerId: ProviderId },
  ): Promise<ModelService> {
    const id = this.ids.next<ModelServiceId>();
    await tx.insert(ModelServiceEntity, { id, tenantId, ...mutable(input) });
    const { inputPrice = 0, outputPrice = 0 } = input;
    await setPrice(tx, tenantId, id, { effectiveFrom: null, inputPrice, outputPrice });
    return this.get(tx, tenantId, id);
  }

  async get(tx: EntityManager, tenantId: TenantId | null, id: ModelServiceId): Promise<ModelService> {
    const row = await tx.findOneBy(ModelServiceEntity, { ...own(tenantId), id });
    if (!row) throw new AppError('NOT_FOUND');
    return (await priced(tx, [toService(row)]))[0]!;
  }

  async list(
    tx: EntityManager,
    tenantId: TenantId | null,
    query: CursorQuery,
  ): Promise<CursorPage<ModelService>> {
    const rows = await tx.find(ModelServiceEntity, {
      where: { ...own(tenantId), id: MoreThan(query.cursor ?? '0') },
      order: { id: 'asc' },
      take: query.limit + 1,
    });
    return cursorPage(await priced(tx, rows.map(toService)), query.limit);
  }

  async update(
    tx: EntityManager,
    tenantId: TenantId | null,
    id: ModelServiceId,
    change: ModelServiceInput,
  ): Promise<ModelService> {
    const { inputPrice: input, outputPrice: output } = change;
    if (input !== undefined || output !== undefined) {
      const { inputPrice, outputPrice } = await this.get(tx, tenantId, id);
      const price = { inputPrice: input ?? inputPrice, outputPrice: output ?? outputPrice };
      if (price.inputPrice !== inputPrice || price.outputPrice !== outputPrice)
        await setPrice(tx, tenantId, id, { effectiveFrom: null, ...price });
    }
    await tx.update(
      ModelServiceEntity,
      { ...own(tenantId), id },
      { ...mutable(change), updatedAt: new Date() },
    );
    return this.get(tx, tenantId, id);
  }

  async delete(tx: EntityManager, tenantId: TenantId | null, id: ModelServiceId): Promise<ModelService> {
    const service = await this.get(tx, tenantId, id);
    await tx.delete(ModelServiceEntity, { ...own(tenantId), id });
    return service;
  }

  /** Newest first, those to come included. NOT_FOUND for a service of another owner. */
  async listPrices(tx: EntityManager, tenantId: TenantId | null, id: ModelServiceId): Promise<ModelPrice[]> {
    await this.get(tx, tenantId, id);
    return listPrices(tx, id);
  }

  /** NOT_FOUND for a service of another owner; BAD_INPUT for a date that has come. */
  async addPrice(
    tx: EntityManager,
    tenantId: TenantId | null,
    id: ModelServiceId,
    price: Omit<ModelPrice, 'createdAt'>,
  ): Promise<ModelPrice> {
    await this.get(tx, tenantId, id);
    if (price.effectiveFrom.getTime() <= Date.now())
      throw badInput('effectiveFrom', 'is not in the future: what was used until now has its price');
    return setPrice(tx, tenantId, id, price);
  }

  /** One whose date has not come; else NOT_FOUND. */
  async removePrice(
    tx: EntityManager,
    tenantId: TenantId | null,
    id: ModelServiceId,
    effectiveFrom: Date,
  ): Promise<ModelPrice> {
    await this.get(tx, tenantId, id);
    const price = await deletePrice(tx, id, effectiveFrom);
    if (!price) throw new AppError('NOT_FOUND');
    return price;
  }

  private toResolved(row: Row): ResolvedService {
    const providerId = row.provider_id as string;
    const open = (sealed: unknown, none: string): string | null =>
      sealed === null ? none : this.box.tryOpen(sealed as string, providerId);
    const [credentials, headers] = [open(row.credentials, '[]'), open(row.headers, '{}')];
    const [credential] = JSON.parse(credentials ?? '[]') as ProviderCredential[];
    return {
      id: row.id as ModelServiceId,
      model: row.model as string,
      type: row.type as number,
      contextWindow: row.context_window as number,
      parameters: row.parameters as Record<string, unknown>,
      inputPrice: Number(row.input_price),
      outputPrice: Number(row.output_price),
      kind: row.kind as ResolvedService['kind'],
      endpoint: {
        providerId,
        baseUrl: (row.base_url as string | null) ?? '',
        ...(credential && { apiKey: credential.apiKey }),
        headers: JSON.parse(headers ?? '{}') as Record<string, string>,
        policy: row.provider_tenant_id === null ? 'operator' : 'provider',
        ...((credentials === null || headers === null) && { unreadable: true }),
        connectTimeoutMs: row.connect_timeout_ms as number,
        firstPieceTimeoutMs: row.first_piece_timeout_ms as number,
        idleTimeoutMs: row.idle_timeout_ms as number,
        totalTimeoutMs: row.total_timeout_ms as number,
      },
    };
  }
}

// The provider must be the service's owner's, or shared: a tenant's service can't borrow another's credential.
const SELECT_RESOLVED = `select s.id, s.model, s.type, s.context_window, s.parameters,
           coalesce(price.input_price, s.input_price) as input_price, coalesce(price.output_price, s.output_price) as output_price,
           p.id as provider_id, p.tenant_id as provider_tenant_id, p.kind, p.base_url, p.credentials, p.headers,
           p.connect_timeout_ms, p.first_piece_timeout_ms, p.idle_timeout_ms, p.total_timeout_ms
         from model_services s join model_providers p on p.id = s.provider_id
           and (p.tenant_id is null or p.tenant_id = s.tenant_id)
         left join lateral (${PRICE_NOW}) price on true
         where (s.tenant_id = $1 or s.tenant_id is null) and s.enabled`;

const findResolved = (tenantId: TenantId, id: ModelServiceId): Statement<Row | null> => ({
  name: 'model-service-resolve',
  text: `${SELECT_RESOLVED} and s.id = $2`,
  values: [tenantId, id],
  map: ([row]) => row ?? null,
});

const findUsable = (tenantId: TenantId, nameOrId: string): Statement<Row | null> => ({
  name: 'model-service-find',
  text: `${SELECT_RESOLVED} and (s.id = $2 or s.name = $3)
         order by (s.id = $2) is true desc, s.tenant_id is null, s.order_num, s.id limit 1`,
  values: [tenantId, asId<ModelServiceId>(nameOrId), nameOrId],
  map: ([row]) => row ?? null,
});

function own(tenantId: TenantId | null): FindOptionsWhere<ModelServiceEntity> {
  return { tenantId: tenantId ?? IsNull() };
}

function mutable({ inputPrice, outputPrice, fallbackIds, ...rest }: ModelServiceInput) {
  return {
    ...rest,
    ...(inputPrice !== undefined && { inputPrice: String(inputPrice) }),
    ...(outputPrice !== undefined && { outputPrice: String(outputPrice) }),
    ...(fallbackIds && { fallbackIds: [...fallbackIds] }),
  };
}

function toService(row: ModelServiceEntity): ModelService {
  return {
    ...row,
    id: row.id as ModelServiceId,
    tenantId: row.tenantId as TenantId | null,
    providerId: row.providerId as ProviderId,
    parameters: row.parameters as Record<string, unknown>,
    inputPrice: Number(row.inputPrice),
    outputPrice: Number(row.outputPrice),
  };
}
