import { setTimeout as delay } from 'node:timers/promises';
import { Injectable, Logger, type OnModuleDestroy } from '@nestjs/common';
import { AppError, badInput, IdGenerator, within, type MessageId, type Principal } from '../common';
import { Config } from '../config';
import { Database, tenantScope } from '../database';
import {
  appErrorOf,
  estimateTokens,
  inputsOf,
  MediaDriver,
  ProviderError,
  SERVICE_TYPE,
  type EmbeddingsRequest,
  type EmbeddingsResult,
  type ImagesRequest,
  type ImagesResult,
  type ResolvedService,
  type TextUsage,
  type TranscriptionRequest,
  type TranscriptionResult,
} from '../model-services';
import {
  chargedOf,
  creditsOf,
  Quotas,
  recordUsage,
  settleUsage,
  type LedgerEntry,
  type Wire,
} from '../usage';

type Asked<R> = Omit<R, 'service'> & { readonly service: ResolvedService };
type Counted<R> = R & { readonly counts: TextUsage };

/** How one request went, for the ledger. */
interface Ending {
  readonly outcome: LedgerEntry['outcome'];
  readonly attempts: number;
  readonly usage: TextUsage | null;
}

interface Work<R> {
  /** What `model` must be: completes "is not …". */
  readonly kind: string;
  readonly wire: Wire;
  readonly type: number;
  readonly service: ResolvedService;
  readonly signal: AbortSignal;
  readonly ask: (signal: AbortSignal) => Promise<R>;
  /** Of the request, and of its result when there is one. */
  readonly estimate: (result?: R) => { promptTokens: number; completionTokens: number };
}

/** While the database is away a row waits in memory; after this it is given up to the log. */
const GIVE_UP_STORING_MS = 15 * 60_000;
const MAX_STORE_DELAY_MS = 2_000;
const DRAIN_LAST_WAIT_MS = 5_000;

/**
 * What a model makes in one piece. Each request leaves exactly one ledger row, however it ends. All three throw BAD_INPUT
 * naming `model` for a service of another type, OVERLOADED, SHUTTING_DOWN, PROVIDER_FAILED, PROVIDER_TIMEOUT,
 * RATE_LIMITED; `signal.reason` when aborted.
 */
@Injectable()
export class Generations implements OnModuleDestroy {
  private readonly logger = new Logger(Generations.name);
  private readonly running = new Set<Promise<unknown>>();
  private readonly storing = new Set<Promise<void>>();
  private readonly stopping = new AbortController();
  private draining = false;

  constructor(
    private readonly config: Config,
    private readonly database: Database,
    private readonly ids: IdGenerator,
    private readonly driver: MediaDriver,
    private readonly quotas: Quotas,
  ) {}

  embed(principal: Principal, request: Asked<EmbeddingsRequest>): Promise<Counted<EmbeddingsResult>> {
    const { input, service, signal } = request;
    return this.run(principal, {
      kind: 'an embedding model service',
      wire: 'embedding',
      type: SERVICE_TYPE.embedding,
      service,
      signal,
      ask: (both) => this.driver.embeddings({ ...request, signal: both }),
      estimate: () => ({
        promptTokens: inputsOf(input).reduce(
          (sum, one) => sum + (typeof one === 'string' ? estimateTokens(one) : one.length),
          0,
        ),
        completionTokens: 0,
      }),
    });
  }

  drawImages(principal: Principal, request: Asked<ImagesRequest>): Promise<Counted<ImagesResult>> {
    const { prompt, service, signal } = request;
    return this.run(principal, {
      kind: 'an image model service',
      wire: 'image',
      type: SERVICE_TYPE.image,
      service,
      signal,
      ask: (both) => this.driver.images({ ...request, signal: both }),
      estimate: () => ({ promptTokens: estimateTokens(prompt), completionTokens: 0 }),
    });
  }

  transcribe(
    principal: Principal,
    request: Asked<TranscriptionRequest>,
  ): Promise<Counted<TranscriptionResult>> {
    const { options, service, signal } = request;
    return this.run(principal, {
      kind: 'a speech model service',
      wire: 'speech',
      type: SERVICE_TYPE.speech,
      service,
      signal,
      ask: (both) => this.driver.transcription({ ...request, signal: both }),
      estimate: (result) => ({
        promptTokens: typeof options.prompt === 'string' ? estimateTokens(options.prompt) : 0,
        completionTokens: result ? estimateTokens(result.text) : 0,
      }),
    });
  }

  /** What is running may end for a while, the rest is stopped; the ledger's rows are written before the database closes. */
  async onModuleDestroy(): Promise<void> {
    this.draining = true;
    await within(this.config.env.DRAIN_TIMEOUT_MS, Promise.allSettled(this.running));
    this.stopping.abort(new AppError('SHUTTING_DOWN', { retryAfterSeconds: 1 }));
    const ended = Promise.allSettled(this.running).then(() => Promise.all(this.storing));
    await within(DRAIN_LAST_WAIT_MS, ended);
  }

