import { Injectable, type OnModuleDestroy } from '@nestjs/common';
import {
  AppError,
  IdGenerator,
  Shutdown,
  within,
  type AssistantId,
  type MessageId,
  type Principal,
} from '../common';
import { Config } from '../config';
import { ReplySlots } from '../fairness';
import {
  appErrorOf,
  estimatePromptTokens,
  NO_USAGE,
  ProviderError,
  TokenCounter,
  type ChatMessage,
  type Flow,
  type ResolvedService,
  type TextResult,
  type TextSink,
  type TextUsage,
  type ToolCallDelta,
} from '../model-services';
import { estimateOf, Metering, type MeteredRequest, type Wire } from '../usage';
import { tenantOf } from './access';
import { ToolRunner, type AssistantTools } from './tool-runner';

export interface CompletionRequest {
  readonly principal: Principal;
  readonly id: MessageId;
  readonly service: ResolvedService;
  readonly assistantId: AssistantId | null;
  readonly messages: readonly ChatMessage[];
  readonly parameters: Readonly<Record<string, unknown>>;
  /** Aborted: the client has gone. Ends the provider's request, and the completion as `stopped`. */
  readonly signal: AbortSignal;
  /** Of who reads the answer as it comes. */
  readonly flow?: Flow;
  readonly tools: AssistantTools | null;
  /** For the ledger; by default the OpenAI wire's. */
  readonly wire?: Wire;
}

export interface Completion {
  readonly finishReason: string;
  readonly usage: TextUsage;
}

const DRAIN_LAST_WAIT_MS = 5_000;

/** A client that waits for the rest of it is told that it was cut off by a restart. */
class Interrupted extends Error {}
class TooLong extends Error {}

/**
 * Answers that nobody keeps: a model is asked what the client says, and the client gets what the model says. Of all
 * that only the usage is stored, one ledger row whatever the ending, before the client is told of it.
 */
@Injectable()
export class Completions implements OnModuleDestroy {
  private readonly running = new Map<Promise<unknown>, AbortController>();

  constructor(
    private readonly config: Config,
    private readonly ids: IdGenerator,
    private readonly tools: ToolRunner,
    private readonly slots: ReplySlots,
    private readonly metering: Metering,
    private readonly shutdown: Shutdown,
  ) {}

  newId(): MessageId {
    return this.ids.next();
  }

  /**
   * Streams into `sink` and resolves when the usage is stored. Throws PROVIDER_FAILED, PROVIDER_TIMEOUT, RATE_LIMITED,
   * QUOTA_EXCEEDED, BAD_INPUT (the provider found the request wrong), OVERLOADED, SHUTTING_DOWN; the signal's reason when aborted.
   */
  run(request: CompletionRequest, sink: TextSink): Promise<Completion> {
    tenantOf(request.principal);
    this.shutdown.refuseWork();
    const giveBack = this.slots.take(request.principal.tenantId);
    const controller = new AbortController();
    const leave = (): void => controller.abort(request.signal.reason);
    if (request.signal.aborted) leave();
    else request.signal.addEventListener('abort', leave, { once: true });
    const run = this.complete(request, sink, controller).finally(() => {
      request.signal.removeEventListener('abort', leave);
      this.running.delete(run);
      giveBack();
    });
    this.running.set(run, controller);
    return run;
  }

  async onModuleDestroy(): Promise<void> {
    await within(
      this.shutdown.left(this.config.env.DRAIN_TIMEOUT_MS),
      Promise.allSettled(this.running.keys()),
    );
    for (const controller of this.running.values()) controller.abort(new Interrupted());
    await within(DRAIN_LAST_WAIT_MS, Promise.allSettled(this.running.keys()));
  }

