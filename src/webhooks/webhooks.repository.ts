import { randomBytes } from 'node:crypto';
import { Injectable } from '@nestjs/common';
import {
  AppError,
  IdGenerator,
  type SealedRow,
  type SealedRows,
  type TenantId,
  type WebhookId,
} from '../common';
import { Database, tenantScope, tenantsScope, type Row } from '../database';
import { shownUrl } from '../outbound';
import { SecretOpener } from './secret-opener';

export const WEBHOOK_EVENTS = ['message.created', 'user.online', 'user.offline', 'group.changed'] as const;
export type WebhookEvent = (typeof WEBHOOK_EVENTS)[number];

export interface Webhook {
  readonly id: WebhookId;
  readonly url: string;
  readonly events: readonly WebhookEvent[];
  readonly enabled: boolean;
  /** `enter-again`: it was sealed under a key that is not known any more; nothing can be delivered until it is replaced. */
  readonly secretStatus: 'ok' | 'enter-again';
  readonly receiver: Receiver;
  readonly createdAt: Date;
  readonly updatedAt: Date;
}

/** How its receiver has been doing. */
export interface Receiver {
  /** Failed attempts since the last one that it took. */
  readonly failures: number;
  /** Null: it is not paused, or is about to be tried again. */
  readonly pausedUntil: Date | null;
  readonly lastError: string | null;
  readonly lastFailureAt: Date | null;
}

export interface WebhookInput {
  readonly url?: string;
  readonly events?: readonly WebhookEvent[];
  readonly enabled?: boolean;
}

export interface DeadLetter {
  readonly id: string;
  readonly event: WebhookEvent;
  readonly eventId: string;
  readonly payload: unknown;
  readonly attempts: number;
  readonly lastError: string | null;
  readonly createdAt: Date;
}

const MAX_WEBHOOKS = 20;
const SECRET_BYTES = 32;

/** Webhooks, what is known of their receivers, and their dead letters. */
@Injectable()
export class WebhooksRepository implements SealedRows {
  constructor(
    private readonly database: Database,
    private readonly ids: IdGenerator,
    private readonly secrets: SecretOpener,
  ) {}

  /** CONFLICT when the tenant has 20. */
  async create(
    tenantId: TenantId,
    input: WebhookInput & { url: string; events: readonly WebhookEvent[] },
  ): Promise<{ webhook: Webhook; secret: string }> {
    const id = this.ids.next<WebhookId>();
    const secret = newSecret();
    const created = await this.database.one(tenantScope(tenantId), {
      name: 'webhook-create',
      text: `insert into webhooks (id, tenant_id, url, secret, events, enabled, origin)
             select $1, $2, $3, $4, $5, $6, $7 where (select count(*) from webhooks where tenant_id = $2) < ${MAX_WEBHOOKS}
             returning ${COLUMNS}`,
      values: [
        id,
        tenantId,
        input.url,
        this.secrets.seal(secret, id),
        [...input.events],
        input.enabled ?? true,
        originOf(input.url),
      ],
      map: ([row]) => (row ? this.toWebhook(row) : null),
    });
    if (!created)
      throw new AppError('CONFLICT', { message: `A tenant has at most ${MAX_WEBHOOKS} webhooks.` });
    return { webhook: created, secret };
  }

  list(tenantId: TenantId): Promise<Webhook[]> {
    return this.database.one(tenantScope(tenantId), {
      name: 'webhook-list',
      text: `select ${COLUMNS} from webhooks where tenant_id = $1 order by id`,
      values: [tenantId],
      map: (rows) => rows.map((row) => this.toWebhook(row)),
    });
  }

  /** NOT_FOUND when the tenant has none of that id. */
  async get(tenantId: TenantId, id: WebhookId): Promise<Webhook> {
    const found = (await this.list(tenantId)).find((webhook) => webhook.id === id);
    if (!found) throw new AppError('NOT_FOUND');
    return found;
  }

  /** A new address, or being switched on, ends a pause. */
  async update(tenantId: TenantId, id: WebhookId, { url, events, enabled }: WebhookInput): Promise<Webhook> {
    const updated = await this.database.one(tenantScope(tenantId), {
      name: 'webhook-update',
      text: `update webhooks set url = coalesce($3, url), events = coalesce($4, events), enabled = coalesce($5, enabled),
               origin = coalesce($6, origin), updated_at = now(),
               failures = case when $7 then 0 else failures end, pauses = case when $7 then 0 else pauses end,
               paused_until = case when $7 then null else paused_until end
             where tenant_id = $1 and id = $2 returning ${COLUMNS}`,
      values: [
        tenantId,
        id,
        url ?? null,
        events ? [...events] : null,
        enabled ?? null,
        url === undefined ? null : originOf(url),
        url !== undefined || enabled === true,
      ],
      map: ([row]) => (row ? this.toWebhook(row) : null),
    });
    if (!updated) throw new AppError('NOT_FOUND');
    return updated;
  }

