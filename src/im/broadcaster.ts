import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { AppError, Periodic, parseExact, timeOfId } from '../common';
import {
  BROADCAST_PAGE,
  BroadcastsRepository,
  DevicesRepository,
  type BroadcastFailure,
  type BroadcastJob,
} from '../messages';
import { TenantsRepository } from '../tenancy';
import { CODE, FrameError, frameErrorOf } from './errors';
import { dedupeKey, idText, type MessageFrame } from './frames';
import { Messenger, type OnSent, type Route, type Sender } from './messenger';

/** For what other processes accepted, or left behind; a process hears of its own at once. */
const POLL_MS = 1_000;
const MAX_JOBS = 16;
/** So many recipients are written to in one go: others' messages get between any two. */
const SLICE = 25;
/** Of a process's time all broadcasts together take no more than this part; the rest is everybody else's. */
const SHARE = 0.2;
const MIN_PAUSE_MS = 10;
const MAX_PAUSE_MS = 2_000;
const FAILURE_RETRY_MS = 2_000;
const PRUNE_MS = 600_000;
const KEEP_ENDED_MS = 7 * 86_400_000;
const PRUNE_BATCH = 500;
const TRANSIENT: ReadonlySet<string> = new Set(['STORAGE_UNAVAILABLE', 'OVERLOADED', 'SHUTTING_DOWN']);
const CONFLICT = 'msgId and timestamp were used for another message of this conversation.';

/** A page that is being worked on. */
interface OpenPage {
  /** JSON texts of ids, and the same as text. */
  readonly targets: readonly string[];
  readonly users: readonly string[];
  /** Where the message goes, in the order of the targets. */
  readonly routes: readonly (Route | FrameError)[];
  readonly afterUser: string;
  readonly last: boolean;
  done: number;
  stored: number;
  repeated: number;
  readonly failures: BroadcastFailure[];
}

/** A broadcast that this process works on. */
interface Work {
  job: BroadcastJob;
  readonly template: MessageFrame;
  page: OpenPage | undefined;
  /** By `performance.now()`, after a failure. */
  notBefore: number;
}

type Sent = Parameters<OnSent>[0];
/** Of one recipient: how it went, or why it did not. */
type Outcome = 'stored' | 'repeated' | { readonly code: number; readonly reason: string };

/**
 * Sends broadcasts, those of all tenants in turns, some recipients at a time and with pauses, so that nobody else's
 * messages wait for one. Who can't be reached is noted and passed over. The log knows what it has stored: a page that a
 * dying process left half done reaches nobody twice.
 */
