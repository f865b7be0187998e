import { setTimeout as delay } from 'node:timers/promises';
import { LRUCache } from 'lru-cache';
import type { Dispatcher, Outbound } from '../../outbound';
import { CompletionStream, errorText } from './completion-stream';
import {
  brokenOff,
  failureOf,
  headersOf,
  MAX_ERROR_BYTES,
  MAX_TIMER_MS,
  poolOf,
  providerError,
  shownMessage,
  targetOf,
} from './provider-exchange';
import { parseRetryAfter, retryDelay } from './retry-policy';
import { callIdsOf } from './tool-calls';
import {
  ProviderError,
  TextDriver,
  type TextRequest,
  type TextResult,
  type TextSink,
  type TextUsage,
  type ToolCallDelta,
} from './text-driver';

/** A whole answer that came as JSON although a stream was asked for. */
const MAX_WHOLE_BYTES = 8_388_608;
const MAX_REMEMBERED = 10_000;
/** A provider that leaves the connection open after `[DONE]` has this long to close it. */
const LINGER_MS = 1_000;
const HEADERS = { 'content-type': 'application/json', accept: 'text/event-stream' };
/** Ends a last line and event that the provider left open. */
const BLANK_LINE = Buffer.from('\n\n');

/** `POST <baseUrl>/chat/completions`, streamed. */
export class OpenAiCompatibleDriver extends TextDriver {
  /** Providers that refused `stream_options` once are not asked with it again. */
  private readonly refusing = new LRUCache<string, true>({ max: MAX_REMEMBERED });

  constructor(private readonly outbound: Outbound) {
    super();
  }

  async stream(request: TextRequest, sink: TextSink): Promise<TextResult> {
    const { endpoint, signal } = request;
    const startedAt = performance.now();
    const once = new OnceSink(sink);
    let asked = 0;
    let refusal: ProviderError | undefined;
    for (let attempt = 1; ;) {
      signal.throwIfAborted();
      const withOptions = !this.refusing.has(endpoint.providerId);
      const exchange = new Exchange(request, once, startedAt);
      asked += 1;
      try {
        const stream = await exchange.run(
          this.outbound.pool(endpoint.policy, poolOf(endpoint)),
          bodyOf(request, withOptions),
        );
        return { usage: usageOf(stream), finishReason: stream.finishReason, attempts: asked };
      } catch (error) {
        if (signal.aborted) throw signal.reason;
        if (!(error instanceof ProviderError)) throw error;
        if (withOptions && exchange.refusedOptions) {
          this.refusing.set(endpoint.providerId, true);
          continue;
        }
        // Of a provider that refused and then was given too little time, the refusal is what there is to tell.
        if (error.failure === 'timeout' && refusal && !once.began) throw refusal;
        const most = Math.min(endpoint.firstPieceTimeoutMs, endpoint.totalTimeoutMs);
        const remaining = most - (performance.now() - startedAt);
        const wait = once.began ? null : retryDelay(error, attempt, remaining);
        refusal = new ProviderError(error.failure, shownMessage(error.message, endpoint), {
          ...error.details,
          attempts: asked,
        });
        if (wait === null) throw refusal;
        attempt += 1;
        await delay(wait, undefined, { signal }).catch(() => {
          throw signal.reason;
        });
      }
    }
  }
}

/** Knows whether anything has been passed on: from then on there is no asking again. */
class OnceSink implements TextSink {
  began = false;

  constructor(private readonly sink: TextSink) {}

  pieces(pieces: string[]): void {
    this.began = true;
    this.sink.pieces(pieces);
  }

  reasoning(pieces: string[]): void {
    this.began = true;
    this.sink.reasoning(pieces);
  }

  toolCalls(deltas: ToolCallDelta[]): void {
    this.began = true;
    this.sink.toolCalls?.(deltas);
  }

  fields(fields: Readonly<Record<string, unknown>>): void {
    this.sink.fields?.(fields);
  }
}

