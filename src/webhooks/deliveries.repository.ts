import { Injectable } from '@nestjs/common';
import type { TenantId, WebhookId } from '../common';
import { Config } from '../config';
import { Database, idArray, platformScope, tenantScope, type Statement } from '../database';
import { BASE_DELAY_MS, MAX_ATTEMPTS, MAX_DELAY_MS } from './back-off';
import type { Room } from './shares';
import type { WebhookEvent } from './webhooks.repository';

/** One event on its way to one webhook. */
export interface Delivery {
  readonly id: string;
  readonly webhookId: WebhookId;
  readonly tenantId: TenantId;
  readonly url: string;
  /** Where the webhooks' URLs lead to, without their paths. */
  readonly origin: string;
  /** Sealed, as it is stored. */
  readonly secret: string;
  readonly event: WebhookEvent;
  readonly eventId: string;
  readonly payload: string;
  /** 1 for the first. */
  readonly attempt: number;
  readonly createdAt: Date;
  /** The receiver is paused: this one attempt finds out whether it is back. */
  readonly probe: boolean;
}

/** How long a claimed delivery is nobody else's: longer than an attempt can take. */
const CLAIM_MS = 60_000;
/** Of what is due for one webhook, the longest due: among these the oldest is taken first. */
const WINDOW = 50;
/** A process that dies with its probe holds up the next one for so long after the attempt's time. */
const PROBE_GRACE_SECONDS = 5;
export const MAX_PAUSE_SECONDS = 300;
/** A parameter, as in a claim: a plan that was made for an empty table then reaches each by its id. */
const ENDED_AT_ONCE = 50;

/** The outbox on its way out: who is next, what came of it, and who is paused. Its rows are written with what they tell of. */
@Injectable()
export class DeliveriesRepository {
  constructor(
    private readonly database: Database,
    private readonly config: Config,
  ) {}

  /**
   * Takes what is due for this process alone for a minute: of every webhook the oldest, the tenants in turns, each
   * within its room. Looks at no more than a few rows of a webhook however many wait for it, and at none of one that
   * has no room or is paused; when a pause is over, at one.
   */
  claim(room: Room): Promise<Delivery[]> {
    const { WEBHOOK_PAUSE_FAILURES, WEBHOOK_TIMEOUT_SECONDS } = this.config.env;
    const lease = WEBHOOK_TIMEOUT_SECONDS + PROBE_GRACE_SECONDS;
    return this.database.one(platformScope(), claim(room, WEBHOOK_PAUSE_FAILURES, lease));
  }

  /** Gone from the outbox; a pause of its receiver is over. */
  async delivered({ tenantId, id, webhookId }: Delivery): Promise<void> {
    await this.database.one(tenantScope(tenantId), {
      name: 'webhook-delivered',
      text: `with gone as (delete from webhook_deliveries where tenant_id = $1 and id = $2)
             update webhooks set failures = 0, pauses = 0, paused_until = null
             where tenant_id = $1 and id = $3 and failures > 0`,
      values: [tenantId, id, webhookId],
      map: () => undefined,
    });
  }

  /**
   * `againInMs` null: no more attempts, it is a dead letter now. With so many failures in a row its receiver is paused,
   * after a failed probe for twice as long as before.
   */
  async failed(
    { tenantId, id, webhookId, probe }: Delivery,
    error: string,
    againInMs: number | null,
  ): Promise<void> {
    const { WEBHOOK_PAUSE_FAILURES, WEBHOOK_PAUSE_SECONDS } = this.config.env;
    await this.database.one(tenantScope(tenantId), {
      name: 'webhook-failed',
      text: `with put_off as (
          update webhook_deliveries set last_error = $3, dead = $4::float8 is null,
            next_at = now() + make_interval(secs => coalesce($4::float8, 0) / 1000)
          where tenant_id = $1 and id = $2),
        counted as (
          select w.id, $6::boolean or w.failures + 1 = $7 as pausing from webhooks w
          where w.tenant_id = $1 and w.id = $5 for update)
        update webhooks w set failures = w.failures + 1, last_error = $3, last_failure_at = now(),
          pauses = w.pauses + c.pausing::int,
          paused_until = case when c.pausing
            then now() + make_interval(secs => least($8 * 2.0 ^ least(w.pauses, 20), ${MAX_PAUSE_SECONDS}))
            else w.paused_until end
        from counted c where w.id = c.id`,
      values: [
        tenantId,
        id,
        error,
        againInMs,
        webhookId,
        probe,
        WEBHOOK_PAUSE_FAILURES,
        WEBHOOK_PAUSE_SECONDS,
      ],
      map: () => undefined,
    });
  }

  /**
   * What waits for a webhook that is switched off fails with each attempt, and what has been due for too long at a
   * paused one is a dead letter: both without a call. How many; a part of them, if there are many.
   */
  endWaiting(): Promise<number> {
    const { WEBHOOK_PAUSE_FAILURES, WEBHOOK_MAX_WAIT_HOURS } = this.config.env;
    return this.database.one(platformScope(), endWaiting(WEBHOOK_PAUSE_FAILURES, WEBHOOK_MAX_WAIT_HOURS));
  }
}

/** Ids of webhooks for which anything waits: a step of the index each, however many rows of it there are. */
const WAITING = `waiting as (
      (select webhook_id from webhook_deliveries where not dead order by webhook_id limit 1)
      union all
      select (select d.webhook_id from webhook_deliveries d where not d.dead and d.webhook_id > waiting.webhook_id
        order by d.webhook_id limit 1)
      from waiting where waiting.webhook_id is not null)`;

