import { setTimeout as delay } from 'node:timers/promises';
import { Injectable } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { Agent, type Dispatcher } from 'undici';
import { CompletionStream, errorText, shorten } from './completion-stream';
import { parseRetryAfter, retryDelay } from './retry-policy';
import { callIdsOf } from './tool-calls';
import {
  ProviderError,
  TextDriver,
  type ProviderEndpoint,
  type ProviderFailure,
  type TextRequest,
  type TextResult,
  type TextSink,
  type TextUsage,
  type ToolCallDelta,
} from './text-driver';

const MAX_ERROR_BYTES = 65_536;
/** A whole answer that came as JSON although a stream was asked for. */
const MAX_WHOLE_BYTES = 8_388_608;
const MAX_REMEMBERED = 10_000;
/** A provider that leaves the connection open after `[DONE]` has this long to close it. */
const LINGER_MS = 1_000;
const MAX_TIMER_MS = 2_147_483_647;
/** Shorter ones are no secret, and replacing them would garble the message. */
const MIN_SECRET_CHARS = 4;
/** Ends a last line and event that the provider left open. */
const BLANK_LINE = Buffer.from('\n\n');

/** `POST <baseUrl>/chat/completions`, streamed. Keeps connections open between requests, a pool for each connect time-out. */
@Injectable()
export class OpenAiCompatibleDriver extends TextDriver {
  private readonly agents = new LRUCache<number, Agent>({ max: 16, dispose: (agent) => void agent.close() });
  /** Providers that refused `stream_options` once are not asked with it again. */
  private readonly refusing = new LRUCache<string, true>({ max: MAX_REMEMBERED });

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
          this.agent(endpoint.connectTimeoutMs),
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
        refusal = new ProviderError(error.failure, shorten(redact(error.message, endpoint)), {
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

  private agent(connectTimeoutMs: number): Agent {
    let agent = this.agents.get(connectTimeoutMs);
    if (!agent) {
      agent = new Agent({
        connectTimeout: connectTimeoutMs,
        // Ours are finer: first piece, idle, total.
        headersTimeout: 0,
        bodyTimeout: 0,
        pipelining: 1,
        // Aborting is destroying a socket; an HTTP/2 one would be other replies' too.
        allowH2: false,
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

  async run(agent: Agent, body: string): Promise<CompletionStream> {
    const { endpoint, signal } = this.request;
    const target = targetOf(endpoint);
    const onAbort = (): void => this.fail(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    this.watch();
    try {
      if (!this.settled) {
        agent.dispatch({ ...target, method: 'POST', headers: headersOf(endpoint), body }, this.handler());
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
    const phase = spoke
      ? { at: this.lastRead + idleTimeoutMs, what: 'sent nothing more in time' }
      : { at: this.startedAt + firstPieceTimeoutMs, what: 'sent no answer in time' };
    const { at, what } = total < phase.at ? { at: total, what: 'took too long in all' } : phase;
    const left = at - performance.now();
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
      return;
    }
    this.body.push(bytes);
    this.bodyBytes += bytes.length;
    if (this.bodyBytes > this.maxBodyBytes) this.whole(this.body);
  };

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
    throw providerError(failureOf(status, said), what + told, {
      status,
      ...(retryAfterMs !== undefined && { retryAfterMs }),
    });
  }

  private broken(cause: Error): void {
    const code = (cause as NodeJS.ErrnoException).code ?? '';
    // If the answer had been completed before, nothing is missing.
    if (this.stream.done || this.stream.finishReason !== null) this.complete();
    else if (code === 'UND_ERR_CONNECT_TIMEOUT')
      throw providerError('timeout', 'could not be connected to in time.', { cause });
    else if (code === 'UND_ERR_INVALID_ARG')
      throw providerError('refused', 'cannot be asked: its address or a header is not valid.', { cause });
    else if (this.status !== 0)
      throw providerError('failed', 'broke off in the middle of its answer.', { cause });
    else if (code.startsWith('HPE_') || code === 'UND_ERR_HEADERS_OVERFLOW')
      throw providerError('malformed', 'answered no HTTP.', { cause });
    else throw providerError('unreachable', 'could not be reached.', { cause });
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

function targetOf({ baseUrl }: ProviderEndpoint): { origin: string; path: string } {
  // Not the URL's own error: that one quotes the address.
  if (!URL.canParse(baseUrl)) throw providerError('refused', 'cannot be asked: its address is not valid.');
  const { origin, pathname, search } = new URL(baseUrl);
  return { origin, path: `${pathname.replace(/\/+$/, '')}/chat/completions${search}` };
}

/** The provider's own headers win, however they are cased. */
function headersOf({ apiKey, headers }: ProviderEndpoint): Record<string, string> {
  const own = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value] as const);
  return {
    'content-type': 'application/json',
    accept: 'text/event-stream',
    ...(apiKey && { authorization: `Bearer ${apiKey}` }),
    ...Object.fromEntries(own),
  };
}

function failureOf(status: number, said: string | null): ProviderFailure {
  if (status === 429) return 'rate-limited';
  if (status >= 500) return 'failed';
  if (status >= 400) return 'refused';
  return status <= 299 && said ? 'failed' : 'malformed';
}

function providerError(
  failure: ProviderFailure,
  what: string,
  details: { status?: number; retryAfterMs?: number; cause?: unknown } = {},
): ProviderError {
  return new ProviderError(failure, `The model provider ${what}`, {
    ...details,
    attempts: 1,
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

/** Some providers quote the key they refuse, or the address they were asked at. */
function redact(message: string, endpoint: ProviderEndpoint): string {
  let text = message.replace(/\s+/g, ' ');
  for (const [secret, mark] of secretsOf(endpoint)) {
    text = text.replaceAll(secret, mark);
    // A message already shortened may end inside of one.
    for (let n = secret.length - 1; text.endsWith('…') && n >= MIN_SECRET_CHARS; n -= 1) {
      if (text.endsWith(`${secret.slice(0, n)}…`)) text = `${text.slice(0, -n - 1)}${mark}`;
    }
  }
  return text;
}

/** Longest first: the base URL holds the host. */
function secretsOf({ apiKey = '', headers, baseUrl }: ProviderEndpoint): (readonly [string, string])[] {
  const values = Object.values(headers).flatMap((value) => [value, ...value.split(/\s+/)]);
  const { origin, host, hostname } = URL.canParse(baseUrl)
    ? new URL(baseUrl)
    : { origin: '', host: '', hostname: '' };
  return [
    ...[apiKey, ...values].map((secret) => [secret.trim().replace(/\s+/g, ' '), '[key]'] as const),
    ...[baseUrl, origin, host, hostname].map((secret) => [secret, '[address]'] as const),
  ]
    .filter(([secret]) => secret.length >= MIN_SECRET_CHARS)
    .sort(([a], [b]) => b.length - a.length);
}
