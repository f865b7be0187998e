import { Injectable, Logger, type OnApplicationBootstrap, type OnModuleDestroy } from '@nestjs/common';
import { PgBoss, type Job } from 'pg-boss';
import type { EntityManager } from 'typeorm';
import { GenerationRecordsRepository, type OrphanedGeneration } from '../assistants';
import { AppError, Periodic, Shutdown, within } from '../common';
import { Config } from '../config';
import { Database } from '../database';
import { GenerationKeeper } from './generation-keeper';
import { ImageGenerations } from './image-generations';

/** Ids alone: what is to be drawn is in the record, behind its tenant's wall. */
export type ImageJob = OrphanedGeneration;

const QUEUE = 'generate-image';
/** Jobs whose every attempt died: their records are ended. */
const DEAD_QUEUE = 'generate-image-dead';
const QUEUE_OPTIONS = {
  retryLimit: 3,
  /** A job nobody has touched for so long is somebody else's. pg-boss allows no less. */
  heartbeatSeconds: 10,
  /** Longer than any provider may take: three attempts of an hour. */
  expireInSeconds: 14_400,
  deleteAfterSeconds: 3_600,
} as const;

/** Each holds its images in memory. */
const MAX_AT_ONCE = 16;
/** On all processes together: one tenant's thousand images do not keep the others from theirs. */
const MAX_AT_ONCE_OF_TENANT = 8;
const MAX_WAITING_OF_TENANT = 1_000;
/** For the jobs of others; a process hears of its own at once. */
const POLL_MS = 2_000;
const TOUCH_MS = 3_000;
const DEAD_POLL_MS = 5_000;
const DRAIN_LAST_WAIT_MS = 5_000;
const NEVER_SECONDS = 86_400;

/**
 * The queue of images to draw, in pg-boss's own schema. A job is stored in the transaction of its record; who works on
 * one touches it every 3 s, and a job that was not touched for 10 s is given to another, within 20 s or so in all.
 */
@Injectable()
export class ImageJobs implements OnApplicationBootstrap, OnModuleDestroy {
  private readonly logger = new Logger(ImageJobs.name);
  private readonly boss: PgBoss;
  private readonly running = new Map<string, Promise<void>>();
  private readonly stopping = new AbortController();
  private readonly works: Periodic[] = [];
  private hinted = false;

  constructor(
    private readonly config: Config,
    database: Database,
    private readonly images: ImageGenerations,
    private readonly keeper: GenerationKeeper,
    private readonly records: GenerationRecordsRepository,
    private readonly shutdown: Shutdown,
  ) {
    this.boss = new PgBoss({
      db: { executeSql: (text, values) => database.foreign(text, values) },
      schema: 'pgboss',
      // Made and changed by our migrations: this role may not.
      migrate: false,
      createSchema: false,
      reindex: false,
      monitorVacuum: false,
      schedule: false,
      superviseIntervalSeconds: 5,
      monitorIntervalSeconds: 5,
      maintenanceIntervalSeconds: 600,
      flowIntervalSeconds: NEVER_SECONDS,
    });
    this.boss.on('error', ({ message }) => this.logger.warn(`the queue of images: ${message}`));
    this.boss.on('warning', ({ message }) => this.logger.warn(`the queue of images: ${message}`));
  }

  async onApplicationBootstrap(): Promise<void> {
    await this.boss.start();
    await this.boss.createQueue(DEAD_QUEUE, { retryLimit: 1_000, retryDelay: 5, deleteAfterSeconds: 3_600 });
    await this.boss.createQueue(QUEUE, { ...QUEUE_OPTIONS, deadLetter: DEAD_QUEUE });
    this.every(POLL_MS, 'taking images', () => this.take());
    this.every(TOUCH_MS, 'keeping images', () => this.touch());
    this.every(DEAD_POLL_MS, 'ending images', () => this.endDead());
  }

  /** In the transaction that stores the record. SHUTTING_DOWN; OVERLOADED when too many of the tenant's wait already. */
  async enqueue(tx: EntityManager, job: ImageJob): Promise<void> {
    this.shutdown.refuseWork();
    if ((await this.records.countRunningImages(tx, job.tenantId)) > MAX_WAITING_OF_TENANT)
      throw new AppError('OVERLOADED', { retryAfterSeconds: 10 });
    const executeSql = async (text: string, values: unknown[] = []) => {
      const { records } = await tx.queryRunner!.query(text, values, true);
      return { rows: records as unknown[] };
    };
    await this.boss.send(QUEUE, job, { db: { executeSql }, group: { id: job.tenantId } });
  }

  /** Something was enqueued: it is looked for now. */
  hint(): void {
    this.hinted = true;
    void this.works[0]?.run();
  }

  async onModuleDestroy(): Promise<void> {
    const [taking, keeping, ending] = this.works;
    await Promise.all([taking?.stop(), ending?.stop()]);
    await within(this.shutdown.left(this.config.env.DRAIN_TIMEOUT_MS), this.allDone());
    this.stopping.abort(new AppError('SHUTTING_DOWN'));
    await within(DRAIN_LAST_WAIT_MS, this.allDone());
    await keeping?.stop();
    await this.boss.stop({ graceful: false });
  }

  private allDone(): Promise<unknown> {
    return Promise.all(this.running.values());
  }

  private async take(): Promise<void> {
    do {
      this.hinted = false;
      const free = MAX_AT_ONCE - this.running.size;
      if (free <= 0 || this.shutdown.begun) return;
      const limits = { batchSize: free, groupConcurrency: MAX_AT_ONCE_OF_TENANT };
      for (const job of await this.boss.fetch<ImageJob>(QUEUE, limits)) {
        const done = this.work(job).finally(() => {
          this.running.delete(job.id);
          this.hint();
        });
        this.running.set(job.id, done);
      }
    } while (this.hinted);
  }

  /** Never rejects. What ended is complete, however it ended; what could not be ended is given back. */
  private async work(job: Job<ImageJob>): Promise<void> {
    try {
      await this.images.draw(job.data, this.stopping.signal);
      await this.boss.complete(QUEUE, job.id);
    } catch (error) {
      if (!this.stopping.signal.aborted)
        this.logger.error({ err: error, job: job.data }, 'an image was not drawn');
      // When even this fails the job falls to another by itself, once it is not touched any more.
      await this.boss.fail(QUEUE, job.id).catch(() => undefined);
    }
  }

  private async touch(): Promise<void> {
    if (this.running.size > 0) await this.boss.touch(QUEUE, [...this.running.keys()]);
  }

  private async endDead(): Promise<void> {
    for (const job of await this.boss.fetch<ImageJob>(DEAD_QUEUE, { batchSize: MAX_AT_ONCE })) {
      await this.keeper.interrupt(job.data);
      await this.boss.complete(DEAD_QUEUE, job.id);
    }
  }

  private every(ms: number, name: string, work: () => Promise<void>): void {
    const failed = ({ message }: Error): void =>
      this.logger.warn(`${name} failed, will be tried again: ${message}`);
    this.works.push(new Periodic(ms, work, failed));
  }
}
