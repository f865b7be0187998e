import type { ProviderError } from './text-driver';

export const MAX_ATTEMPTS = 3;
const BASE_DELAY_MS = 200;
/** Asked to wait longer than this, we say so to our caller instead: it can wait better than a held-open request. */
const MAX_RETRY_AFTER_MS = 10_000;

/**
 * How long to wait before asking again, in milliseconds; null: don't. Only for failures before the stream's first
 * byte, which is the caller's to know. `attempt` counts from 1, `remainingMs` is what is left of the first-piece time-out.
 */
export function retryDelay(
  error: ProviderError,
  attempt: number,
  remainingMs: number,
  random = Math.random,
): number | null {
  const { failure, details } = error;
  const again =
    failure === 'unreachable' ||
    failure === 'rate-limited' ||
    (failure === 'failed' && (details.status ?? 0) >= 500);
  if (!again || attempt >= MAX_ATTEMPTS) return null;
  const backoff = BASE_DELAY_MS * 2 ** (attempt - 1) * (0.5 + random() / 2);
  const wait = Math.max(backoff, details.retryAfterMs ?? 0);
  return wait > MAX_RETRY_AFTER_MS || wait >= remainingMs ? null : wait;
}

/** `retry-after` in milliseconds: seconds or an HTTP date (RFC 9110 §10.2.3); undefined when absent or neither. */
export function parseRetryAfter(value: string | undefined, now = Date.now()): number | undefined {
  if (value === undefined) return undefined;
  if (/^\d{1,9}$/.test(value.trim())) return Number(value) * 1_000;
  const date = Date.parse(value);
  return Number.isNaN(date) ? undefined : Math.max(0, date - now);
}
