/** 5 s, 10 s, 20 s … at most an hour apart: twelve attempts reach over some two hours. */
export const BASE_DELAY_MS = 5_000;
export const MAX_DELAY_MS = 3_600_000;
export const MAX_ATTEMPTS = 12;

/** Null after the last one. Jittered: what failed together must not come back together. */
export function nextAttemptIn(attempt: number, random = Math.random): number | null {
  if (attempt >= MAX_ATTEMPTS) return null;
  return Math.min(BASE_DELAY_MS * 2 ** (attempt - 1), MAX_DELAY_MS) * (0.75 + random() / 4);
}
