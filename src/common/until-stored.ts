import { setTimeout as delay } from 'node:timers/promises';
import { AppError } from './errors';

const FIRST_DELAY_MS = 100;
const MAX_DELAY_MS = 2_000;
/** How long an ending waits in memory for a database that is away, before it is given up to the log. */
export const ENDING_PATIENCE_MS = 15 * 60_000;

export interface Patience {
  /** After so long it is given up: what the last attempt threw is thrown. */
  readonly ms: number;
  /** Told once, when the first attempt found the storage away. */
  readonly waits: () => void;
}

/** Does it again while the storage is away; throws anything else at once. */
export async function untilStored<T>(work: () => Promise<T>, { ms, waits }: Patience): Promise<T> {
  const since = Date.now();
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await work();
    } catch (error) {
      if (!isStorageAway(error) || Date.now() - since > ms) throw error;
      if (attempt === 0) waits();
      await delay(Math.min(FIRST_DELAY_MS * 2 ** attempt, MAX_DELAY_MS) * (0.5 + Math.random() / 2));
    }
  }
}

export function isStorageAway(error: unknown): boolean {
  return error instanceof AppError && error.code === 'STORAGE_UNAVAILABLE';
}
