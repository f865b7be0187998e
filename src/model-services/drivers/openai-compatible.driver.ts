import { setTimeout as delay } from 'node:timers/promises';
import { LRUCache } from 'lru-cache';
import { Agent, type Dispatcher } from 'undici';
import { CompletionStream, errorText, shorten } from './completion-stream';
import { parseRetryAfter, retryDelay } from './retry-policy';
import {
  ProviderError,
  TextDriver,
  type TextRequest,
  type TextResult,
  type TextSink,
  type TextUsage,
} from './text-driver';

const MAX_ERROR_BYTES = 65_536;
/** A whole answer that came as JSON although a stream was asked for. */
const MAX_WHOLE_BYTES = 8_388_608;
const MAX_REMEMBERED = 10_000;

/** `POST <baseUrl>/chat/completions`, streamed. Keeps connections open between requests, a pool for each connect time-out. */
export class OpenAiCompatibleDriver extends TextDriver {
  private readonly agents = new LRUCache<number, Agent>({ max: 16, dispose: (agent) => void agent.close() });
  /** Providers that refused `stream_options` once are not asked with it again. */
  private readonly refusing = new LRUCache<string, true>({ max: MAX_REMEMBERED });

  async stream(request: TextRequest, sink: TextSink): Promise<TextResult> {
    const { endpoint, signal } = request;
    const startedAt = Date.now();
    const once = new OnceSink(sink);
    let asked = 0;
    for (let attempt = 1; ;) {
      const withOptions = !this.refusing.has(endpoint.providerId);
      asked += 1;
      try {
        signal.throwIfAborted();
        const exchange = new Exchange(request, once, startedAt);
        const stream = await exchange.run(
          this.agent(endpoint.connectTimeoutMs),
          bodyOf(request, withOptions),
        );
        return { usage: usageOf(stream), finishReason: stream.finishReason, attempts: asked };
      } catch (error) {
        if (signal.aborted) throw signal.reason;
        const failure = error as ProviderError;
        if (!(failure instanceof ProviderError)) throw error;
        if (withOptions && refusesOptions(failure)) {
          this.refusing.set(endpoint.providerId, true);
          continue;
        }
        const remaining = endpoint.firstPieceTimeoutMs - (Date.now() - startedAt);
        const wait = once.began ? null : retryDelay(failure, attempt, remaining);
        if (wait === null) {
          throw new ProviderError(failure.failure, failure.message, { ...failure.details, attempts: asked });
        }
        attempt += 1;
        await delay(wait, undefined, { signal }).catch(() => {
          throw signal.reason;
        });
      }
    }
  }

  private agent(connectTimeoutMs: number): Agent {
    let agent = this.agents.get(connectTimeoutMs);
    if (!agent) {
      agent = new Agent({
        connectTimeout: connectTimeoutMs,
        // Ours are finer: first piece, idle, total.
        headersTimeout: 0,
        bodyTimeout: 0,
        pipelining: 1,
        maxHeaderSize: 65_536,
      });
      this.agents.set(connectTimeoutMs, agent);
    }
    return agent;
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
}

/** One HTTP request and its answer. */
class Exchange {
  private readonly outcome = Promise.withResolvers<CompletionStream>();
  private readonly stream: CompletionStream;
  private controller: Dispatcher.DispatchController | undefined;
  private timer: NodeJS.Timeout | undefined;
  private lastRead = 0;
  private status = 0;
  private headers: Record<string, string | string[] | undefined> = {};
  /** Set for an answer that is not an event stream: its body is read whole. */
  private body: Buffer[] | undefined;
  private bodyBytes = 0;
  private settled = false;

  constructor(
    private readonly request: TextRequest,
    sink: TextSink,
    private readonly startedAt: number,
  ) {
    this.stream = new CompletionStream(sink);
  }

