import type { Dispatcher } from 'undici';
import type { Outbound } from './outbound';

export interface DownloadOptions {
  readonly maxBytes: number;
  readonly timeoutMs: number;
  /** How often the file may have moved. */
  readonly maxRedirects: number;
  /** What its content type has to begin with. */
  readonly type?: RegExp;
  readonly signal: AbortSignal;
}

const REDIRECTS = new Set([301, 302, 303, 307, 308]);
const MIB = 1_048_576;

/** A file that is not had, for a reason that may be told; it completes "The file …". */
export class DownloadError extends Error {}

/**
 * A file from an address that somebody names, under the policy `media`. Each redirect is a request of its own, through
 * the guard like the first; none carries a credential. Rejects with {@link DownloadError}, or with whatever broke the
 * connection, which is not to be told: it would say what there is in our network.
 */
export async function download(outbound: Outbound, url: string, options: DownloadOptions): Promise<Buffer> {
  const signal = AbortSignal.any([options.signal, AbortSignal.timeout(options.timeoutMs)]);
  let at = url;
  for (let redirects = 0; redirects <= options.maxRedirects; redirects += 1) {
    const answer = await ask(outbound, at, { ...options, signal });
    if (Buffer.isBuffer(answer)) return answer;
    at = answer.movedTo;
  }
  throw new DownloadError('leads from one address to the next');
}

async function ask(
  outbound: Outbound,
  url: string,
  { timeoutMs, maxBytes, type, signal }: DownloadOptions,
): Promise<Buffer | { readonly movedTo: string }> {
  if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol))
    throw new DownloadError('must be an address that begins with http:// or https://');
  const pool = { connectMs: timeoutMs, silenceMs: timeoutMs };
  const { statusCode, headers, body } = await outbound.request('media', url, { method: 'GET', signal }, pool);
  // Destroyed before its end it emits an error, whoever listens.
  body.on('error', () => undefined);
  try {
    const { location } = headers;
    if (REDIRECTS.has(statusCode) && typeof location === 'string' && URL.canParse(location, url))
      return { movedTo: new URL(location, url).href };
    if (statusCode !== 200) throw new DownloadError(`could not be fetched: it answers ${statusCode}`);
    if (type && !type.test(String(headers['content-type'])))
      throw new DownloadError('is of another type than was asked for');
    return await bytesOf(body, maxBytes);
  } finally {
    body.destroy();
  }
}

async function bytesOf(body: Dispatcher.ResponseData['body'], maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of body as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > maxBytes)
      throw new DownloadError(`must be a file of at most ${Math.floor(maxBytes / MIB)} MiB`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
