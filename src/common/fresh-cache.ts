import { LRUCache } from 'lru-cache';
import { isStorageAway } from './until-stored';

interface Entry<V> {
  readonly value: V;
  readonly loadedAt: number;
  /** While the storage is away, don't ask it again before this. */
  retryAt: number;
}

/** What is true elsewhere becomes true here within a second, without anyone having to tell. */
const FRESH_MS = 750;
/** How old an answer may be while the storage can't be asked. */
const STALE_MS = 600_000;
const RETRY_MS = 500;

/**
 * Answers of the database, bounded in number, at most 750 ms old: so a revoked key stops working on every node
 * within a second, with no message between them. While the database is away the last answer stands, up to 10 minutes.
 */
export class FreshCache<V extends object | null> {
  private readonly entries: LRUCache<string, Entry<V>>;
  private readonly loading = new Map<string, Promise<V>>();

  constructor(
    max: number,
    private readonly now: () => number = Date.now,
  ) {
    this.entries = new LRUCache({ max });
  }

  /** `maxAgeMs` shorter than usual: for a caller whom the cached answer would turn away. */
  get(key: string, load: () => Promise<V>, maxAgeMs = FRESH_MS): V | Promise<V> {
    const entry = this.entries.get(key);
    const now = this.now();
    if (entry && (now - entry.loadedAt < maxAgeMs || now < entry.retryAt)) return entry.value;
    const running = this.loading.get(key);
    if (running) return running;
    const promise = load()
      .then((value) => {
        this.entries.set(key, { value, loadedAt: now, retryAt: 0 });
        return value;
      })
      .catch((error: unknown) => {
        if (!isStorageAway(error) || !entry || now - entry.loadedAt > STALE_MS) throw error;
        entry.retryAt = this.now() + RETRY_MS;
        return entry.value;
      })
      .finally(() => this.loading.delete(key));
    this.loading.set(key, promise);
    return promise;
  }

  /** After a write of our own: the next read asks the database. */
  delete(key: string): void {
    this.entries.delete(key);
  }
}