  async run(agent: Agent, body: string): Promise<CompletionStream> {
    const { endpoint, signal } = this.request;
    const url = new URL(`${endpoint.baseUrl.replace(/\/+$/, '')}/chat/completions`);
    const onAbort = (): void => this.fail(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    this.watch();
    try {
      agent.dispatch(
        {
          origin: url.origin,
          path: url.pathname + url.search,
          method: 'POST',
          headers: {
            'content-type': 'application/json',
            accept: 'text/event-stream',
            ...(endpoint.apiKey && { authorization: `Bearer ${endpoint.apiKey}` }),
            ...endpoint.headers,
          },
          body,
        },
        {
          onRequestStart: (controller) => {
            this.controller = controller;
            if (this.settled) controller.abort(new Error('settled'));
          },
          onResponseStart: (_controller, status, headers) => this.onHead(status, headers),
          onResponseData: (_controller, chunk) => this.guard(() => this.onData(chunk)),
          onResponseEnd: () => this.guard(() => this.onEnd()),
          onResponseError: (_controller, error) => this.fail(this.explain(error)),
        },
      );
      return await this.outcome.promise;
    } finally {
      clearTimeout(this.timer);
      signal.removeEventListener('abort', onAbort);
    }
  }

  /** One timer a request, re-armed when it fires and not with every read. */
  private watch(): void {
    const { firstPieceTimeoutMs, idleTimeoutMs, totalTimeoutMs } = this.request.endpoint;
    const total = this.startedAt + totalTimeoutMs;
    const phase = this.stream.spoke
      ? { at: this.lastRead + idleTimeoutMs, what: 'sent nothing more in time' }
      : { at: this.startedAt + firstPieceTimeoutMs, what: 'sent no answer in time' };
    const { at, what } = total < phase.at ? { at: total, what: 'took too long in all' } : phase;
    const left = at - Date.now();
    if (left <= 0) {
      this.fail(new ProviderError('timeout', `The model provider ${what}.`, { attempts: 1 }));
      return;
    }
    // After the first piece the deadline may be earlier than the one armed before it.
    this.timer = setTimeout(
      () => this.watch(),
      this.stream.spoke ? left : Math.min(left, Math.max(idleTimeoutMs, 1)),
    );
  }

  private onHead(status: number, headers: Record<string, string | string[] | undefined>): void {
    this.status = status;
    this.headers = headers;
    this.lastRead = Date.now();
    if (
      status < 200 ||
      status > 299 ||
      /application\/json|text\/html/i.test(this.header('content-type') ?? '')
    )
      this.body = [];
  }

  private onData(chunk: Buffer): void {
    this.lastRead = Date.now();
    if (!this.body) {
      this.stream.read(chunk);
      return;
    }
    this.body.push(chunk);
    this.bodyBytes += chunk.length;
    const most = this.status === 200 ? MAX_WHOLE_BYTES : MAX_ERROR_BYTES;
    if (this.bodyBytes > most) this.onEnd();
  }

  private onEnd(): void {
    if (this.body) {
      this.onWhole(Buffer.concat(this.body).toString('utf8'));
      return;
    }
    const { stream } = this;
    stream.finish();
    // A missing [DONE] is forgiven; an end without any word of an end, of an answer or of its cost, is not.
    if (stream.done || stream.finishReason !== null || stream.spoke) this.succeed();
    else
      this.fail(
        new ProviderError('malformed', 'The model provider ended the stream without an answer.', {
          attempts: 1,
        }),
      );
  }

  private onWhole(text: string): void {
    const { status } = this;
    let json: unknown;
    try {
      json = JSON.parse(text);
    } catch {
      json = null;
    }
    if (status === 200 && typeof json === 'object' && json !== null && 'choices' in json) {
      this.stream.whole(json);
      this.succeed();
      return;
    }
    const said = errorText(json);
    const details = { status, attempts: 1, retryAfterMs: parseRetryAfter(this.header('retry-after')) };
    // An HTML page or an empty body tells a tenant nothing; what the provider says in its own words does.
    const told = said ? `: ${redact(said, this.request.endpoint.apiKey)}` : '.';
    const failure =
      status === 429
        ? 'rate-limited'
        : status >= 500
          ? 'failed'
          : status >= 200 && status < 300
            ? said
              ? 'failed'
              : 'malformed'
            : 'refused';
    const what = status >= 200 && status < 300 ? 'sent no stream' : `answered ${status}`;
    this.fail(new ProviderError(failure, shorten(`The model provider ${what}${told}`), cleaned(details)));
  }

  private explain(error: Error): unknown {
    if (error instanceof ProviderError) return error;
    const code = (error as NodeJS.ErrnoException).code ?? '';
    if (code === 'UND_ERR_CONNECT_TIMEOUT') {
      return new ProviderError('timeout', 'The model provider could not be connected to in time.', {
        attempts: 1,
        cause: error,
      });
    }
    if (this.status === 0) {
      return new ProviderError('unreachable', 'The model provider could not be reached.', {
        attempts: 1,
        cause: error,
      });
    }
    // The connection broke in the middle. If the answer had been completed before, nothing is missing.
    if (this.stream.done || this.stream.finishReason !== null) return null;
    return new ProviderError('failed', 'The model provider broke off in the middle of its answer.', {
      attempts: 1,
      cause: error,
    });
  }

  private guard(work: () => void): void {
    if (this.settled) return;
    try {
      work();
    } catch (error) {
      this.fail(error);
    }
  }

  private succeed(): void {
    if (this.settled) return;
    this.settled = true;
    this.outcome.resolve(this.stream);
  }

  /** Ends the exchange; the provider's connection is destroyed at once. Null: what broke had been complete. */
  private fail(error: unknown): void {
    if (this.settled) return;
    if (error === null) {
      this.stream.finish();
      this.succeed();
      return;
    }
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

function refusesOptions({ message, details }: ProviderError): boolean {
  return (details.status === 400 || details.status === 422) && /stream_options|include_usage/i.test(message);
}

function usageOf({ usage }: CompletionStream): TextUsage | null {
  if (usage?.prompt_tokens === undefined || usage.completion_tokens === undefined) return null;
  const { prompt_tokens: promptTokens, completion_tokens: completionTokens } = usage;
  return {
    promptTokens,
    completionTokens,
    totalTokens: usage.total_tokens ?? promptTokens + completionTokens,
  };
}

/** Some providers quote the key they refuse. */
function redact(text: string, apiKey: string | undefined): string {
  return apiKey && apiKey.length >= 4 ? text.replaceAll(apiKey, '[key]') : text;
}

function cleaned(details: { status: number; attempts: number; retryAfterMs: number | undefined }) {
  const { retryAfterMs, ...rest } = details;
  return retryAfterMs === undefined ? rest : { ...rest, retryAfterMs };
}
