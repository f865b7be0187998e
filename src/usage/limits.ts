import type { Principal } from '../common';

export const PERIODS = ['minute', 'day', 'month'] as const;
export type Period = (typeof PERIODS)[number];
export type Metric = 'requests' | 'tokens' | 'credits';

/** As a tenant and a key have them in `limits`: `tokensPerDay`, `userRequestsPerMinute` and so on, among others. */
export type LimitMap = Readonly<Record<string, unknown>>;

/** Whose limits count for a caller: its tenant's, and its key's if it has one. */
export interface CallerLimits {
  readonly tenant: LimitMap;
  readonly key: LimitMap;
}

/** Where the limits stand. Known within a second of a change, and asked on every request: from memory. */
export abstract class LimitsSource {
  abstract of(principal: Principal): CallerLimits | Promise<CallerLimits>;
}

/** One count of one period, and how far it may go; null: as far as it likes. */
export interface Counter {
  /** `key-user`: a single user, as far as this key is concerned. */
  readonly scope: 'tenant' | 'key' | 'user' | 'key-user';
  readonly scopeId: string;
  readonly period: Period;
  readonly requests: number | null;
  readonly tokens: number | null;
  readonly credits: number | null;
}

const NAMES: Readonly<Record<Period, Readonly<Partial<Record<Metric, string>>>>> = {
  minute: { requests: 'requestsPerMinute', tokens: 'tokensPerMinute' },
  day: { requests: 'requestsPerDay', tokens: 'tokensPerDay', credits: 'creditsPerDay' },
  month: { requests: 'requestsPerMonth', tokens: 'tokensPerMonth', credits: 'creditsPerMonth' },
};
const ofUser = (name: string): string => `user${name[0]!.toUpperCase()}${name.slice(1)}`;

const ALL_NAMES = Object.values(NAMES).flatMap((names) => Object.values(names));
/** Every name of a quota there is. */
export const QUOTA_NAMES: ReadonlySet<string> = new Set([...ALL_NAMES, ...ALL_NAMES.map(ofUser)]);

/** The counters of a caller that have limits, always in the same order: two requests never wait for each other. */
export function countersOf({ tenantId, keyId, userId }: Principal, { tenant, key }: CallerLimits): Counter[] {
  return [
    ...counters(tenant, 'tenant', tenantId, (name) => name),
    ...(keyId === null ? [] : counters(key, 'key', keyId, (name) => name)),
    ...counters(tenant, 'user', userId, ofUser),
    ...(keyId === null ? [] : counters(key, 'key-user', `${keyId}/${userId}`, ofUser)),
  ];
}

function counters(
  limits: LimitMap,
  scope: Counter['scope'],
  scopeId: string,
  nameOf: (name: string) => string,
): Counter[] {
  const found: Counter[] = [];
  // A tenant without any limit is the rule, and its requests are to cost nothing here.
  for (const any in limits) {
    if (!QUOTA_NAMES.has(any)) continue;
    for (const period of PERIODS) {
      const limit = (metric: Metric): number | null => {
        const name = NAMES[period][metric];
        const value = name === undefined ? undefined : limits[nameOf(name)];
        return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : null;
      };
      const one = { requests: limit('requests'), tokens: limit('tokens'), credits: limit('credits') };
      if (one.requests !== null || one.tokens !== null || one.credits !== null)
        found.push({ scope, scopeId, period, ...one });
    }
    break;
  }
  return found;
}

/** When the period that `now` is in ends, UTC. */
export function endOf(period: Period, now: Date): Date {
  switch (period) {
    case 'minute':
      return new Date((Math.floor(now.getTime() / 60_000) + 1) * 60_000);
    case 'day':
      return new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth(), now.getUTCDate() + 1));
    case 'month':
      return new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() + 1, 1));
  }
}
