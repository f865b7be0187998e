import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { Periodic } from '../common';
import { Config } from '../config';
import { Database, platformScope, type Statement } from '../database';

const EVERY_MS = 3_600_000;
const DAY_MS = 86_400_000;

/** Keeps this month's and next month's partition of the log there, and drops those that are older than is to be kept, whole. */
@Injectable()
export class MessagePartitions implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(MessagePartitions.name);
  private readonly tending = new Periodic(
    EVERY_MS,
    () => this.tend(),
    ({ message }) => this.logger.warn(`partitions not tended, will be tried again: ${message}`),
  );

  constructor(
    private readonly database: Database,
    private readonly config: Config,
  ) {}

  async onApplicationBootstrap(): Promise<void> {
    await this.tending.run();
  }

  async beforeApplicationShutdown(): Promise<void> {
    await this.tending.stop();
  }

  async tend(now = Date.now()): Promise<void> {
    await this.database.one(platformScope(), {
      name: 'log-partitions',
      text: 'select ensure_message_partition(at) from unnest($1::timestamptz[]) as at',
      values: [[0, 32].map((days) => new Date(now + days * DAY_MS))],
      map: () => undefined,
    });
    const days = this.config.env.MESSAGE_RETENTION_DAYS;
    if (days === 0) return;
    const dropped = await this.drop(new Date(now - days * DAY_MS));
    if (dropped.length > 0) this.logger.log(`dropped ${dropped.join(', ')}: older than ${days} days`);
  }

  /** Months that were over before that, with what they hold; their names. */
  drop(before: Date): Promise<string[]> {
    return this.database.one(platformScope(), dropping('drop_message_partitions', before));
  }

  /** Of those the ones that hold nothing any more. */
  dropEmpty(before: Date): Promise<string[]> {
    return this.database.one(platformScope(), dropping('drop_empty_message_partitions', before));
  }
}

const dropping = (
  name: 'drop_message_partitions' | 'drop_empty_message_partitions',
  before: Date,
): Statement<string[]> => ({
  name,
  text: `select ${name}($1) as dropped`,
  values: [before],
  map: ([row]) => row!.dropped as string[],
});
