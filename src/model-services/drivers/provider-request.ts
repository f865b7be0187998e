import { setTimeout as delay } from 'node:timers/promises';
import { LRUCache } from 'lru-cache';
import { Agent, request as ask, type Dispatcher } from 'undici';
import { errorText, shorten } from './completion-stream';
import { parseRetryAfter, retryDelay } from './retry-policy';
import { ProviderError, type ProviderEndpoint, type ProviderFailure } from './text-driver';

/** One question to a provider whose answer is read whole. */
export interface ProviderCall {
  readonly endpoint: ProviderEndpoint;
  /** Under the endpoint's base URL: `/embeddings`. */
  readonly path: string;
  readonly contentType: string;
  readonly body: string | Buffer;
  /** A longer answer is refused as malformed. */
  readonly maxBytes: number;
  readonly signal: AbortSignal;
}

export interface ProviderAnswer {
  readonly body: Buffer;
  /** Requests made, refused ones included. */
  readonly attempts: number;
}

const MAX_ERROR_BYTES = 65_536;
const MAX_TIMER_MS = 2_147_483_647;
/** Shorter ones are no secret, and replacing them would garble the message. */
const MIN_SECRET_CHARS = 4;

/** `POST`s that are answered in one piece. Keeps connections open between them, a pool for each connect time-out. */
export class ProviderRequests {
  private readonly agents = new LRUCache<number, Agent>({ max: 16, dispose: (agent) => void agent.close() });

  /**
   * The body of a 2xx answer. Asks up to three times for what may pass. Rejects with {@link ProviderError}; with
   * `signal.reason` when aborted.
   */
  async post(call: ProviderCall): Promise<ProviderAnswer> {
    const { endpoint, signal } = call;
    const startedAt = performance.now();
    let refusal: ProviderError | undefined;
    for (let attempt = 1; ; attempt += 1) {
      signal.throwIfAborted();
      try {
        return { body: await this.once(call, startedAt), attempts: attempt };
      } catch (error) {
        if (signal.aborted) throw signal.reason;
        if (!(error instanceof ProviderError)) throw error;
        // Of a provider that refused and then was given too little time, the refusal is what there is to tell.
        if (error.failure === 'timeout' && refusal) throw withAttempts(refusal, attempt);
        const most = Math.min(endpoint.firstPieceTimeoutMs, endpoint.totalTimeoutMs);
        const wait = retryDelay(error, attempt, most - (performance.now() - startedAt));
        refusal = withAttempts(error, attempt, shorten(redact(error.message, endpoint)));
        if (wait === null) throw refusal;
        await delay(wait, undefined, { signal }).catch(() => {
          throw signal.reason;
        });
      }
    }
  }

  private async once(call: ProviderCall, startedAt: number): Promise<Buffer> {
    const { endpoint, body, signal } = call;
    const deadline = new Deadline(startedAt, endpoint);
    let answered = false;
    try {
      const answer = await ask(urlOf(call), {
        method: 'POST',
        headers: headersOf(call),
        body,
        dispatcher: this.agent(endpoint.connectTimeoutMs),
        signal: AbortSignal.any([signal, deadline.signal]),
      });
      answered = true;
      deadline.answered();
      const { statusCode: status, headers } = answer;
      const fine = status >= 200 && status <= 299;
      const bytes = await wholeOf(answer.body, fine ? call.maxBytes : MAX_ERROR_BYTES, fine);
      if (fine) return bytes;
      throw refused(status, headers['retry-after'], bytes);
    } catch (error) {
      if (error instanceof ProviderError || signal.aborted) throw error;
      if (deadline.signal.aborted) throw deadline.signal.reason;
      throw broken(error as NodeJS.ErrnoException, answered);
    } finally {
      deadline.clear();
    }
  }

  private agent(connectTimeoutMs: number): Agent {
    let agent = this.agents.get(connectTimeoutMs);
    if (!agent) {
      agent = new Agent({
        connectTimeout: connectTimeoutMs,
        // Ours are finer: headers, total.
        headersTimeout: 0,
        bodyTimeout: 0,
        pipelining: 1,
        // Aborting is destroying a socket; an HTTP/2 one would be other requests' too.
        allowH2: false,
        maxHeaderSize: 65_536,
      });
      this.agents.set(connectTimeoutMs, agent);
    }
    return agent;
  }
}

/** Aborts when the headers (`firstPieceTimeoutMs`) or the whole answer do not come in time, counted from the first attempt. */
class Deadline {
  private readonly controller = new AbortController();
  private readonly total: NodeJS.Timeout;
  private readonly headers: NodeJS.Timeout;