  /** A new secret: what is delivered from now on is signed with it. NOT_FOUND when the tenant has none of that id. */
  async replaceSecret(tenantId: TenantId, id: WebhookId): Promise<{ webhook: Webhook; secret: string }> {
    const secret = newSecret();
    const webhook = await this.database.one(tenantScope(tenantId), {
      name: 'webhook-replace-secret',
      text: `update webhooks set secret = $3, updated_at = now() where tenant_id = $1 and id = $2 returning ${COLUMNS}`,
      values: [tenantId, id, this.secrets.seal(secret, id)],
      map: ([row]) => (row ? this.toWebhook(row) : null),
    });
    if (!webhook) throw new AppError('NOT_FOUND');
    return { webhook, secret };
  }

  sealedRows(tenants: readonly TenantId[], after: string, limit: number): Promise<SealedRow[]> {
    return this.database.one(tenantsScope(tenants), {
      name: 'webhooks-sealed',
      text: `select id, tenant_id, url, secret from webhooks
             where tenant_id = any($1::bigint[]) and id > $2 order by id limit $3`,
      values: [[...tenants], after, limit],
      map: (rows) =>
        rows.map((row) => ({
          id: row.id as string,
          tenantId: row.tenant_id as TenantId,
          name: shownUrl(row.url as string),
          context: row.id as string,
          sealed: [row.secret as string],
        })),
    });
  }

  reseal({ id, tenantId, sealed: [before] }: SealedRow, [sealed]: readonly string[]): Promise<boolean> {
    return this.database.one(tenantScope(tenantId!), {
      name: 'webhook-reseal',
      text: 'update webhooks set secret = $4 where tenant_id = $1 and id = $2 and secret = $3 returning id',
      values: [tenantId, id, before, sealed],
      map: (rows) => rows.length > 0,
    });
  }

  private toWebhook(row: Row): Webhook {
    const id = row.id as WebhookId;
    return {
      id,
      url: row.url as string,
      events: row.events as WebhookEvent[],
      enabled: row.enabled as boolean,
      secretStatus: this.secrets.readable(row.secret as string, id) ? 'ok' : 'enter-again',
      receiver: toReceiver(row),
      createdAt: row.created_at as Date,
      updatedAt: row.updated_at as Date,
    };
  }

  /** With everything that was still to be delivered to it. */
  async delete(tenantId: TenantId, id: WebhookId): Promise<void> {
    const deleted = await this.database.one(tenantScope(tenantId), {
      name: 'webhook-delete',
      text: 'delete from webhooks where tenant_id = $1 and id = $2 returning id',
      values: [tenantId, id],
      map: (rows) => rows.length > 0,
    });
    if (!deleted) throw new AppError('NOT_FOUND');
  }

  /** Oldest first, after an id. */
  deadLetters(tenantId: TenantId, id: WebhookId, after: string, limit: number): Promise<DeadLetter[]> {
    return this.database.one(tenantScope(tenantId), {
      name: 'webhook-dead-letters',
      text: `select id, event, event_id, payload, attempts, last_error, created_at from webhook_deliveries
             where tenant_id = $1 and webhook_id = $2 and dead and id > $3 order by id limit $4`,
      values: [tenantId, id, after, limit],
      map: (rows) => rows.map(toDeadLetter),
    });
  }

  /** Every dead letter of the webhook is tried anew; how many. */
  revive(tenantId: TenantId, id: WebhookId): Promise<number> {
    return this.database.one(tenantScope(tenantId), {
      name: 'webhook-revive',
      text: `update webhook_deliveries set dead = false, attempts = 0, next_at = now()
             where tenant_id = $1 and webhook_id = $2 and dead returning 1`,
      values: [tenantId, id],
      map: (rows) => rows.length,
    });
  }
}

const newSecret = (): string => `whsec_${randomBytes(SECRET_BYTES).toString('base64')}`;

const COLUMNS = `id, url, secret, events, enabled, failures, last_error, last_failure_at, created_at, updated_at,
  case when paused_until > now() then paused_until end as paused_until`;

function toReceiver(row: Row): Receiver {
  return {
    failures: row.failures as number,
    pausedUntil: row.paused_until as Date | null,
    lastError: row.last_error as string | null,
    lastFailureAt: row.last_failure_at as Date | null,
  };
}

function toDeadLetter(row: Row): DeadLetter {
  return {
    id: row.id as string,
    event: row.event as WebhookEvent,
    eventId: row.event_id as string,
    payload: JSON.parse(row.payload as string) as unknown,
    attempts: row.attempts as number,
    lastError: row.last_error as string | null,
    createdAt: row.created_at as Date,
  };
}

const originOf = (url: string): string => new URL(url).origin;
