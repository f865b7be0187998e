import { Injectable } from '@nestjs/common';
import { IsNull, LessThan, type EntityManager } from 'typeorm';
import {
  cursorPage,
  IdGenerator,
  type CursorPage,
  type CursorQuery,
  type Principal,
  type TenantId,
} from '../common';
import { AuditLogEntity } from './audit-log.entity';

export interface AuditEntry {
  readonly id: string;
  readonly tenantId: string | null;
  readonly actorKeyId: string | null;
  readonly actor: string;
  readonly action: string;
  readonly resource: string;
  readonly resourceId: string;
  readonly before: object | null;
  readonly after: object | null;
  readonly address: string;
  readonly createdAt: Date;
}

/** What an operator did: records as the admin wire shows them, so no secret can be in one. */
export interface AuditRecord {
  readonly principal: Principal;
  readonly address: string;
  readonly tenantId: TenantId | null;
  readonly action: 'create' | 'update' | 'delete' | 'revoke' | 'rotate' | 'publish';
  readonly resource: string;
  readonly resourceId: string;
  readonly before?: object;
  readonly after?: object;
}

@Injectable()
export class AuditLogRepository {
  constructor(private readonly ids: IdGenerator) {}

  /** In the transaction of the change itself: no change without its entry. */
  async record(tx: EntityManager, { principal, before, after, ...entry }: AuditRecord): Promise<void> {
    await tx.insert(AuditLogEntity, {
      id: this.ids.next(),
      actorKeyId: principal.keyId,
      actor: principal.keyName,
      before: before ?? null,
      after: after ?? null,
      ...entry,
    });
  }

  /** Newest first; `tenantId` null is the platform's own entries. */
  async list(
    tx: EntityManager,
    tenantId: TenantId | null,
    query: CursorQuery,
  ): Promise<CursorPage<AuditEntry>> {
    const rows = await tx.find(AuditLogEntity, {
      where: { tenantId: tenantId ?? IsNull(), ...(query.cursor && { id: LessThan(query.cursor) }) },
      order: { id: 'desc' },
      take: query.limit + 1,
    });
    return cursorPage(rows, query.limit);
  }
}
