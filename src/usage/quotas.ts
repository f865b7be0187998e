import { Injectable } from '@nestjs/common';
import { AppError, type MessageId, type Principal, type TenantId } from '../common';
import type { Statement } from '../database';
import { countersOf, endOf, LimitsSource, type Counter, type Metric, type Period } from './limits';

/** What a request may come to, at most as far as anybody can tell before it. */
export interface Estimate {
  readonly tokens: number;
  readonly credits: number;
}

/** What limits one caller's next request. */
export interface Quota {
  readonly tenantId: TenantId;
  readonly counters: readonly Counter[];
}

/** A request that is counted by `id` until {@link settleUsage}. */
export interface Reservation extends Estimate {
  readonly id: MessageId;
}

/** Answers longer than this are not expected of whoever does not say how long theirs may be. */
const ASSUMED_ANSWER_TOKENS = 4_096;
const REFUSED = 'PLQ01';

/**
 * Quotas: reserve, then settle. A tenant, key or user without limits costs no query here. Counts are shared by all
 * processes, in PostgreSQL, so no number of them lets more through than one would.
 */
@Injectable()
export class Quotas {
  constructor(private readonly limits: LimitsSource) {}

  /** Null: nothing limits this caller, and nothing is to be reserved. */
  async of(principal: Principal): Promise<Quota | null> {
    const counters = countersOf(principal, await this.limits.of(principal));
    return counters.length > 0 ? { tenantId: principal.tenantId, counters } : null;
  }
}

/** What a text may come to: its prompt, and the longest answer that was asked for or is to be expected. */
export function estimateOf(
  promptTokens: number,
  parameters: Readonly<Record<string, unknown>>,
  service: { readonly contextWindow: number; readonly inputPrice: number; readonly outputPrice: number },
): Estimate {
  const asked = parameters.max_completion_tokens ?? parameters.max_tokens;
  const assumed = Math.min(ASSUMED_ANSWER_TOKENS, Math.floor(service.contextWindow / 4));
  const answer = typeof asked === 'number' && asked > 0 ? Math.min(Math.ceil(asked), 1e9) : assumed;
  const credits = (promptTokens * service.inputPrice + answer * service.outputPrice) / 1_000_000;
  return { tokens: Math.ceil(promptTokens) + answer, credits };
}

/** Takes all of it or fails, and its transaction with it: {@link overQuota} says of what. */
export const reserveUsage = (
  { tenantId, counters }: Quota,
  { id, tokens, credits }: Reservation,
): Statement<void> => ({
  name: 'quota-reserve',
  text: `select reserve_usage($1, $2, $3, $4, $5::text[], $6::text[], $7::text[], $8::bigint[], $9::bigint[], $10::numeric[])`,
  values: [
    tenantId,
    id,
    tokens,
    credits.toFixed(6),
    counters.map(({ scope }) => scope),
    counters.map(({ scopeId }) => scopeId),
    counters.map(({ period }) => period),
    counters.map(({ requests }) => requests && Math.floor(requests)),
    counters.map((counter) => counter.tokens && Math.floor(counter.tokens)),
    counters.map((counter) => counter.credits),
  ],
  map: () => undefined,
});

/**
 * In the transaction of the ledger's row: what was reserved becomes what was used. The request itself stays counted.
 * Without a reservation of that id (settled before, or nothing limits it) nothing happens, nor to a count that is gone.
 */
export const settleUsage = (
  tenantId: TenantId,
  id: MessageId,
  used: { readonly totalTokens: number; readonly credits: number },
): Statement<void> => ({
  name: 'quota-settle',
  text: `with settled as (delete from usage_reservations where tenant_id = $1 and id = $2 returning *),
         -- In the order in which they were reserved: two requests never wait for each other.
         locked as (
           select c.tenant_id, c.scope, c.scope_id, c.period, c.starts_at, s.tokens, s.credits
           from settled s cross join lateral unnest(s.scopes, s.scope_ids, s.periods, s.starts)
             with ordinality as w(scope, scope_id, period, starts_at, n)
           join usage_counters c on c.tenant_id = s.tenant_id and c.scope = w.scope and c.scope_id = w.scope_id
             and c.period = w.period and c.starts_at = w.starts_at
           order by w.n for update of c)
         update usage_counters c set tokens = c.tokens + $3 - l.tokens, credits = c.credits + $4 - l.credits
         from locked l where c.tenant_id = l.tenant_id and c.scope = l.scope and c.scope_id = l.scope_id
           and c.period = l.period and c.starts_at = l.starts_at`,
  values: [tenantId, id, used.totalTokens, used.credits],
  map: () => undefined,
});

interface Over {
  readonly scope: Counter['scope'];
  readonly period: Period;
  readonly metric: Metric;
  readonly max: number;
  readonly used: number;
  readonly wanted: number;
}

const WHO: Readonly<Record<Counter['scope'], string>> = {
  tenant: 'this tenant',
  key: 'this key',
  user: 'this user',
  'key-user': 'this user with this key',
};
const LENGTH: Readonly<Record<Period, number>> = { minute: 0, day: 1, month: 2 };

/** What a failed reservation tells its caller; null for a failure of another kind. */
export function overQuota(error: unknown): AppError | null {
  const { code, detail } = error as { code?: string; detail?: string };
  if (code !== REFUSED || detail === undefined) return null;
  const told = JSON.parse(detail) as { over: Over[]; now: string };
  const now = new Date(told.now);
  // Even of an unused period it would take more than there is.
  const tooLarge = told.over.find((one) => one.metric !== 'requests' && one.wanted > one.max && one.max > 0);
  // Else the longest of them is the one that is to be waited for.
  const worst = tooLarge ?? told.over.reduce((a, b) => (LENGTH[b.period] > LENGTH[a.period] ? b : a));
  const { scope, period, metric, max, used, wanted } = worst;
  const resets = endOf(period, now);
  const seconds = Math.max(1, Math.ceil((resets.getTime() - now.getTime()) / 1_000));
  const left = Math.max(0, max - used);
  const needed = metric === 'requests' ? '' : `, this request may need ${round(wanted)}`;
  return new AppError(period === 'minute' && !tooLarge ? 'RATE_LIMITED' : 'QUOTA_EXCEEDED', {
    message: `${WHO[scope]} may use ${round(max)} ${metric} a ${period}; ${round(left)} left${needed}. ${tooLarge ? 'It is larger than the limit: ask for less, with max_tokens. ' : ''}Resets at ${resets.toISOString()}.`,
    retryAfterSeconds: seconds,
    headers: {
      'x-ratelimit-limit': String(round(max)),
      'x-ratelimit-remaining': String(round(left)),
      'x-ratelimit-reset': String(seconds),
      'x-ratelimit-scope': `${scope}; ${metric}; ${period}`,
    },
  });
}

function round(value: number): number {
  return Math.round(value * 1e6) / 1e6;
}