  constructor(startedAt: number, { firstPieceTimeoutMs, totalTimeoutMs }: ProviderEndpoint) {
    const after = (ms: number, what: string): NodeJS.Timeout => {
      const left = Math.max(0, startedAt + ms - performance.now());
      const abort = (): void => this.controller.abort(providerError('timeout', what));
      return setTimeout(abort, Math.min(left, MAX_TIMER_MS));
    };
    this.total = after(totalTimeoutMs, 'took too long in all.');
    this.headers = after(firstPieceTimeoutMs, 'sent no answer in time.');
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  answered(): void {
    clearTimeout(this.headers);
  }

  clear(): void {
    clearTimeout(this.headers);
    clearTimeout(this.total);
  }
}

/** What the provider sent was no answer to what was asked. `what` completes "The model provider sent …". */
export function malformed(what: string, attempts: number): ProviderError {
  return new ProviderError('malformed', `The model provider sent ${what}.`, { attempts });
}

/** What the provider reports as JSON with status 200, in its own words; else null. */
export function reportedFailure(
  json: unknown,
  attempts: number,
  endpoint: ProviderEndpoint,
): ProviderError | null {
  const isObject = typeof json === 'object' && json !== null;
  const said = isObject && 'error' in json && json.error ? errorText(json) : null;
  if (said === null) return null;
  const message = shorten(redact(`The model provider reported: ${said}`, endpoint));
  return new ProviderError('failed', message, { attempts });
}

async function wholeOf(
  body: Dispatcher.ResponseData['body'],
  maxBytes: number,
  strict: boolean,
): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  // Leaving the loop early destroys the body, and with it the connection; it then emits an error, whoever listens.
  body.on('error', () => undefined);
  for await (const chunk of body as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    chunks.push(chunk);
    if (bytes <= maxBytes) continue;
    if (!strict) break;
    throw malformed(`more than ${Math.floor(maxBytes / 1_048_576)} MiB`, 1);
  }
  return Buffer.concat(chunks);
}

function urlOf({ endpoint: { baseUrl }, path }: ProviderCall): URL {
  // Not the URL's own error: that one quotes the address.
  if (!URL.canParse(baseUrl)) throw providerError('refused', 'cannot be asked: its address is not valid.');
  const url = new URL(baseUrl);
  url.pathname = `${url.pathname.replace(/\/+$/, '')}${path}`;
  return url;
}

/** The provider's own headers win, however they are cased, but for the content type, which only we know. */
function headersOf({ endpoint: { apiKey, headers }, contentType }: ProviderCall): Record<string, string> {
  const own = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value] as const);
  return {
    accept: 'application/json',
    ...(apiKey && { authorization: `Bearer ${apiKey}` }),
    ...Object.fromEntries(own),
    'content-type': contentType,
  };
}

function refused(status: number, retryAfter: string | string[] | undefined, body: Buffer): ProviderError {
  const said = errorText(parsedJson(body));
  const retryAfterMs = parseRetryAfter(Array.isArray(retryAfter) ? retryAfter[0] : retryAfter);
  // An HTML page or an empty body tells a tenant nothing; what the provider says in its own words does.
  return providerError(failureOf(status), `answered ${status}${said ? `: ${said}` : '.'}`, {
    status,
    ...(retryAfterMs !== undefined && { retryAfterMs }),
  });
}

function failureOf(status: number): ProviderFailure {
  if (status === 429) return 'rate-limited';
  if (status >= 500) return 'failed';
  return status >= 400 ? 'refused' : 'malformed';
}

function broken(cause: NodeJS.ErrnoException, answered: boolean): ProviderError {
  const code = cause.code ?? '';
  if (code === 'UND_ERR_CONNECT_TIMEOUT')
    return providerError('timeout', 'could not be connected to in time.', { cause });
  if (code === 'UND_ERR_INVALID_ARG')
    return providerError('refused', 'cannot be asked: its address or a header is not valid.', { cause });
  if (answered) return providerError('failed', 'broke off in the middle of its answer.', { cause });
  if (code.startsWith('HPE_') || code === 'UND_ERR_HEADERS_OVERFLOW')
    return providerError('malformed', 'answered no HTTP.', { cause });
  return providerError('unreachable', 'could not be reached.', { cause });
}

function providerError(
  failure: ProviderFailure,
  what: string,
  details: { status?: number; retryAfterMs?: number; cause?: unknown } = {},
): ProviderError {
  return new ProviderError(failure, `The model provider ${what}`, { ...details, attempts: 1 });
}

export function withAttempts(error: ProviderError, attempts: number, message = error.message): ProviderError {
  return new ProviderError(error.failure, message, { ...error.details, attempts });
}

export function parsedJson(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString('utf8')) as unknown;
  } catch {
    return null;
  }
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
