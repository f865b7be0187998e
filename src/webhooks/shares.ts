import type { TenantId, WebhookId } from '../common';
import type { Config } from '../config';

/** Attempts that a process makes at this moment, at one webhook. */
export interface Running {
  readonly webhookId: WebhookId;
  readonly tenantId: TenantId;
  readonly origin: string;
  readonly count: number;
}

/** What may begin now: so many attempts in all, and each webhook, origin and tenant up to its share of what runs. */
export interface Room {
  readonly limit: number;
  readonly perWebhook: number;
  /** Of one tenant: another one's receivers at the same origin are not its own. */
  readonly perOrigin: number;
  readonly perTenant: number;
  readonly running: readonly Running[];
}

export type ShareLimits = Pick<
  Config['env'],
  | 'WEBHOOK_ATTEMPTS'
  | 'WEBHOOK_ATTEMPTS_PER_TENANT'
  | 'WEBHOOK_ATTEMPTS_PER_ORIGIN'
  | 'WEBHOOK_ATTEMPTS_PER_WEBHOOK'
>;
type Receiver = Pick<Running, 'webhookId' | 'tenantId' | 'origin'>;

/** So that what is claimed soon begins, and the next look sees what the others have come to. */
const CLAIM = 100;

/**
 * Who has how many attempts under way. A tenant may have as many as are free, at most its share: the more are taken,
 * the less each may hold, so that however many receivers hang, a tenant that has none under way finds room.
 */
export class Shares {
  private readonly byWebhook = new Map<WebhookId, Receiver & { count: number }>();
  private total = 0;

  constructor(private readonly limits: ShareLimits) {}

  /** Null: nothing is free. */
  room(): Room | null {
    const free = this.limits.WEBHOOK_ATTEMPTS - this.total;
    if (free <= 0) return null;
    return {
      // Half of what is free: the other half is for who comes next.
      limit: Math.min(CLAIM, Math.ceil(free / 2)),
      perWebhook: this.limits.WEBHOOK_ATTEMPTS_PER_WEBHOOK,
      perOrigin: this.limits.WEBHOOK_ATTEMPTS_PER_ORIGIN,
      perTenant: Math.min(this.limits.WEBHOOK_ATTEMPTS_PER_TENANT, free),
      running: [...this.byWebhook.values()],
    };
  }

  begin({ webhookId, tenantId, origin }: Receiver): void {
    this.total += 1;
    const known = this.byWebhook.get(webhookId);
    if (known) known.count += 1;
    else this.byWebhook.set(webhookId, { webhookId, tenantId, origin, count: 1 });
  }

  end({ webhookId }: Receiver): void {
    this.total -= 1;
    const known = this.byWebhook.get(webhookId)!;
    known.count -= 1;
    if (known.count === 0) this.byWebhook.delete(webhookId);
  }
}
