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
    (failure === 'failed' && (details.status ?? 0) >= 500) ||
    (failure === 'timeout' && neverConnected(details.cause));
  if (!again || attempt >= MAX_ATTEMPTS) return null;
  const backoff = BASE_DELAY_MS * 2 ** (attempt - 1) * (0.5 + random() / 2);
  const wait = Math.max(backoff, details.retryAfterMs ?? 0);
  return wait > MAX_RETRY_AFTER_MS || wait >= remainingMs ? null : wait;
}

/** Of the time-outs only the connect one: the provider has seen nothing of the request. */
function neverConnected(cause: unknown): boolean {
  return cause instanceof Error && 'code' in cause && cause.code === 'UND_ERR_CONNECT_TIMEOUT';
}

/** `retry-after` in milliseconds: seconds or an HTTP date (RFC 9110 §10.2.3); undefined when absent or neither. */
export function parseRetryAfter(value: string | undefined, now = Date.now()): number | undefined {
  if (value === undefined) return undefined;
  if (/^\s*\d{1,9}(\.\d*)?\s*$/.test(value)) return Math.ceil(Number(value) * 1_000);
  // Date.parse takes bare numbers for years and the like; a date begins with its day's name.
  const date = /^\s*[A-Za-z]/.test(value) ? Date.parse(value) : NaN;
  return Number.isNaN(date) ? undefined : Math.max(0, date - now);
}
