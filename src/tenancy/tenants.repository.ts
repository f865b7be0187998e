import { Injectable } from '@nestjs/common';
import { MoreThan, type EntityManager } from 'typeorm';
import {
  AppError,
  cursorPage,
  FreshCache,
  IdGenerator,
  type CursorPage,
  type CursorQuery,
  type TenantId,
} from '../common';
import { Database, tenantScope, type Statement } from '../database';
import { TenantEntity } from './tenant.entity';

export interface Tenant {
  readonly id: TenantId;
  readonly name: string;
  readonly status: 'active' | 'suspended';
  readonly allowedOrigins: readonly string[];
  readonly groupPolicy: 'open' | 'managed';
  readonly limits: Readonly<Record<string, number>>;
  readonly retentionDays: number | null;
  readonly createdAt: Date;
  readonly updatedAt: Date;
}
export type TenantInput = Partial<Omit<Tenant, 'id' | 'createdAt' | 'updatedAt'>>;

/** What the wires ask about a tenant on every connection. */
export interface TenantSettings {
  readonly active: boolean;
  readonly allowedOrigins: readonly string[];
  readonly groupPolicy: Tenant['groupPolicy'];
  /** Overrides of the installation's limits, by name. */
  readonly limits: Readonly<Record<string, number>>;
}

const MAX_CACHED = 10_000;

/** Tenants: the platform's own table. */
@Injectable()
export class TenantsRepository {
  private readonly cached = new FreshCache<TenantSettings | null>(MAX_CACHED);

  constructor(
    private readonly ids: IdGenerator,
    private readonly database: Database,
  ) {}

  /** Null when there is none. Known within a second of a change. */
  settings(id: TenantId): TenantSettings | null | Promise<TenantSettings | null> {
    return this.cached.get(id, () => this.database.one(tenantScope(id), findSettings(id)));
  }

  async create(tx: EntityManager, input: TenantInput & { name: string }): Promise<Tenant> {
    const id = this.ids.next<TenantId>();
    await tx.insert(TenantEntity, { id, ...mutable(input) });
    return this.get(tx, id);
  }

  /** NOT_FOUND when there is none. */
  async get(tx: EntityManager, id: TenantId): Promise<Tenant> {
    const row = await tx.findOneBy(TenantEntity, { id });
    if (!row) throw new AppError('NOT_FOUND');
    return toTenant(row);
  }

  /** By id, oldest first. */
  async list(tx: EntityManager, { limit, cursor = '0' }: CursorQuery): Promise<CursorPage<Tenant>> {
    const rows = await tx.find(TenantEntity, {
      where: { id: MoreThan(cursor) },
      order: { id: 'asc' },
      take: limit + 1,
    });
    return cursorPage(rows.map(toTenant), limit);
  }

  async update(tx: EntityManager, id: TenantId, change: TenantInput): Promise<Tenant> {
    await tx.update(TenantEntity, { id }, { ...mutable(change), updatedAt: new Date() });
    return this.get(tx, id);
  }
}

const findSettings = (id: TenantId): Statement<TenantSettings | null> => ({
  name: 'tenant-settings',
  text: `select status = 'active' as active, allowed_origins, group_policy, limits from tenants where id = $1`,
  values: [id],
  map: ([row]) =>
    row
      ? {
          active: row.active as boolean,
          allowedOrigins: row.allowed_origins as string[],
          groupPolicy: row.group_policy as Tenant['groupPolicy'],
          limits: row.limits as Record<string, number>,
        }
      : null,
});

function mutable(input: TenantInput) {
  const { allowedOrigins, ...rest } = input;
  return { ...rest, ...(allowedOrigins && { allowedOrigins: [...allowedOrigins] }) };
}

function toTenant(row: TenantEntity): Tenant {
  return { ...row, id: row.id as TenantId };
}