@Injectable()
export class Broadcaster implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(Broadcaster.name);
  private readonly works: Periodic[] = [];
  private jobs: Work[] = [];
  private lookAt = 0;
  private stopping = false;

  constructor(
    private readonly broadcasts: BroadcastsRepository,
    private readonly devices: DevicesRepository,
    private readonly messenger: Messenger,
    private readonly tenants: TenantsRepository,
  ) {}

  onApplicationBootstrap(): void {
    this.every(POLL_MS, 'broadcasting', () => this.work());
    this.every(PRUNE_MS, 'forgetting broadcasts', () => this.prune());
  }

  async beforeApplicationShutdown(): Promise<void> {
    this.stopping = true;
    await Promise.all(this.works.map((work) => work.stop()));
    // Where it can't be given back, the lease ends by itself.
    const release = ({ job }: Work) => this.broadcasts.release(job, 0).catch(() => undefined);
    await Promise.all(this.jobs.map(release));
  }

  /** Something was accepted: it is looked for now. */
  hint(): void {
    this.lookAt = 0;
    void this.works[0]?.run();
  }

  private async work(): Promise<void> {
    await this.claim();
    while (this.jobs.length > 0 && !this.stopping) {
      for (const work of [...this.jobs]) {
        if (this.stopping) return;
        const began = performance.now();
        if (began >= work.notBefore) await this.turn(work);
        await pause((performance.now() - began) * (1 / SHARE - 1));
      }
      if (performance.now() >= this.lookAt) await this.claim();
    }
  }

  private async claim(): Promise<void> {
    this.lookAt = performance.now() + POLL_MS;
    if (this.stopping || this.jobs.length >= MAX_JOBS) return;
    for (const job of await this.broadcasts.claim(MAX_JOBS - this.jobs.length)) {
      // Taken up again: it was held for dead, with its process.
      this.jobs = this.jobs.filter((work) => work.job.id !== job.id);
      const template = parseExact(job.frame) as unknown as MessageFrame;
      this.jobs.push({ job, template, page: undefined, notBefore: 0 });
    }
  }

  /** Some recipients of one broadcast. Never rejects: a page that fails is begun anew, somewhat later. */
  private async turn(work: Work): Promise<void> {
    try {
      if (!work.page && !(await this.tenants.settings(work.job.tenantId))?.active) {
        await this.broadcasts.release(work.job, FAILURE_RETRY_MS);
        this.drop(work);
        return;
      }
      // A turn of its own: the slices of its messages come in the next ones.
      if (!work.page) {
        work.page = await this.openPage(work.job);
        if (work.page.targets.length > 0) return;
      }
      const { page } = work;
      await this.sendSlice(work, page);
      if (page.done < page.targets.length) return;
      const noted = await this.broadcasts.advance(work.job, page);
      if (!noted || page.last) this.drop(work);
      // The next one of this tenant need not wait.
      if (page.last) this.lookAt = 0;
      const { pagesDone } = work.job;
      work.job = { ...work.job, pagesDone: pagesDone + 1, afterUser: page.afterUser };
      work.page = undefined;
    } catch (error) {
      if (!isTransient(error))
        this.logger.error({ err: error }, `broadcast ${work.job.id} is tried again later`);
      work.page = undefined;
      work.notBefore = performance.now() + FAILURE_RETRY_MS;
    }
  }

  private drop(work: Work): void {
    this.jobs = this.jobs.filter((other) => other !== work);
  }

  private async openPage(job: BroadcastJob): Promise<OpenPage> {
    const { targets, last } = await this.nextTargets(job);
    const users = targets.map(userOf);
    return {
      targets,
      users,
      routes: await this.routes(senderOf(job), users),
      afterUser: job.everybody ? (users.at(-1) ?? job.afterUser) : '',
      last,
      done: 0,
      stored: 0,
      repeated: 0,
      failures: [],
    };
  }

  private async nextTargets(job: BroadcastJob): Promise<{ targets: readonly string[]; last: boolean }> {
    if (!job.everybody) return this.broadcasts.page(job);
    const users = await this.devices.users(job.tenantId, job.afterUser, BROADCAST_PAGE);
    return { targets: users.map((user) => JSON.stringify(user)), last: users.length < BROADCAST_PAGE };
  }

  private async sendSlice({ job, template }: Work, page: OpenPage): Promise<void> {
    const { targets, users, routes, done } = page;
    const slice = targets.slice(done, done + SLICE);
    const outcomes = await Promise.all(
      slice.map((target, index) => this.sendOne(job, template, target, routes[done + index]!)),
    );
    outcomes.forEach((outcome, index) => {
      if (typeof outcome === 'object') page.failures.push({ userId: users[done + index]!, ...outcome });
      else page[outcome] += 1;
    });
    page.done += slice.length;
  }

  /** One recipient that something is wrong with must not take the others along. */
  private async routes(sender: Sender, users: readonly string[]): Promise<(Route | FrameError)[]> {
    try {
      return await this.messenger.routes(sender, users);
    } catch (error) {
      if (isTransient(error)) throw error;
      if (users.length === 1) {
        this.logger.error({ err: error }, 'a recipient of a broadcast');
        return [frameErrorOf(new AppError('INTERNAL'))];
      }
      const found: (Route | FrameError)[] = [];
      for (const user of users) found.push(...(await this.routes(sender, [user])));
      return found;
    }
  }

  /** Rejects with what passes: the whole slice is sent again then, and who has it already is not told twice. */
  private sendOne(
    job: BroadcastJob,
    template: MessageFrame,
    target: string,
    route: Route | FrameError,
  ): Promise<Outcome> {
    if (route instanceof FrameError) return Promise.resolve(failureOf(route));
    const message = {
      frame: { ...template, target: targetOf(target) },
      text: job.frame.replace('"target":null', () => `"target":${target}`),
      ...(dedupeKey(job.sender, template.msg) === null && {
        once: { dedupe: `${job.sender}\nbroadcast:${job.id}\n`, clientTime: timeOfId(job.id) },
      }),
    };
    return new Promise((resolve, reject) => {
      this.messenger.send(senderOf(job), route, message, (sent, error) => {
        if (error && isTransient(error)) reject(error);
        else if (error) resolve(failureOf(error instanceof FrameError ? error : frameErrorOf(error)));
        else resolve(outcomeOf(job, sent));
      });
    });
  }

  private async prune(): Promise<void> {
    for (let more = true; more && !this.stopping;) {
      const before = new Date(Date.now() - KEEP_ENDED_MS);
      more = (await this.broadcasts.prune(before, PRUNE_BATCH)) === PRUNE_BATCH;
    }
  }

  private every(ms: number, name: string, work: () => Promise<void>): void {
    const failed = ({ message }: Error): void =>
      this.logger.warn(`${name} failed, will be tried again: ${message}`);
    this.works.push(new Periodic(ms, work, failed));
  }
}

const isTransient = (error: unknown): boolean => error instanceof AppError && TRANSIENT.has(error.code);

/** A copy that is newer than the broadcast is its own, from before the process that sent it died. */
function outcomeOf(job: BroadcastJob, sent: Sent): Outcome {
  const result = sent!.result;
  if (result.outcome === 'conflict') return { code: CODE.conflict, reason: CONFLICT };
  if (result.outcome === 'refused')
    return { code: CODE.forbidden, reason: 'You may not write to this user.' };
  return result.outcome === 'repeated' && timeOfId(result.id) < timeOfId(job.id) ? 'repeated' : 'stored';
}

const senderOf = ({ tenantId, sender }: BroadcastJob): Sender => ({
  tenantId,
  userId: sender,
  client: '',
  origin: '',
  server: true,
});

const failureOf = ({ frameCode, message }: FrameError): Outcome => ({ code: frameCode, reason: message });

/** An id that stands as JSON text: a string, or a number with all its digits. */
const targetOf = (target: string): string | number =>
  (parseExact(`{"id":${target}}`) as { id: string | number }).id;
const userOf = (target: string): string => idText(targetOf(target));

function pause(ms: number): Promise<void> {
  return new Promise((resolve) =>
    setTimeout(resolve, Math.min(MAX_PAUSE_MS, Math.max(MIN_PAUSE_MS, ms))).unref(),
  );
}