export const claim = (
  { limit, perWebhook, perOrigin, perTenant, running }: Room,
  pauseFailures: number,
  leaseSeconds: number,
): Statement<Delivery[]> => ({
  name: 'webhook-claim',
  text: `with recursive ${WAITING},
    running as (
      select * from unnest($1::bigint[], $2::bigint[], $3::text[], $4::int[]) as r(webhook_id, tenant_id, origin, running)),
    receivers as materialized (
      select w.id as webhook_id, w.tenant_id, w.origin, w.url, w.secret, w.failures >= $5 as probe,
        case when w.failures >= $5 then 1 else $6 - coalesce(r.running, 0) end as room
      from waiting join webhooks w on w.id = waiting.webhook_id left join running r on r.webhook_id = w.id
      where w.enabled and (w.paused_until is null or w.paused_until <= now())),
    due as (
      select r.*, d.id, row_number() over (partition by r.webhook_id order by d.id) as place
      from receivers r cross join lateral (
        select longest.id from (
          select x.id from webhook_deliveries x
          where x.webhook_id = r.webhook_id and not x.dead and x.next_at <= now()
          order by x.next_at, x.id limit ${WINDOW}) longest
        order by longest.id limit r.room) d
      where r.room > 0),
    at_origin as (
      select due.*, row_number() over (partition by tenant_id, origin order by place, id) as origin_turn from due),
    of_tenant as (
      select a.*, row_number() over (partition by a.tenant_id order by a.place, a.id) as turn
      from at_origin a
      left join (select tenant_id, origin, sum(running) as running from running group by 1, 2) o
        on o.tenant_id = a.tenant_id and o.origin = a.origin
      where a.origin_turn + coalesce(o.running, 0) <= $7),
    picked as materialized (
      select p.* from of_tenant p
      left join (select tenant_id, sum(running) as running from running group by 1) t on t.tenant_id = p.tenant_id
      where p.turn + coalesce(t.running, 0) <= $8
      order by p.turn + coalesce(t.running, 0), p.id limit $9),
    probes as materialized (
      select w.id from webhooks w
      where w.id in (select webhook_id from picked where probe) and w.paused_until <= now() for update skip locked),
    locked as (
      select x.id, p.webhook_id, p.origin, p.url, p.secret, p.probe
      from picked p join webhook_deliveries x on x.id = p.id
      where not x.dead and x.next_at <= now() and (not p.probe or p.webhook_id in (select id from probes))
      for update of x skip locked),
    leased as (
      update webhooks w set paused_until = now() + make_interval(secs => $10)
      from locked l where l.probe and w.id = l.webhook_id)
    update webhook_deliveries d set attempts = d.attempts + 1, next_at = now() + interval '${CLAIM_MS} milliseconds'
    from locked l where d.id = l.id
    returning d.id, d.webhook_id, d.tenant_id, d.event, d.event_id, d.payload, d.attempts, d.created_at,
      l.origin, l.url, l.secret, l.probe`,
  values: [
    idArray(running.map(({ webhookId }) => webhookId)),
    idArray(running.map(({ tenantId }) => tenantId)),
    running.map(({ origin }) => origin),
    idArray(running.map(({ count }) => count)),
    pauseFailures,
    perWebhook,
    perOrigin,
    perTenant,
    limit,
    leaseSeconds,
  ],
  map: (rows) =>
    rows
      .map((row) => ({
        id: row.id as string,
        webhookId: row.webhook_id as WebhookId,
        tenantId: row.tenant_id as TenantId,
        url: row.url as string,
        origin: row.origin as string,
        secret: row.secret as string,
        event: row.event as WebhookEvent,
        eventId: row.event_id as string,
        payload: row.payload as string,
        attempt: row.attempts as number,
        createdAt: row.created_at as Date,
        probe: row.probe as boolean,
      }))
      .sort((a, b) => Number(BigInt(a.id) - BigInt(b.id))),
});

export const endWaiting = (pauseFailures: number, maxWaitHours: number): Statement<number> => ({
  name: 'webhook-end-waiting',
  text: `with recursive ${WAITING},
    ending as materialized (
      select d.id, w.enabled from waiting join webhooks w on w.id = waiting.webhook_id
      cross join lateral (
        select x.id from webhook_deliveries x where x.webhook_id = w.id and not x.dead
          and x.next_at <= now() - case when w.enabled then make_interval(hours => $2) else interval '0' end
        order by x.next_at, x.id limit ${ENDED_AT_ONCE}) d
      where not w.enabled or w.failures >= $1 limit $3),
    locked as (
      select x.id, e.enabled from ending e join webhook_deliveries x on x.id = e.id
      where not x.dead and x.next_at <= now() for update of x skip locked)
    update webhook_deliveries d set
      attempts = d.attempts + (not l.enabled)::int,
      dead = l.enabled or d.attempts + 1 >= ${MAX_ATTEMPTS},
      last_error = case when l.enabled then 'it waited for ' || $2 || ' hours: ' || coalesce(d.last_error, 'the receiver was paused')
        else 'the webhook is switched off' end,
      next_at = now() + make_interval(
        secs => least(${BASE_DELAY_MS / 1_000} * 2.0 ^ least(d.attempts, 20), ${MAX_DELAY_MS / 1_000}))
    from locked l where d.id = l.id returning 1`,
  values: [pauseFailures, maxWaitHours, ENDED_AT_ONCE],
  map: (rows) => rows.length,
});
