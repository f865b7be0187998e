import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { Periodic, within } from '../common';
import { Config } from '../config';
import { nextAttemptIn } from './back-off';
import { DeliveriesRepository, type Delivery } from './deliveries.repository';
import { SecretOpener } from './secret-opener';
import { Shares } from './shares';
import { WebhookSender } from './webhook-sender';

const POLL_MS = 500;
const END_WAITING_MS = 2_000;
/** In one go, of those who are switched off or paused for too long. */
const MAX_ENDED = 10_000;
const MAX_ERROR_CHARS = 300;
const DRAIN_MS = 3_000;

/**
 * Delivers the outbox: at least once, with back-off, and after the last attempt to the dead letters. A receiver that
 * hangs or is dead costs its own share of the attempts, its tenant's at most, and nobody else's time.
 */
@Injectable()
export class WebhookDispatcher implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(WebhookDispatcher.name);
  private readonly running = new Set<Promise<void>>();
  private readonly shares: Shares;
  private readonly periodic: Periodic[] = [];

  constructor(
    private readonly deliveries: DeliveriesRepository,
    private readonly sender: WebhookSender,
    private readonly secrets: SecretOpener,
    config: Config,
  ) {
    this.shares = new Shares(config.env);
  }

  onApplicationBootstrap(): void {
    const failed = ({ message }: Error): void => this.logger.debug(`the outbox was not read: ${message}`);
    this.periodic.push(
      new Periodic(POLL_MS, () => this.work(), failed),
      new Periodic(END_WAITING_MS, () => this.endWaiting(), failed),
    );
  }

  async beforeApplicationShutdown(): Promise<void> {
    await Promise.all(this.periodic.map((one) => one.stop()));
    await within(DRAIN_MS, Promise.all(this.running));
  }

  private async work(): Promise<void> {
    for (let room = this.shares.room(); room; room = this.shares.room()) {
      const due = await this.deliveries.claim(room);
      for (const delivery of due) this.begin(delivery);
      if (due.length < room.limit) return;
    }
  }

  private async endWaiting(): Promise<void> {
    let all = 0;
    for (let ended = 1; ended > 0 && all < MAX_ENDED; all += ended)
      ended = await this.deliveries.endWaiting();
  }

  private begin(delivery: Delivery): void {
    this.shares.begin(delivery);
    const run = this.attempt(delivery).finally(() => {
      this.running.delete(run);
      this.shares.end(delivery);
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
      if (failure === null) await this.deliveries.delivered(delivery);
      else await this.deliveries.failed(delivery, failure, nextAttemptIn(delivery.attempt));
    } catch (error) {
      // The database is away: the claim runs out, and the attempt is made again.
      this.logger.debug(`an attempt's outcome was not stored: ${(error as Error).message}`);
    }
  }
}

function describe(error: Error): string {
  const code = (error as NodeJS.ErrnoException).code;
  return `${code ? `${code}: ` : ''}${error.message}`.slice(0, MAX_ERROR_CHARS);
}
