import { Injectable, Logger, type OnApplicationBootstrap, type OnModuleDestroy } from '@nestjs/common';
import type { GenerationDraft, GenerationEnd } from '../assistants';
import {
  AppError,
  ERRORS,
  Shutdown,
  wellFormed,
  within,
  type GenerationRecordId,
  type MessageId,
  type TenantId,
} from '../common';
import { Config } from '../config';
import { ReplySlots } from '../fairness';
import { ProviderError, TextDrivers, type ResolvedService, type TextResult } from '../model-services';
import { StreamLog, type ReplyText, type StreamEnd } from '../realtime';
import { AccessWatch } from '../tenancy';
import { failureOf, GenerationEndings, type Ending } from './generation-endings';

const DRAIN_LAST_WAIT_MS = 5_000;

/** Why a generation ends before its time. */
class Aborted extends Error {
  constructor(readonly status: GenerationEnd & ('stopped' | 'interrupted')) {
    super(status);
  }
}
class TooLong extends Error {}

/** Texts that models write. Durable before any reader is told of the end; exactly one ledger row each; never left open. */
@Injectable()
export class TextGenerations implements OnApplicationBootstrap, OnModuleDestroy {
  private readonly logger = new Logger(TextGenerations.name);
  private readonly entries = new Map<
    GenerationRecordId,
    { draft: GenerationDraft; controller: AbortController; done: Promise<void> }
  >();

  constructor(
    private readonly config: Config,
    private readonly drivers: TextDrivers,
    private readonly streams: StreamLog,
    private readonly endings: GenerationEndings,
    private readonly shutdown: Shutdown,
    private readonly access: AccessWatch,
    private readonly slots: ReplySlots,
  ) {}

  /** What a suspended tenant's users asked for ends as `stopped`. */
  onApplicationBootstrap(): void {
    this.access.watch(
      () => ({ tenants: new Set([...this.entries.values()].map(({ draft }) => draft.tenantId)), keys: [] }),
      (lost) => {
        if (lost.kind !== 'suspended') return;
        for (const [id, { draft }] of this.entries) if (draft.tenantId === lost.tenantId) this.stop(id);
      },
    );
  }

  /**
   * To be asked before anything is stored; returns what gives the place back, which `begin` takes over. SHUTTING_DOWN,
   * OVERLOADED, RATE_LIMITED.
   */
  admit(tenantId: TenantId): () => void {
    this.shutdown.refuseWork();
    return this.slots.take(tenantId);
  }

  /** Begins to write what is stored as `running`; its pieces are in the StreamLog under its id from now on. */
  begin(draft: GenerationDraft, service: ResolvedService, giveBack: () => void): void {
    const controller = new AbortController();
    const written = this.streams.open(draft.tenantId, streamOf(draft.id));
    const done = this.write(draft, service, controller, written).finally(() => {
      this.entries.delete(draft.id);
      giveBack();
    });
    this.entries.set(draft.id, { draft, controller, done });
    if (this.shutdown.begun) controller.abort(new Aborted('interrupted'));
  }

  /** Ends it as `stopped`, if it is being written here. */
  stop(id: GenerationRecordId): void {
    this.entries.get(id)?.controller.abort(new Aborted('stopped'));
  }

  /** Whatever is being written here for a user. */
  stopOf(tenantId: TenantId, userId: string): void {
    for (const { draft, controller } of this.entries.values())
      if (draft.tenantId === tenantId && draft.userId === userId) controller.abort(new Aborted('stopped'));
  }

  isRunning(id: GenerationRecordId): boolean {
    return this.entries.has(id);
  }

  running(): GenerationRecordId[] {
    return [...this.entries.keys()];
  }

  async onModuleDestroy(): Promise<void> {
    await within(this.shutdown.left(this.config.env.DRAIN_TIMEOUT_MS), this.allDone());
    for (const { controller } of this.entries.values()) controller.abort(new Aborted('interrupted'));
    await within(DRAIN_LAST_WAIT_MS, this.allDone());
  }

  private allDone(): Promise<unknown> {
    return Promise.all([...this.entries.values()].map(({ done }) => done));
  }

  /** Never rejects: every failure is an ending. */
  private async write(
    draft: GenerationDraft,
    service: ResolvedService,
    controller: AbortController,
    written: ReplyText,
  ): Promise<void> {
    const ending = await this.ask(draft, service, controller, written);
    let end: StreamEnd;
    try {
      const { status, error, ...counts } = await this.endings.store(draft, service, ending);
      end = { status, ...counts, ...(error && { error }) };
    } catch (error) {
      this.logger.error({ err: error, recordId: draft.id }, 'a generation could not be ended');
      const { status: code, message } = ERRORS.INTERNAL;
      const nothing = { promptTokens: 0, completionTokens: 0, totalTokens: 0, credits: 0 };
      end = { status: 'failed', ...nothing, error: { code, message } };
    }
    this.streams.end(streamOf(draft.id), end);
  }

  private async ask(
    draft: GenerationDraft,
    { kind, endpoint, model, parameters }: ResolvedService,
    controller: AbortController,
    written: ReplyText,
  ): Promise<Ending> {
    const { signal } = controller;
    const startedAt = Date.now();
    let firstAt: number | undefined;
    const pieces = (said: string[]): void => {
      if (signal.aborted) return;
      firstAt ??= Date.now();
      const clean = said.map(storable);
      this.streams.append(streamOf(draft.id), clean);
      if (written.length > this.config.env.MAX_REPLY_CHARS) controller.abort(new TooLong());
    };
    let result: TextResult | undefined;
    let failure: unknown;
    try {
      signal.throwIfAborted();
      const request = {
        endpoint,
        model,
        messages: [{ role: 'user', content: draft.prompt }],
        parameters: { ...parameters, ...draft.parameters },
        signal,
      } as const;
      result = await this.drivers.of(kind).stream(request, { pieces, reasoning: () => undefined });
    } catch (error) {
      failure = signal.aborted ? signal.reason : error;
    }
    const outcome = result ? ({ status: 'finished' } as const) : this.outcomeOf(failure);
    return {
      ...outcome,
      result: written.textFrom(0),
      usage: result?.usage ?? null,
      attempts: result?.attempts ?? (failure instanceof ProviderError ? failure.details.attempts : 1),
      firstPieceMs: firstAt === undefined ? null : firstAt - startedAt,
      latencyMs: Date.now() - startedAt,
    };
  }

  private outcomeOf(failure: unknown): Pick<Ending, 'status' | 'error'> {
    if (failure instanceof Aborted) return { status: failure.status };
    const message = 'The text is over the length limit.';
    const shown = failure instanceof TooLong ? new AppError('PROVIDER_FAILED', { message }) : failure;
    if (!(shown instanceof AppError) && !(shown instanceof ProviderError))
      this.logger.error({ err: failure }, 'unexpected failure while generating a text');
    return { status: 'failed', error: failureOf(shown) };
  }
}

/** The StreamLog knows replies; a record's id is of the same kind and made by the same generator. */
export const streamOf = (id: GenerationRecordId): MessageId => id as string as MessageId;

/** What PostgreSQL can hold. */
const storable = (text: string): string => wellFormed(text).replaceAll('\0', '\ufffd');
