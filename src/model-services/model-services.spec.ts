import { estimatePromptTokens, estimateTokens } from './drivers/token-estimate';
import { parseRetryAfter, retryDelay } from './drivers/retry-policy';
import { ProviderError, type ProviderFailure } from './drivers/text-driver';

describe('the token estimate', () => {
  it('counts four ASCII characters or one of another script a token', () => {
    expect(estimateTokens('')).toBe(0);
    expect(estimateTokens('a')).toBe(1);
    expect(estimateTokens('abcdefgh')).toBe(2);
    expect(estimateTokens('中国必胜')).toBe(4);
    expect(estimatePromptTokens([{ role: 'user', content: 'abcd' }])).toBe(5);
  });
});

describe('the retry policy', () => {
  const error = (failure: ProviderFailure, details: { status?: number; retryAfterMs?: number } = {}) =>
    new ProviderError(failure, 'x', { attempts: 1, ...details });
  const middle = () => 0.5;

  it('asks again for what may pass, three times at most, ever later', () => {
    expect(retryDelay(error('unreachable'), 1, 60_000, middle)).toBe(150);
    expect(retryDelay(error('failed', { status: 503 }), 2, 60_000, middle)).toBe(300);
    expect(retryDelay(error('rate-limited', { status: 429 }), 3, 60_000, middle)).toBeNull();
  });

  it('never for what will not', () => {
    for (const failure of ['refused', 'malformed', 'timeout'] as const)
      expect(retryDelay(error(failure, { status: 400 }), 1, 60_000)).toBeNull();
    expect(retryDelay(error('failed'), 1, 60_000)).toBeNull();
  });

  it('waits as long as it is told, unless that is too long', () => {
    expect(retryDelay(error('rate-limited', { retryAfterMs: 2_000 }), 1, 60_000)).toBe(2_000);
    expect(retryDelay(error('rate-limited', { retryAfterMs: 11_000 }), 1, 60_000)).toBeNull();
    expect(retryDelay(error('rate-limited', { retryAfterMs: 2_000 }), 1, 1_000)).toBeNull();
  });

  it('reads retry-after as seconds and as a date', () => {
    expect(parseRetryAfter('3')).toBe(3_000);
    expect(parseRetryAfter('Thu, 01 Jan 2026 00:00:10 GMT', Date.UTC(2026, 0, 1))).toBe(10_000);
    expect(parseRetryAfter('Thu, 01 Jan 2026 00:00:00 GMT', Date.UTC(2026, 0, 2))).toBe(0);
    expect([parseRetryAfter(undefined), parseRetryAfter('soon')]).toEqual([undefined, undefined]);
  });
});
