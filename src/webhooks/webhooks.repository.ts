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
import { Database, platformScope, tenantScope, tenantsScope, type Row, type Statement } from '../database';
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
  readonly createdAt: Date;
  readonly updatedAt: Date;
}

export interface WebhookInput {
  readonly url?: string;
  readonly events?: readonly WebhookEvent[];
  readonly enabled?: boolean;
}

/** One event on its way to one webhook. */
export interface Delivery {
  readonly id: string;
  readonly webhookId: WebhookId;
  readonly tenantId: TenantId;
  readonly url: string;
  /** Sealed, as it is stored. */
  readonly secret: string;
  readonly event: WebhookEvent;
  readonly eventId: string;
  readonly payload: string;
  /** 1 for the first. */
  readonly attempt: number;
  readonly createdAt: Date;
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

/** How long a claimed delivery is nobody else's: longer than an attempt can take. */
const CLAIM_MS = 60_000;
const MAX_WEBHOOKS = 20;
const SECRET_BYTES = 32;

/** Webhooks and their outbox. Rows of the outbox are written with what they tell of, in that one's transaction. */
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
      text: `insert into webhooks (id, tenant_id, url, secret, events, enabled)
             select $1, $2, $3, $4, $5, $6 where (select count(*) from webhooks where tenant_id = $2) < ${MAX_WEBHOOKS}
             returning ${COLUMNS}`,
      values: [
        id,
        tenantId,
        input.url,
        this.secrets.seal(secret, id),
        [...input.events],
        input.enabled ?? true,
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

  async update(tenantId: TenantId, id: WebhookId, { url, events, enabled }: WebhookInput): Promise<Webhook> {
    const updated = await this.database.one(tenantScope(tenantId), {
      name: 'webhook-update',
      text: `update webhooks set url = coalesce($3, url), events = coalesce($4, events), enabled = coalesce($5, enabled),
               updated_at = now()
             where tenant_id = $1 and id = $2 returning ${COLUMNS}`,
      values: [tenantId, id, url ?? null, events ? [...events] : null, enabled ?? null],
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

  /**
   * Takes what is due, oldest first, for this process alone for a minute: at most `each` for one webhook and none for
   * the `busy` ones, so that a slow receiver holds up nobody else.
   */
  claim(limit: number, each: number, busy: readonly WebhookId[]): Promise<Delivery[]> {
    return this.database.one(platformScope(), claim(limit, each, busy));
  }

  async delivered({ tenantId, id }: Pick<Delivery, 'tenantId' | 'id'>): Promise<void> {
    await this.database.one(tenantScope(tenantId), {
      name: 'webhook-delivered',
      text: 'delete from webhook_deliveries where tenant_id = $1 and id = $2',
      values: [tenantId, id],
      map: () => undefined,
    });
  }

  /** `againInMs` null: no more attempts, it is a dead letter now. */
  async failed(
    { tenantId, id }: Pick<Delivery, 'tenantId' | 'id'>,
    error: string,
    againInMs: number | null,
  ): Promise<void> {
    await this.database.one(tenantScope(tenantId), {
      name: 'webhook-failed',
      text: `update webhook_deliveries set last_error = $3, dead = $4::float8 is null,
               next_at = now() + make_interval(secs => coalesce($4::float8, 0) / 1000)
             where tenant_id = $1 and id = $2`,
      values: [tenantId, id, error, againInMs],
      map: () => undefined,
    });
  }
}

const newSecret = (): string => `whsec_${randomBytes(SECRET_BYTES).toString('base64')}`;

const COLUMNS = 'id, url, secret, events, enabled, created_at, updated_at';

const claim = (limit: number, each: number, busy: readonly WebhookId[]): Statement<Delivery[]> => ({
  name: 'webhook-claim',
  text: `with due as (
      select d.id, w.url, w.secret from webhooks w
      cross join lateral (
        select id, next_at from webhook_deliveries
        where webhook_id = w.id and not dead and next_at <= now() order by next_at limit $2) d
      where w.enabled and w.id <> all($3::bigint[])
      order by d.next_at limit $1),
    locked as (
      select x.id, due.url, due.secret from due join webhook_deliveries x on x.id = due.id
      where not x.dead and x.next_at <= now() for update of x skip locked)
    update webhook_deliveries d set attempts = d.attempts + 1, next_at = now() + interval '${CLAIM_MS} milliseconds'
    from locked l where d.id = l.id
    returning d.id, d.webhook_id, d.tenant_id, d.event, d.event_id, d.payload, d.attempts, d.created_at, l.url, l.secret`,
  values: [limit, each, busy],
  map: (rows) =>
    rows.map((row) => ({
      id: row.id as string,
      webhookId: row.webhook_id as WebhookId,
      tenantId: row.tenant_id as TenantId,
      url: row.url as string,
      secret: row.secret as string,
      event: row.event as WebhookEvent,
      eventId: row.event_id as string,
      payload: row.payload as string,
      attempt: row.attempts as number,
      createdAt: row.created_at as Date,
    })),
});

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
