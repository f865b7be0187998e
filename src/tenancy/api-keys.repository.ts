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
import { Database, keyScope, tenantsScope, type Row, type Statement } from '../database';
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
  /** Until then the secret before the last rotation works, too; null: it does not. */
  readonly previousSecretUntil: Date | null;
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
  /** 1 for the first secret. */
  readonly generation: number;
  readonly previousHash: string | null;
  /** Epoch ms; 0: the secret before is worth nothing. */
  readonly previousUntil: number;
  /** Epoch ms: user tokens that were asked for earlier are refused. */
  readonly tokensFrom: number;
  readonly scopes: ReadonlySet<Scope>;
  readonly expiresAt: number;
  readonly allowedAddresses: readonly string[];
  readonly revoked: boolean;
  readonly tenantActive: boolean;
  readonly allowedOrigins: readonly string[];
  readonly limits: Readonly<Record<string, number>>;
  readonly tenantLimits: Readonly<Record<string, number>>;
  /** Epoch ms, of the database's clock. */
  readonly updatedAt: number;
}

/**
 * A token that is asked for while another process does not know yet that the key has become narrower is refused with
 * those of before.
 */
const NARROWING_MS = 1_000;

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
    const before = await this.get(tx, tenantId, id);
    const narrower = leavesOut(before.allowedAddresses, change.allowedAddresses);
    const tokensFrom = new Date(Date.now() + NARROWING_MS);
    await tx.update(
      ApiKeyEntity,
      { tenantId, id },
      { ...mutable(change), ...(narrower && { tokensFrom }), updatedAt: CHANGED },
    );
    return this.get(tx, tenantId, id);
  }

  /** Stays in the list, marked; never works again. */
  async revoke(tx: EntityManager, tenantId: TenantId, id: ApiKeyId): Promise<ApiKey> {
    const { revokedAt } = await this.get(tx, tenantId, id);
    if (!revokedAt)
      await tx.update(ApiKeyEntity, { tenantId, id }, { revokedAt: new Date(), updatedAt: CHANGED });
    return this.get(tx, tenantId, id);
  }

  /** A new secret for the same key; the old one, and what was begun with it, stops after `overlapSeconds`. */
  async rotate(
    tx: EntityManager,
    tenantId: TenantId,
    id: ApiKeyId,
    overlapSeconds = 0,
  ): Promise<{ key: ApiKey; secret: string }> {
    const { revokedAt } = await this.get(tx, tenantId, id);
    if (revokedAt) throw new AppError('CONFLICT', { message: 'A revoked key can not be rotated.' });
    const secret = makeSecret(id);
    await tx.update(
      ApiKeyEntity,
      { tenantId, id },
      {
        secretHash: hashSecret(secret),
        generation: () => 'generation + 1',
        previousHash: overlapSeconds > 0 ? () => 'secret_hash' : null,
        previousUntil: overlapSeconds > 0 ? new Date(Date.now() + overlapSeconds * 1_000) : null,
        updatedAt: CHANGED,
      },
    );
    return { key: await this.get(tx, tenantId, id), secret };
  }

  /** Null for an id nobody has. The tenant is not known yet: the scope is the one key. */
  find(id: ApiKeyId): Promise<StoredKey | null> {
    return this.database.one(keyScope(id), findKey(id));
  }

  /** Those of `unknown`, and of `known` what was changed since: with the time of this answer, both of the database's clock. */
  changed(
    unknown: readonly ApiKeyId[],
    known: readonly ApiKeyId[],
    since: number,
  ): Statement<{ keys: Map<ApiKeyId, StoredKey>; at: number }> {
    return changedKeys(unknown, known, since);
  }

  async markUsed(uses: ReadonlyMap<ApiKeyId, { tenantId: TenantId; at: number }>): Promise<void> {
    const entries = [...uses];
    await this.database.one(tenantsScope(entries.map(([, use]) => use.tenantId)), markUsed(entries));
  }
}

/** When the transaction gets to it, not when it began. */
const CHANGED = (): string => 'clock_timestamp()';

const STORED = `k.tenant_id, k.name, k.secret_hash, k.generation, k.previous_hash, k.previous_until, k.tokens_from,
  k.scopes, k.expires_at, k.allowed_addresses, k.revoked_at is not null as revoked, t.status = 'active' as tenant_active,
  t.allowed_origins, k.limits, t.limits as tenant_limits, k.updated_at`;

const findKey = (id: ApiKeyId): Statement<StoredKey | null> => ({
  name: 'api-key-find',
  text: `select ${STORED} from api_keys k join tenants t on t.id = k.tenant_id where k.id = $1`,
  values: [id],
  map: ([row]) => (row ? toStored(row) : null),
});

const changedKeys = (
  unknown: readonly ApiKeyId[],
  known: readonly ApiKeyId[],
  since: number,
): Statement<{ keys: Map<ApiKeyId, StoredKey>; at: number }> => ({
  name: 'api-key-changed',
  // One row at least, for the time.
  text: `select extract(epoch from clock_timestamp()) * 1000 as at, c.* from (select 1) one left join (
           select k.id, ${STORED} from api_keys k join tenants t on t.id = k.tenant_id
           where k.id = any($1::bigint[])
             or (k.id = any($2::bigint[]) and (k.updated_at > $3 or k.revoked_at is not null))) c on true`,
  values: [unknown, known, new Date(since)],
  map: (rows) => ({
    at: Number(rows[0]!.at),
    keys: new Map(rows.filter(({ id }) => id !== null).map((row) => [row.id as ApiKeyId, toStored(row)])),
  }),
});

const timeOf = (value: unknown, none: number): number => (value ? (value as Date).getTime() : none);

function toStored(row: Row): StoredKey {
  return {
    tenantId: row.tenant_id as TenantId,
    name: row.name as string,
    secretHash: row.secret_hash as string,
    generation: row.generation as number,
    previousHash: row.previous_hash as string | null,
    previousUntil: timeOf(row.previous_until, 0),
    tokensFrom: timeOf(row.tokens_from, 0),
    scopes: new Set(row.scopes as Scope[]),
    expiresAt: timeOf(row.expires_at, Infinity),
    allowedAddresses: row.allowed_addresses as string[],
    revoked: row.revoked as boolean,
    tenantActive: row.tenant_active as boolean,
    allowedOrigins: row.allowed_origins as string[],
    limits: row.limits as Record<string, number>,
    tenantLimits: row.tenant_limits as Record<string, number>,
    updatedAt: timeOf(row.updated_at, 0),
  };
}

/** Whether an address that was allowed may not be any more; by the entries, not by what ranges hold. */
function leavesOut(before: readonly string[], after: readonly string[] | undefined): boolean {
  if (after === undefined || after.length === 0) return false;
  return before.length === 0 || before.some((entry) => !after.includes(entry));
}

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
    previousUntil,
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
    previousSecretUntil: previousUntil && previousUntil.getTime() > Date.now() ? previousUntil : null,
    revokedAt,
    lastUsedAt,
    createdAt,
    updatedAt,
  };
}
