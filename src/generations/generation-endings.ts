import { setTimeout as delay } from 'node:timers/promises';
import { Injectable, Logger } from '@nestjs/common';
import {
  dropImagesBut,
  endGeneration,
  GenerationRecordsRepository,
  type GenerationDraft,
  type GenerationEnd,
  type GenerationRecord,
  type GenerationResult,
  type StoredImage,
} from '../assistants';
import {
  AppError,
  ENDING_PATIENCE_MS,
  ERRORS,
  untilStored,
  type GenerationRecordId,
  type MessageId,
  type TenantId,
} from '../common';
import { Database, tenantScope } from '../database';
import {
  appErrorOf,
  estimateTokens,
  NO_USAGE,
  ProviderError,
  type ResolvedService,
  type TextUsage,
} from '../model-services';
import { chargedOf, creditsOf, recordUsage, settleUsage } from '../usage';

/** How a generation went, before anything is counted. */
export interface Ending {
  readonly status: GenerationEnd;
  readonly result?: string;
  readonly images?: readonly StoredImage[];
  readonly error?: { readonly code: number; readonly message: string };
  /** As the provider counts; null: it told nothing. */
  readonly usage: TextUsage | null;
  /** Upstream requests made. */
  readonly attempts: number;
  /** From the first request; null when no piece came. */
  readonly firstPieceMs: number | null;
  readonly latencyMs: number;
}

export type Ended = Pick<
  GenerationDraft,
  'id' | 'tenantId' | 'userId' | 'keyId' | 'modelServiceId' | 'prompt'
>;
type Prices = Pick<ResolvedService, 'model' | 'inputPrice' | 'outputPrice'>;

/** A service that is gone has no price any more. */
const FREE = { inputPrice: 0, outputPrice: 0 };
/** Another process ends it unheard. */
const LOOK_EVERY_MS = 500;

/** Ends generations, record and ledger in one transaction, and tells who waits for one. */
@Injectable()
export class GenerationEndings {
  private readonly logger = new Logger(GenerationEndings.name);
  private readonly waiting = new Map<GenerationRecordId, Set<() => void>>();

  constructor(
    private readonly database: Database,
    private readonly records: GenerationRecordsRepository,
  ) {}

  /** Resolves when it is stored, waiting for a database that is away. An ending after another one changes nothing. */
  async store(record: Ended, service: Prices | null, ending: Ending): Promise<GenerationResult> {
    const {
      usage,
      attempts,
      firstPieceMs,
      latencyMs,
      status,
      result = '',
      images = [],
      error = null,
    } = ending;
    const counts =
      usage ?? (status === 'failed' && result === '' ? NO_USAGE : estimate(record.prompt, result));
    const { tenantId, id, keyId, userId, modelServiceId } = record;
    const credits = creditsOf(counts, service ?? FREE);
    const messageId = id as string as MessageId;
    const end: GenerationResult = { status, result, images, error, ...counts, credits };
    const statements = [
      endGeneration(tenantId, id, end),
      dropImagesBut(tenantId, id, images),
      recordUsage({
        tenantId,
        messageId,
        keyId,
        userId,
        assistantId: null,
        modelServiceId,
        attempts,
        ...counts,
        estimated: !usage,
        credits,
        outcome: status,
        firstPieceMs,
        latencyMs,
        wire: 'generation',
        ...(service && { charged: chargedOf(service) }),
      }),
      settleUsage(tenantId, messageId, end),
    ] as const;
    await untilStored(() => this.database.run(tenantScope(tenantId), statements), {
      ms: ENDING_PATIENCE_MS,
      waits: () => this.logger.warn(`the database is away; generation ${id} waits to be stored`),
    });
    for (const wake of this.waiting.get(id) ?? []) wake();
    return end;
  }

  /** The record when it has ended, or as it is when the time is over or nobody waits any more. NOT_FOUND when there is none. */
  async wait(
    tenantId: TenantId,
    id: GenerationRecordId,
    { ms, signal }: { readonly ms: number; readonly signal: AbortSignal },
  ): Promise<GenerationRecord> {
    const deadline = Date.now() + ms;
    for (;;) {
      // Before the look: what ends in between is heard.
      const { heard, forget } = this.listen(id);
      try {
        const record = await this.records.find(tenantId, id);
        if (!record) throw new AppError('NOT_FOUND');
        const left = deadline - Date.now();
        if (record.status !== 'running' || left <= 0 || signal.aborted) return record;
        const rest = new AbortController();
        const either = AbortSignal.any([signal, rest.signal]);
        const look = delay(Math.min(left, LOOK_EVERY_MS), undefined, { signal: either });
        await Promise.race([heard, look.catch(() => undefined)]);
        rest.abort();
      } finally {
        forget();
      }
    }
  }

  private listen(id: GenerationRecordId): { heard: Promise<void>; forget: () => void } {
    const { promise, resolve } = Promise.withResolvers<void>();
    const waiting = this.waiting.get(id) ?? new Set();
    this.waiting.set(id, waiting.add(resolve));
    const forget = (): void => {
      waiting.delete(resolve);
      if (waiting.size === 0 && this.waiting.get(id) === waiting) this.waiting.delete(id);
    };
    return { heard: promise, forget };
  }
}

/** What a record says of a failure: nothing of our insides. */
export function failureOf(error: unknown): { readonly code: number; readonly message: string } {
  const shown = error instanceof ProviderError ? appErrorOf(error) : error;
  if (shown instanceof AppError) return { code: shown.status, message: shown.message };
  return { code: ERRORS.INTERNAL.status, message: ERRORS.INTERNAL.message };
}

function estimate(prompt: string, result: string): TextUsage {
  const promptTokens = estimateTokens(prompt);
  const completionTokens = estimateTokens(result);
  return { promptTokens, completionTokens, totalTokens: promptTokens + completionTokens };
}
