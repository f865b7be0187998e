import { Injectable } from '@nestjs/common';
import { MoreThan, type EntityManager } from 'typeorm';
import {
  AppError,
  cursorPage,
  IdGenerator,
  type CursorPage,
  type CursorQuery,
  type TenantId,
} from '../common';
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

/** Tenants: the platform's own table. */
@Injectable()
export class TenantsRepository {
  constructor(private readonly ids: IdGenerator) {}

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

function mutable(input: TenantInput) {
  const { allowedOrigins, ...rest } = input;
  return { ...rest, ...(allowedOrigins && { allowedOrigins: [...allowedOrigins] }) };
}

function toTenant(row: TenantEntity): Tenant {
  return { ...row, id: row.id as TenantId };
}
