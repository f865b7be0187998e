import { Injectable, type OnModuleDestroy } from '@nestjs/common';
import { AppError, badInput, IdGenerator, Shutdown, within, type MessageId, type Principal } from '../common';
import { Config } from '../config';
import { ReplySlots } from '../fairness';
import {
  appErrorOf,
  estimateTokens,
  inputsOf,
  MediaDriver,
  NO_USAGE,
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
  creditsOf,
  Metering,
  type Estimate,
  type LedgerEntry,
  type MeteredRequest,
  type Wire,
} from '../usage';
import { ImageCosts } from './image-costs';

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
  /** What it may come to; without it: its prompt. */
  readonly reserve?: Estimate;
  readonly estimate: (result?: R) => { promptTokens: number; completionTokens: number };
}

const DRAIN_LAST_WAIT_MS = 5_000;

/**
 * What a model makes in one piece. Each request leaves exactly one ledger row, however it ends. All three throw BAD_INPUT
 * naming `model` for a service of another type, OVERLOADED, SHUTTING_DOWN, PROVIDER_FAILED, PROVIDER_TIMEOUT,
 * RATE_LIMITED; `signal.reason` when aborted.
 */
@Injectable()
export class Generations implements OnModuleDestroy {
  private readonly running = new Set<Promise<unknown>>();
  private readonly stopping = new AbortController();

  constructor(
    private readonly config: Config,
    private readonly ids: IdGenerator,
    private readonly driver: MediaDriver,
    private readonly metering: Metering,
    private readonly costs: ImageCosts,
    private readonly slots: ReplySlots,
    private readonly shutdown: Shutdown,
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
    const { prompt, options, service, signal } = request;
    return this.run(principal, {
      kind: 'an image model service',
      wire: 'image',
      type: SERVICE_TYPE.image,
      service,
      signal,
      ask: async (both) => {
        const made = await this.driver.images({ ...request, signal: both });
        this.costs.learn(service, made.usage, made.json.data.length);
        return made;
      },
      reserve: this.costs.estimate(service, prompt, options),
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

  /** What is running may end for a while, the rest is stopped. */
  async onModuleDestroy(): Promise<void> {
    await within(this.shutdown.left(this.config.env.DRAIN_TIMEOUT_MS), Promise.allSettled(this.running));
    this.stopping.abort(new AppError('SHUTTING_DOWN', { retryAfterSeconds: 1 }));
    await within(DRAIN_LAST_WAIT_MS, Promise.allSettled(this.running));
  }

  private async run<R extends { usage: TextUsage | null; attempts: number }>(
    principal: Principal,
    work: Work<R>,
  ): Promise<Counted<R>> {
    if (work.service.type !== work.type) throw badInput('model', `is not ${work.kind}`);
    this.shutdown.refuseWork();
    const giveBack = this.slots.take(principal.tenantId);
    const running = this.askAndRecord(principal, work).finally(() => {
      this.running.delete(running);
      giveBack();
    });
    this.running.add(running);
    return running;
  }

  private async askAndRecord<R extends { usage: TextUsage | null; attempts: number }>(
    principal: Principal,
    work: Work<R>,
  ): Promise<Counted<R>> {
    const { service, wire } = work;
    const id = this.ids.next<MessageId>();
    const { promptTokens } = work.estimate();
    const estimate = work.reserve ?? {
      tokens: promptTokens,
      credits: creditsOf({ promptTokens, completionTokens: 0 }, service),
    };
    const metered: MeteredRequest = {
      principal,
      id,
      wire,
      assistantId: null,
      service,
      estimate,
      promptTokens,
    };
    await this.metering.begin(metered);
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
      const { usage, ...rest } = ending;
      await this.metering.end(metered, {
        ...(ending.outcome === 'failed' ? NO_USAGE : countsOf(usage, work.estimate(result))),
        ...rest,
        estimated: !usage,
        firstPieceMs: null,
        latencyMs: Date.now() - startedAt,
      });
    }
    return { ...result, counts: countsOf(ending.usage, work.estimate(result)) };
  }
}

function countsOf(
  told: TextUsage | null,
  { promptTokens, completionTokens }: { promptTokens: number; completionTokens: number },
): TextUsage {
  return told ?? { promptTokens, completionTokens, totalTokens: promptTokens + completionTokens };
}
