import { AppError, type TenantId } from '../common';

/** This tenant has as much of something as one tenant may; it passes when some of that ends. */
export class ShareTaken extends AppError {
  constructor(what: string, count: number) {
    super('RATE_LIMITED', {
      message: `This tenant has ${count} ${what} under way, as many as one tenant may; come back when some have ended.`,
      retryAfterSeconds: 1,
    });
  }
}

/** What a process does at once only so often: one tenant never has all of it, so that the others find some. */
export class TenantSlots {
  private readonly taken = new Map<TenantId, number>();
  private readonly perTenant: number;
  private all = 0;

  /** `what` completes "has 16 … under way". `perTenant` 0: half of all, rounded up. */
  constructor(
    private readonly what: string,
    private readonly max: number,
    perTenant = 0,
  ) {
    this.perTenant = perTenant || Math.ceil(max / 2);
  }

  /** Returns what gives it back, which counts once. OVERLOADED when there is none; {@link ShareTaken}, a RATE_LIMITED. */
  take(tenantId: TenantId): () => void {
    if (this.all >= this.max) throw new AppError('OVERLOADED', { retryAfterSeconds: 1 });
    const taken = this.taken.get(tenantId) ?? 0;
    if (taken >= this.perTenant) throw new ShareTaken(this.what, taken);
    this.taken.set(tenantId, taken + 1);
    this.all += 1;
    let held = true;
    return () => {
      if (held) this.giveBack(tenantId);
      held = false;
    };
  }

  private giveBack(tenantId: TenantId): void {
    const left = this.taken.get(tenantId)! - 1;
    if (left > 0) this.taken.set(tenantId, left);
    else this.taken.delete(tenantId);
    this.all -= 1;
  }
}

/** The replies, completions and generations that a process writes, of all kinds together. */
export class ReplySlots extends TenantSlots {}
