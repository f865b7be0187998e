import type { ApiKeyId, Principal, TenantId } from '../common';
import { countersOf, endOf, QUOTA_NAMES } from './limits';
import { estimateOf, overQuota } from './quotas';

const principal: Principal = {
  tenantId: '7' as TenantId,
  keyId: '8' as ApiKeyId,
  keyGeneration: 1,
  keyName: 'k',
  scopes: new Set(),
  userId: 'ann',
  endUser: false,
  allowedOrigins: [],
};

describe('countersOf', () => {
  it('is empty where nothing is limited, whatever else stands among the limits', () => {
    expect(countersOf(principal, { tenant: { imFramesPerSecond: 5 }, key: {} })).toEqual([]);
    const bad = { requestsPerDay: '5', tokensPerDay: -1, creditsPerDay: NaN, requestsPerMinute: null };
    expect(countersOf(principal, { tenant: bad, key: {} })).toEqual([]);
  });

  it('has one for each of tenant, key, user and user of the key, in this order', () => {
    const limits = { requestsPerMinute: 1, tokensPerDay: 2, creditsPerDay: 3, userTokensPerMonth: 0 };
    const none = { requests: null, tokens: null, credits: null };
    expect(countersOf(principal, { tenant: limits, key: limits })).toEqual([
      { scope: 'tenant', scopeId: '7', period: 'minute', ...none, requests: 1 },
      { scope: 'tenant', scopeId: '7', period: 'day', ...none, tokens: 2, credits: 3 },
      { scope: 'key', scopeId: '8', period: 'minute', ...none, requests: 1 },
      { scope: 'key', scopeId: '8', period: 'day', ...none, tokens: 2, credits: 3 },
      { scope: 'user', scopeId: 'ann', period: 'month', ...none, tokens: 0 },
      { scope: 'key-user', scopeId: '8/ann', period: 'month', ...none, tokens: 0 },
    ]);
  });

  it('knows sixteen names', () => {
    expect(QUOTA_NAMES.size).toBe(16);
    expect(QUOTA_NAMES).toContain('userRequestsPerMinute');
  });
});

describe('endOf', () => {
  it.each([
    ['minute', '2026-01-31T23:59:59.999Z', '2026-02-01T00:00:00.000Z'],
    ['minute', '2026-01-31T23:59:00.000Z', '2026-02-01T00:00:00.000Z'],
    ['day', '2026-02-28T00:00:00.000Z', '2026-03-01T00:00:00.000Z'],
    ['month', '2026-12-31T23:00:00.000Z', '2027-01-01T00:00:00.000Z'],
  ] as const)('of the %s of %s is %s', (period, now, end) => {
    expect(endOf(period, new Date(now)).toISOString()).toBe(end);
  });
});

describe('estimateOf', () => {
  const service = { contextWindow: 32_768, inputPrice: 1_000_000, outputPrice: 2_000_000 };

  it('counts the answer that was asked for, else 4,096 or a quarter of the window', () => {
    expect(estimateOf(10, { max_tokens: 5 }, service)).toEqual({ tokens: 15, credits: 20 });
    expect(estimateOf(10, { max_completion_tokens: 7, max_tokens: 5 }, service).tokens).toBe(17);
    expect(estimateOf(10, {}, service).tokens).toBe(4_106);
    expect(estimateOf(10, { max_tokens: 'x' }, { ...service, contextWindow: 400 }).tokens).toBe(110);
  });
});

describe('overQuota', () => {
  const failure = (...over: object[]) =>
    Object.assign(new Error('out of quota'), {
      code: 'PLQ01',
      detail: JSON.stringify({ over, now: '2026-01-31T23:59:30.000Z' }),
    });
  const minute = { scope: 'key', period: 'minute', metric: 'requests', max: 5, used: 5, wanted: 1 };

  it('is RATE_LIMITED to the end of the minute', () => {
    expect(overQuota(failure(minute))).toMatchObject({
      code: 'RATE_LIMITED',
      retryAfterSeconds: 30,
      message: 'this key may use 5 requests a minute; 0 left. Resets at 2026-02-01T00:00:00.000Z.',
      headers: { 'x-ratelimit-limit': '5', 'x-ratelimit-remaining': '0', 'x-ratelimit-reset': '30' },
    });
  });

  it('is QUOTA_EXCEEDED for the longest that is used up', () => {
    const day = { scope: 'tenant', period: 'day', metric: 'tokens', max: 100, used: 40, wanted: 80 };
    expect(overQuota(failure(minute, day))).toMatchObject({
      code: 'QUOTA_EXCEEDED',
      message:
        'this tenant may use 100 tokens a day; 60 left, this request may need 80. Resets at 2026-02-01T00:00:00.000Z.',
    });
  });

  it('is nothing for a failure of another kind', () => {
    expect(overQuota(new Error('x'))).toBeNull();
    expect(overQuota(Object.assign(new Error('x'), { code: '23505' }))).toBeNull();
  });
});
