import { Injectable } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { Config } from '../config';

/** What looking up a row costs, in bytes: what is read for nothing is not free. */
export const ROW_COST = 1_024;
const MAX_REMEMBERED = 100_000;

/**
 * What somebody may have sent again, in bytes: a rate with a burst. What a request costs is known when it was served,
 * so it is paid then; who has drawn more than there was waits until that is made up.
 */
export class Allowance {
  private balance: number;
  private at: number;

  constructor(
    private readonly burst: number,
    private readonly perSecond: number,
    now: number,
  ) {
    this.balance = burst;
    this.at = now;
  }

  spend(bytes: number, now = Date.now()): void {
    this.refill(now);
    this.balance -= bytes;
  }

  /** Seconds until it may be drawn on again; 0: now. */
  waitSeconds(now = Date.now()): number {
    this.refill(now);
    return this.balance > 0 ? 0 : Math.max(1, Math.ceil(-this.balance / this.perSecond));
  }

  private refill(now: number): void {
    this.balance = Math.min(this.burst, this.balance + (Math.max(0, now - this.at) * this.perSecond) / 1_000);
    this.at = now;
  }
}

/** The allowances of users on this process, whatever sockets they have open. */
@Injectable()
export class ReplayAllowances {
  private readonly byOwner = new LRUCache<string, Allowance>({ max: MAX_REMEMBERED });

  constructor(private readonly config: Config) {}

  /** One that is shared by everybody who names the same owner; null: one of its own. */
  of(owner: string | null): Allowance {
    const known = owner === null ? undefined : this.byOwner.get(owner);
    if (known) return known;
    const { IM_REPLAY_BURST_BYTES: burst, IM_REPLAY_BYTES_PER_SECOND: perSecond } = this.config.env;
    const made = new Allowance(burst, perSecond, Date.now());
    if (owner !== null) this.byOwner.set(owner, made);
    return made;
  }
}