  private async complete(
    request: CompletionRequest,
    sink: TextSink,
    controller: AbortController,
  ): Promise<Completion> {
    const {
      principal,
      id,
      assistantId,
      service,
      messages,
      parameters,
      tools,
      flow,
      wire = 'openai',
    } = request;
    const { signal } = controller;
    const promptTokens = estimatePromptTokens(messages);
    const counted = new CountingSink(
      sink,
      () => controller.abort(new TooLong()),
      this.config.env.MAX_REPLY_CHARS,
    );
    const estimate = estimateOf(promptTokens, parameters, service);
    const metered: MeteredRequest = { principal, id, wire, assistantId, service, estimate, promptTokens };
    await this.metering.begin(metered);
    const startedAt = Date.now();
    let result: TextResult | undefined;
    let failure: unknown;
    try {
      signal.throwIfAborted();
      result = await this.tools.run(
        { service, messages, parameters, signal, tools, ...(flow && { flow }) },
        counted,
      );
    } catch (error) {
      failure = signal.aborted ? signal.reason : error;
    }
    const outcome = result ? 'finished' : outcomeOf(failure, request.signal);
    const gaveNothing = outcome === 'failed' && counted.written.chars === 0;
    const usage = result?.usage ?? (gaveNothing ? NO_USAGE : usageOf(promptTokens, counted.written.tokens));
    await this.metering.end(metered, {
      ...usage,
      estimated: !result?.usage,
      attempts: result?.attempts ?? (failure instanceof ProviderError ? failure.details.attempts : 1),
      outcome,
      firstPieceMs: counted.firstAt === undefined ? null : counted.firstAt - startedAt,
      latencyMs: Date.now() - startedAt,
    });
    if (result)
      return { usage, finishReason: result.finishReason ?? (counted.calledTools ? 'tool_calls' : 'stop') };
    throw this.tellable(failure, request.signal);
  }

  private tellable(failure: unknown, signal: AbortSignal): unknown {
    if (signal.aborted && failure === signal.reason) return failure;
    if (failure instanceof Interrupted) return new AppError('SHUTTING_DOWN', { retryAfterSeconds: 1 });
    if (failure instanceof TooLong)
      return new AppError('PROVIDER_FAILED', { message: 'The reply is over the length limit.' });
    if (failure instanceof ProviderError) {
      const { status } = failure.details;
      // What the client asked for is what the provider refused, not us or our credential.
      const theirs = failure.failure === 'refused' && (status === 400 || status === 413 || status === 422);
      return theirs
        ? new AppError('BAD_INPUT', { message: failure.message, cause: failure })
        : appErrorOf(failure);
    }
    return failure;
  }
}

function usageOf(promptTokens: number, completionTokens: number): TextUsage {
  return { promptTokens, completionTokens, totalTokens: promptTokens + completionTokens };
}

function outcomeOf(failure: unknown, signal: AbortSignal): 'stopped' | 'interrupted' | 'failed' {
  if (failure instanceof Interrupted) return 'interrupted';
  return signal.aborted && failure === signal.reason ? 'stopped' : 'failed';
}

/** Passes on and keeps account: what was written, when the first of it came, and that it does not grow without end. */
class CountingSink implements TextSink {
  readonly written = new TokenCounter();
  firstAt: number | undefined;
  calledTools = false;

  constructor(
    private readonly sink: TextSink,
    private readonly tooLong: () => void,
    private readonly maxChars: number,
  ) {}

  pieces(pieces: string[]): void {
    this.count(pieces.join(''));
    this.sink.pieces(pieces);
  }

  reasoning(pieces: string[]): void {
    this.count(pieces.join(''));
    this.sink.reasoning(pieces);
  }

  toolCalls(deltas: ToolCallDelta[]): void {
    this.calledTools = true;
    this.count(deltas.map(({ name = '', arguments: text = '' }) => name + text).join(''));
    this.sink.toolCalls?.(deltas);
  }

  fields(fields: Readonly<Record<string, unknown>>): void {
    this.sink.fields?.(fields);
  }

  private count(text: string): void {
    this.firstAt ??= Date.now();
    this.written.add(text);
    if (this.written.chars > this.maxChars) this.tooLong();
  }
}
