/** A rate with a burst: refilled steadily, never above the burst. The caller says both each time: they may change. */
export class TokenBucket {
  private tokens: number;
  private filledAt: number;

  constructor(burst: number, now: number) {
    this.tokens = burst;
    this.filledAt = now;
  }

  /** False when there are not so many left. */
  take(now: number, burst: number, perSecond: number, cost = 1): boolean {
    this.tokens = Math.min(burst, this.tokens + ((now - this.filledAt) * perSecond) / 1_000);
    this.filledAt = now;
    if (this.tokens < cost) return false;
    this.tokens -= cost;
    return true;
  }

  /** False when there is none left. The amount may be more than what is left: the next one waits for the rest. */
  takeOnCredit(now: number, burst: number, perSecond: number, amount: number): boolean {
    if (!this.take(now, burst, perSecond)) return false;
    this.tokens -= amount - 1;
    return true;
  }

  /** What was taken and not used after all; above the burst nothing stays. */
  giveBack(amount: number): void {
    this.tokens += amount;
  }

  /** What was left after the last one. */
  get left(): number {
    return this.tokens;
  }

  /** Until there is one again; Infinity when nothing is refilled. */
  waitMs(perSecond: number): number {
    return this.tokens >= 1 ? 0 : ((1 - this.tokens) * 1_000) / perSecond;
  }
}
