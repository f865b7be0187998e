import { Injectable } from '@nestjs/common';
import { MoreThan, type EntityManager } from 'typeorm';
import {
  AppError,
  cursorPage,
  IdGenerator,
  type ApiKeyId,
  type CursorPage,
  type CursorQuery,
  type Scope,
  type TenantId,
} from '../common';
import { Database, keyScope, tenantsScope, type Statement } from '../database';
import { ApiKeyEntity } from './api-key.entity';
import { hashSecret, makeSecret } from './api-key';

export interface ApiKey {
  readonly id: ApiKeyId;
  readonly tenantId: TenantId;
  readonly name: string;
  readonly scopes: readonly Scope[];
  readonly expiresAt: Date | null;
  readonly allowedAddresses: readonly string[];
  readonly limits: Readonly<Record<string, number>>;
  readonly revokedAt: Date | null;
  readonly lastUsedAt: Date | null;
  readonly createdAt: Date;
  readonly updatedAt: Date;
}
export interface ApiKeyInput {
  readonly name?: string;
  readonly scopes?: readonly Scope[];
  readonly expiresAt?: Date | null;
  readonly allowedAddresses?: readonly string[];
  readonly limits?: Readonly<Record<string, number>>;
}

/** What authentication needs of a key and its tenant, in one look-up. */
export interface StoredKey {
  readonly tenantId: TenantId;
  readonly name: string;
  readonly secretHash: string;
  readonly scopes: ReadonlySet<Scope>;
  readonly expiresAt: number;
  readonly allowedAddresses: readonly string[];
  readonly revoked: boolean;
  readonly tenantActive: boolean;
  readonly allowedOrigins: readonly string[];
  readonly limits: Readonly<Record<string, number>>;
  readonly tenantLimits: Readonly<Record<string, number>>;
}

@Injectable()
export class ApiKeysRepository {
  constructor(
    private readonly database: Database,
    private readonly ids: IdGenerator,
  ) {}

  /** The whole secret is in the answer, and nowhere else ever again. */
  async create(
    tx: EntityManager,
    tenantId: TenantId,
    input: ApiKeyInput & { name: string; scopes: readonly Scope[] },
  ): Promise<{ key: ApiKey; secret: string }> {
    const id = this.ids.next<ApiKeyId>();
    const secret = makeSecret(id);
    await tx.insert(ApiKeyEntity, { id, tenantId, ...mutable(input), secretHash: hashSecret(secret) });
    return { key: await this.get(tx, tenantId, id), secret };
  }

  async get(tx: EntityManager, tenantId: TenantId, id: ApiKeyId): Promise<ApiKey> {
    const row = await tx.findOneBy(ApiKeyEntity, { tenantId, id });
    if (!row) throw new AppError('NOT_FOUND');
    return toApiKey(row);
  }

  /** By id, oldest first, revoked ones included. */
  async list(tx: EntityManager, tenantId: TenantId, query: CursorQuery): Promise<CursorPage<ApiKey>> {
    const rows = await tx.find(ApiKeyEntity, {
      where: { tenantId, id: MoreThan(query.cursor ?? '0') },
      order: { id: 'asc' },
      take: query.limit + 1,
    });
    return cursorPage(rows.map(toApiKey), query.limit);
  }

  async update(tx: EntityManager, tenantId: TenantId, id: ApiKeyId, change: ApiKeyInput): Promise<ApiKey> {
    await tx.update(ApiKeyEntity, { tenantId, id }, { ...mutable(change), updatedAt: new Date() });
    return this.get(tx, tenantId, id);
  }

  /** Stays in the list, marked; never works again. */
  async revoke(tx: EntityManager, tenantId: TenantId, id: ApiKeyId): Promise<ApiKey> {
    const { revokedAt } = await this.get(tx, tenantId, id);
    if (!revokedAt)
      await tx.update(ApiKeyEntity, { tenantId, id }, { revokedAt: new Date(), updatedAt: new Date() });
    return this.get(tx, tenantId, id);
  }

  /** A new secret for the same key; the old one stops at once. */
  async rotate(
    tx: EntityManager,
    tenantId: TenantId,
    id: ApiKeyId,
  ): Promise<{ key: ApiKey; secret: string }> {
    const { revokedAt } = await this.get(tx, tenantId, id);
    if (revokedAt) throw new AppError('CONFLICT', { message: 'A revoked key can not be rotated.' });
    const secret = makeSecret(id);
    await tx.update(
      ApiKeyEntity,
      { tenantId, id },
      { secretHash: hashSecret(secret), updatedAt: new Date() },
    );
    return { key: await this.get(tx, tenantId, id), secret };
  }

  /** Null for an id nobody has. The tenant is not known yet: the scope is the one key. */
  find(id: ApiKeyId): Promise<StoredKey | null> {
    return this.database.one(keyScope(id), findKey(id));
  }

  async markUsed(uses: ReadonlyMap<ApiKeyId, { tenantId: TenantId; at: number }>): Promise<void> {
    const entries = [...uses];
    await this.database.one(tenantsScope(entries.map(([, use]) => use.tenantId)), markUsed(entries));
  }
}

const findKey = (id: ApiKeyId): Statement<StoredKey | null> => ({
  name: 'api-key-find',
  text: `select k.tenant_id, k.name, k.secret_hash, k.scopes, k.expires_at, k.allowed_addresses,
           k.revoked_at is not null as revoked, t.status = 'active' as tenant_active, t.allowed_origins,
           k.limits, t.limits as tenant_limits
         from api_keys k join tenants t on t.id = k.tenant_id where k.id = $1`,
  values: [id],
  map: ([row]) =>
    row
      ? {
          tenantId: row.tenant_id as TenantId,
          name: row.name as string,
          secretHash: row.secret_hash as string,
          scopes: new Set(row.scopes as Scope[]),
          expiresAt: row.expires_at ? (row.expires_at as Date).getTime() : Infinity,
          allowedAddresses: row.allowed_addresses as string[],
          revoked: row.revoked as boolean,
          tenantActive: row.tenant_active as boolean,
          allowedOrigins: row.allowed_origins as string[],
          limits: row.limits as Record<string, number>,
          tenantLimits: row.tenant_limits as Record<string, number>,
        }
      : null,
});

const markUsed = (uses: [ApiKeyId, { tenantId: TenantId; at: number }][]): Statement<void> => ({
  name: 'api-key-used',
  text: `update api_keys k set last_used_at = greatest(k.last_used_at, u.at)
         from unnest($1::bigint[], $2::bigint[], $3::timestamptz[]) as u(id, tenant_id, at)
         where k.id = u.id and k.tenant_id = u.tenant_id`,
  values: [uses.map(([id]) => id), uses.map(([, u]) => u.tenantId), uses.map(([, u]) => new Date(u.at))],
  map: () => undefined,
});

function mutable({ scopes, allowedAddresses, ...rest }: ApiKeyInput) {
  return {
    ...rest,
    ...(scopes && { scopes: [...scopes] }),
    ...(allowedAddresses && { allowedAddresses: [...allowedAddresses] }),
  };
}

function toApiKey(row: ApiKeyEntity): ApiKey {
  const {
    id,
    tenantId,
    name,
    expiresAt,
    allowedAddresses,
    limits,
    revokedAt,
    lastUsedAt,
    createdAt,
    updatedAt,
  } = row;
  return {
    id: id as ApiKeyId,
    tenantId: tenantId as TenantId,
    name,
    scopes: row.scopes as Scope[],
    expiresAt,
    allowedAddresses,
    limits,
    revokedAt,
    lastUsedAt,
    createdAt,
    updatedAt,
  };
}
