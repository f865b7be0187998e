import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { Periodic, within, type WebhookId } from '../common';
import { SecretOpener } from './secret-opener';
import { WebhookSender } from './webhook-sender';
import { WebhooksRepository, type Delivery } from './webhooks.repository';

const POLL_MS = 500;
const CLAIM = 100;
const MAX_RUNNING = 500;
/** Attempts at one webhook at a time. */
const MAX_EACH = 10;
/** 5 s, 10 s, 20 s … at most an hour apart: twelve attempts reach over some two hours. */
const BASE_DELAY_MS = 5_000;
const MAX_DELAY_MS = 3_600_000;
const MAX_ATTEMPTS = 12;
const MAX_ERROR_CHARS = 300;
const DRAIN_MS = 3_000;

/** Delivers the outbox: at least once, with back-off, and after the last attempt to the dead letters. */
@Injectable()
export class WebhookDispatcher implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(WebhookDispatcher.name);
  private readonly running = new Set<Promise<void>>();
  private readonly perWebhook = new Map<WebhookId, number>();
  private claiming: Periodic | undefined;

  constructor(
    private readonly webhooks: WebhooksRepository,
    private readonly sender: WebhookSender,
    private readonly secrets: SecretOpener,
  ) {}

  onApplicationBootstrap(): void {
    this.claiming = new Periodic(
      POLL_MS,
      () => this.work(),
      ({ message }) => this.logger.debug(`the outbox was not read: ${message}`),
    );
  }

  async beforeApplicationShutdown(): Promise<void> {
    await this.claiming?.stop();
    await within(DRAIN_MS, Promise.all(this.running));
  }

  private async work(): Promise<void> {
    for (let claimed = CLAIM; claimed === CLAIM && this.running.size < MAX_RUNNING;) {
      const busy = [...this.perWebhook].filter(([, running]) => running >= MAX_EACH).map(([id]) => id);
      const due = await this.webhooks.claim(CLAIM, MAX_EACH, busy);
      claimed = due.length;
      for (const delivery of due) this.begin(delivery);
    }
  }

  private begin(delivery: Delivery): void {
    const { webhookId } = delivery;
    this.perWebhook.set(webhookId, (this.perWebhook.get(webhookId) ?? 0) + 1);
    const run = this.attempt(delivery).finally(() => {
      this.running.delete(run);
      const left = this.perWebhook.get(webhookId)! - 1;
      if (left > 0) this.perWebhook.set(webhookId, left);
      else this.perWebhook.delete(webhookId);
    });
    this.running.add(run);
  }

  private async attempt(delivery: Delivery): Promise<void> {
    try {
      let failure: string | null = null;
      try {
        await this.sender.send(delivery, this.secrets.open(delivery.secret, delivery.webhookId));
      } catch (error) {
        failure = describe(error as Error);
      }
      if (failure === null) await this.webhooks.delivered(delivery);
      else await this.webhooks.failed(delivery, failure, nextAttemptIn(delivery.attempt));
    } catch (error) {
      // The database is away: the claim runs out, and the attempt is made again.
      this.logger.debug(`an attempt's outcome was not stored: ${(error as Error).message}`);
    }
  }
}

/** Null after the last one. Jittered: what failed together must not come back together. */
export function nextAttemptIn(attempt: number, random = Math.random): number | null {
  if (attempt >= MAX_ATTEMPTS) return null;
  return Math.min(BASE_DELAY_MS * 2 ** (attempt - 1), MAX_DELAY_MS) * (0.75 + random() / 4);
}

function describe(error: Error): string {
  const code = (error as NodeJS.ErrnoException).code;
  return `${code ? `${code}: ` : ''}${error.message}`.slice(0, MAX_ERROR_CHARS);
}
