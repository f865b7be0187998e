import { setTimeout as delay } from 'node:timers/promises';
import type { Dispatcher, Outbound } from '../../outbound';
import { errorText } from './completion-stream';
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
import { ProviderError, type ProviderEndpoint } from './text-driver';

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

/** `POST`s that are answered in one piece. */
export class ProviderRequests {
  constructor(private readonly outbound: Outbound) {}

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
        refusal = withAttempts(error, attempt, shownMessage(error.message, endpoint));
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
      const { origin, path } = targetOf(endpoint, call.path);
      const headers = {
        ...headersOf(endpoint, { accept: 'application/json' }),
        // Only we know it.
        'content-type': call.contentType,
      };
      const answer = await this.outbound.request(
        endpoint.policy,
        origin + path,
        { method: 'POST', headers, body, signal: AbortSignal.any([signal, deadline.signal]) },
        poolOf(endpoint),
      );
      answered = true;
      deadline.answered();
      const { statusCode: status } = answer;
      const fine = status >= 200 && status <= 299;
      const bytes = await wholeOf(answer.body, fine ? call.maxBytes : MAX_ERROR_BYTES, fine);
      if (fine) return bytes;
      throw refused(status, answer.headers['retry-after'], bytes);
    } catch (error) {
      if (error instanceof ProviderError || signal.aborted) throw error;
      if (deadline.signal.aborted) throw deadline.signal.reason;
      throw brokenOff(error as NodeJS.ErrnoException, answered);
    } finally {
      deadline.clear();
    }
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
  const message = shownMessage(`The model provider reported: ${said}`, endpoint);
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

function refused(status: number, retryAfter: string | string[] | undefined, body: Buffer): ProviderError {
  const said = errorText(parsedJson(body));
  const retryAfterMs = parseRetryAfter(Array.isArray(retryAfter) ? retryAfter[0] : retryAfter);
  // An HTML page or an empty body tells a tenant nothing; what the provider says in its own words does.
  return providerError(failureOf(status, false), `answered ${status}${said ? `: ${said}` : '.'}`, {
    status,
    ...(retryAfterMs !== undefined && { retryAfterMs }),
  });
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