  private async run<R extends { usage: TextUsage | null; attempts: number }>(
    principal: Principal,
    work: Work<R>,
  ): Promise<Counted<R>> {
    if (work.service.type !== work.type) throw badInput('model', `is not ${work.kind}`);
    if (this.draining) throw new AppError('SHUTTING_DOWN', { retryAfterSeconds: 1 });
    if (this.running.size >= this.config.env.MAX_CONCURRENT_REPLIES) {
      throw new AppError('OVERLOADED', { retryAfterSeconds: 1 });
    }
    const running = this.askAndRecord(principal, work);
    this.running.add(running);
    return running.finally(() => this.running.delete(running));
  }

  private async askAndRecord<R extends { usage: TextUsage | null; attempts: number }>(
    principal: Principal,
    work: Work<R>,
  ): Promise<Counted<R>> {
    const { service, estimate } = work;
    const id = this.ids.next<MessageId>();
    const { promptTokens } = estimate();
    const credits = creditsOf({ promptTokens, completionTokens: 0 }, service);
    const reserved = await this.quotas.reserve(principal, id, { tokens: promptTokens, credits });
    const signal = AbortSignal.any([work.signal, this.stopping.signal]);
    const startedAt = Date.now();
    let result: R | undefined;
    let ending: Ending = { outcome: 'failed', attempts: 1, usage: null };
    try {
      result = await work.ask(signal);
      ending = { outcome: 'finished', attempts: result.attempts, usage: result.usage };
    } catch (error) {
      if (signal.aborted) {
        const outcome = this.stopping.signal.aborted ? 'interrupted' : 'stopped';
        ending = { outcome, attempts: 1, usage: null };
        throw signal.reason;
      }
      if (!(error instanceof ProviderError)) throw error;
      ending = { outcome: 'failed', attempts: error.details.attempts, usage: null };
      throw appErrorOf(error);
    } finally {
      await this.record(principal, work, ending, result, { id, reserved, startedAt });
    }
    return { ...result, counts: countsOf(ending.usage, work.estimate(result)) };
  }

  /** Resolves when the row is stored, or the database is away: then it is stored later, and nobody is kept waiting. */
  private async record<R>(
    { tenantId, keyId, userId }: Principal,
    { service, estimate, wire }: Work<R>,
    { outcome, attempts, usage }: Ending,
    result: R | undefined,
    {
      id,
      reserved,
      startedAt,
    }: { readonly id: MessageId; readonly reserved: boolean; readonly startedAt: number },
  ): Promise<void> {
    const counts = countsOf(usage, estimate(result));
    const entry: LedgerEntry = {
      tenantId,
      messageId: id,
      keyId,
      userId,
      assistantId: null,
      modelServiceId: service.id,
      attempts,
      ...counts,
      estimated: !usage,
      credits: creditsOf(counts, service),
      outcome,
      firstPieceMs: null,
      latencyMs: Date.now() - startedAt,
      wire,
      charged: chargedOf(service),
    };
    const store = async (): Promise<void> => {
      const settled = reserved ? [settleUsage(tenantId, id, entry)] : [];
      await this.database.run(tenantScope(tenantId), [recordUsage(entry), ...settled]);
    };
    try {
      await store();
    } catch (error) {
      const storing = this.recordLater(entry, store, error).finally(() => this.storing.delete(storing));
      this.storing.add(storing);
    }
  }

  /** Never rejects. */
  private async recordLater(entry: LedgerEntry, store: () => Promise<void>, first: unknown): Promise<void> {
    const since = Date.now();
    let error = first;
    for (let attempt = 0; isAway(error) && Date.now() - since < GIVE_UP_STORING_MS; attempt += 1) {
      if (attempt === 0)
        this.logger.warn(`the database is away; usage ${entry.messageId} waits to be stored`);
      await delay(Math.min(100 * 2 ** attempt, MAX_STORE_DELAY_MS) * (0.5 + Math.random() / 2));
      try {
        await store();
        return;
      } catch (again) {
        error = again;
      }
    }
    this.logger.error({ err: error, entry }, 'the usage of a generation could not be stored');
  }
}

function isAway(error: unknown): boolean {
  return error instanceof AppError && error.code === 'STORAGE_UNAVAILABLE';
}

function countsOf(
  told: TextUsage | null,
  { promptTokens, completionTokens }: { promptTokens: number; completionTokens: number },
): TextUsage {
  return told ?? { promptTokens, completionTokens, totalTokens: promptTokens + completionTokens };
}