/** One HTTP request and its answer. */
class Exchange {
  /** The provider refused the request and named `stream_options`. */
  refusedOptions = false;
  private readonly outcome = Promise.withResolvers<CompletionStream>();
  private readonly stream: CompletionStream;
  private controller: Dispatcher.DispatchController | undefined;
  private timer: NodeJS.Timeout | undefined;
  private linger: NodeJS.Timeout | undefined;
  private lastRead = 0;
  /** The provider waits for a reader that is behind. */
  private held = false;
  private status = 0;
  private headers: Record<string, string | string[] | undefined> = {};
  /** The HTTP chunks of one network read: undici tells them one by one, the sink gets them as one. */
  private unread: Buffer[] = [];
  private sniffed = false;
  /** Set for an answer that is not an event stream: its body is read whole. */
  private body: Buffer[] | undefined;
  private bodyBytes = 0;
  private maxBodyBytes = MAX_ERROR_BYTES;
  private settled = false;
  private closed = false;

  constructor(
    private readonly request: TextRequest,
    sink: TextSink,
    private readonly startedAt: number,
  ) {
    this.stream = new CompletionStream(sink, () => callIdsOf(request.messages));
  }

  async run(pool: Dispatcher, body: string): Promise<CompletionStream> {
    const { endpoint, signal } = this.request;
    const target = targetOf(endpoint, '/chat/completions');
    const headers = headersOf(endpoint, HEADERS);
    const onAbort = (): void => this.fail(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    this.watch();
    try {
      if (!this.settled) {
        pool.dispatch({ ...target, method: 'POST', headers, body }, this.handler());
      }
      return await this.outcome.promise;
    } finally {
      clearTimeout(this.timer);
      signal.removeEventListener('abort', onAbort);
    }
  }

  private handler(): Dispatcher.DispatchHandler {
    const flush = (): void => this.guard(this.flush);
    return {
      onRequestStart: (controller) => {
        this.controller = controller;
        if (this.settled) controller.abort(new Error('settled'));
      },
      onResponseStart: (_controller, status, headers) => {
        this.status = status;
        this.headers = headers;
        this.lastRead = performance.now();
        if (status < 200 || status > 299) this.readWhole(MAX_ERROR_BYTES);
      },
      onResponseData: (_controller, chunk) => {
        if (this.settled) return;
        // undici parses all of a network read in one go: what runs next sees every chunk of it.
        if (this.unread.push(chunk) === 1) process.nextTick(flush);
      },
      onResponseEnd: () => {
        this.close();
        flush();
        this.guard(this.end);
      },
      onResponseError: (_controller, error) => {
        this.close();
        flush();
        this.guard(() => this.broken(error));
      },
    };
  }

  /** One timer a request, re-armed when it fires and not with every read. */
  private watch(): void {
    const { firstPieceTimeoutMs, idleTimeoutMs, totalTimeoutMs } = this.request.endpoint;
    const { spoke, finishReason } = this.stream;
    const total = this.startedAt + totalTimeoutMs;
    const now = performance.now();
    const phase = this.held
      ? { at: now + idleTimeoutMs, what: '' }
      : spoke
        ? { at: this.lastRead + idleTimeoutMs, what: 'sent nothing more in time' }
        : { at: this.startedAt + firstPieceTimeoutMs, what: 'sent no answer in time' };
    const all = this.held
      ? 'could not be read to its end in time: its answer is read too slowly'
      : 'took too long in all';
    const { at, what } = total < phase.at ? { at: total, what: all } : phase;
    const left = at - now;
    if (left <= 0) {
      // Finished but not closed: nothing is missing.
      if (finishReason !== null) this.guard(this.complete);
      else this.fail(providerError('timeout', `${what}.`));
      return;
    }
    // After the first piece the deadline may be earlier than the one armed before it.
    const wait = spoke ? left : Math.min(left, Math.max(idleTimeoutMs, 1));
    this.timer = setTimeout(() => this.watch(), Math.min(wait, MAX_TIMER_MS));
  }

  private readonly flush = (): void => {
    const { unread } = this;
    if (unread.length === 0) return;
    this.unread = [];
    const bytes = unread.length === 1 ? unread[0]! : Buffer.concat(unread);
    this.lastRead = performance.now();
    if (!this.sniffed) this.sniff(bytes);
    if (!this.body) {
      this.stream.read(bytes);
      if (this.stream.done) this.complete();
      else this.hold();
      return;
    }
    this.body.push(bytes);
    this.bodyBytes += bytes.length;
    if (this.bodyBytes > this.maxBodyBytes) this.whole(this.body);
  };

  /** Reads no further while the answer's reader is behind: what it has not taken waits at the provider, not here. */
  private hold(): void {
    const { controller } = this;
    const room = this.held ? undefined : this.request.flow?.room();
    if (!room || !controller) return;
    this.held = true;
    controller.pause();
    void room.then(() => {
      this.held = false;
      this.lastRead = performance.now();
      if (!this.settled) controller.resume();
    });
  }

  /** Content types lie both ways: no event stream begins with a bracket, no JSON or HTML with anything else. */
  private sniff(bytes: Buffer): void {
    const first = /[^\s\uFEFF]/.exec(bytes.toString('utf8', 0, 64))?.[0];
    if (first === undefined) return;
    this.sniffed = true;
    if (this.body) return;
    if (first === '{' || first === '[') this.readWhole(MAX_WHOLE_BYTES);
    else if (first === '<') this.readWhole(MAX_ERROR_BYTES);
  }

  private readWhole(maxBytes: number): void {
    this.body = [];
    this.maxBodyBytes = maxBytes;
  }

  private readonly end = (): void => {
    const { stream } = this;
    if (this.body) {
      this.whole(this.body);
      return;
    }
    try {
      stream.read(BLANK_LINE);
    } catch (error) {
      if (stream.finishReason === null) throw error;
    }
    // A missing [DONE] is forgiven; an end without any word of an end or of an answer is not.
    if (stream.done || stream.finishReason !== null || stream.spoke) this.complete();
    else throw providerError('malformed', 'ended the stream without an answer.');
  };

  private whole(body: Buffer[]): void {
    const { status } = this;
    const text = new TextDecoder().decode(Buffer.concat(body));
    const json = parsed(text);
    const fine = status >= 200 && status <= 299;
    if (fine && typeof json === 'object' && json !== null && 'choices' in json) {
      this.stream.whole(json);
      this.complete();
      return;
    }
    this.refusedOptions = (status === 400 || status === 422) && /stream_options|include_usage/i.test(text);
    const said = errorText(json);
    const retryAfterMs = parseRetryAfter(this.header('retry-after'));
    // An HTML page or an empty body tells a tenant nothing; what the provider says in its own words does.
    const told = said ? `: ${said}` : '.';
    const what = fine ? 'sent no stream' : `answered ${status}`;
    throw providerError(failureOf(status, said !== null), what + told, {
      status,
      ...(retryAfterMs !== undefined && { retryAfterMs }),
    });
  }

  private broken(cause: Error): void {
    // If the answer had been completed before, nothing is missing.
    if (this.stream.done || this.stream.finishReason !== null) this.complete();
    else throw brokenOff(cause, this.status !== 0);
  }

  private close(): void {
    this.closed = true;
    clearTimeout(this.linger);
  }

  private guard(work: () => void): void {
    if (this.settled) return;
    try {
      work();
    } catch (error) {
      this.fail(error);
    }
  }

  /** The regular end. The connection may end by itself, for the next request to use. */
  private readonly complete = (): void => {
    this.stream.finish();
    if (this.settled) return;
    this.settled = true;
    const cut = (): void => this.controller?.abort(new Error('settled'));
    if (!this.closed) this.linger = setTimeout(cut, LINGER_MS).unref();
    this.outcome.resolve(this.stream);
  };

  /** Ends the exchange; the provider's connection is destroyed at once. */
  private fail(error: unknown): void {
    if (this.settled) return;
    this.settled = true;
    this.outcome.reject(error);
    this.controller?.abort(error instanceof Error ? error : new Error('aborted'));
  }

  private header(name: string): string | undefined {
    const value = this.headers[name];
    return Array.isArray(value) ? value[0] : value;
  }
}

function bodyOf({ model, messages, parameters }: TextRequest, withOptions: boolean): string {
  return JSON.stringify({
    ...parameters,
    model,
    messages,
    stream: true,
    ...(withOptions && { stream_options: { include_usage: true } }),
  });
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return null;
  }
}

/** Null unless both counts are counts: what goes into the ledger is a number or our own estimate. */
function usageOf({ usage }: CompletionStream): TextUsage | null {
  const {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: total,
  } = usage ?? {};
  if (!isCount(promptTokens) || !isCount(completionTokens)) return null;
  return {
    promptTokens,
    completionTokens,
    totalTokens: isCount(total) ? total : promptTokens + completionTokens,
  };
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
