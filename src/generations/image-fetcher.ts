import { isIP } from 'node:net';
import { Agent, request } from 'undici';
import { AppError, guardedLookup, hostOf, isPrivateAddress } from '../common';

const TIMEOUT_MS = 30_000;
const MAX_BYTES = 20_971_520;

/** Loads an image from where a provider says it is: never from inside our own network, 20 MiB and 30 s at most, following no redirect. */
export class ImageFetcher {
  private readonly agent: Agent;

  constructor(private readonly refused: (address: string) => boolean = isPrivateAddress) {
    this.agent = new Agent({
      connect: { timeout: TIMEOUT_MS, lookup: guardedLookup(refused) },
      headersTimeout: TIMEOUT_MS,
      bodyTimeout: TIMEOUT_MS,
    });
  }

  /** PROVIDER_FAILED, without the address in its message, whatever the reason; `signal.reason` when aborted. */
  async fetch(url: string, signal: AbortSignal): Promise<Buffer> {
    try {
      const inline = /^data:image\/[\w.+-]+;base64,/i.exec(url);
      if (inline) return Buffer.from(url.slice(inline[0].length), 'base64');
      return await this.load(url, AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]));
    } catch (cause) {
      if (signal.aborted) throw signal.reason;
      throw new AppError('PROVIDER_FAILED', {
        message: 'The model provider made an image that could not be fetched from where it says it is.',
        cause,
      });
    }
  }

  private async load(url: string, signal: AbortSignal): Promise<Buffer> {
    const { protocol } = new URL(url);
    if (protocol !== 'https:' && protocol !== 'http:') throw new Error('no address of the web');
    const host = hostOf(url);
    if (isIP(host) && this.refused(host)) throw new Error('a private address');
    const { statusCode, headers, body } = await request(url, { dispatcher: this.agent, signal });
    // Destroyed before its end it emits an error, whoever listens.
    body.on('error', () => undefined);
    const chunks: Buffer[] = [];
    let bytes = 0;
    try {
      if (statusCode !== 200) throw new Error(`answered ${statusCode}`);
      if (!/^image\//i.test(String(headers['content-type']))) throw new Error('not an image');
      for await (const chunk of body as AsyncIterable<Buffer>) {
        bytes += chunk.length;
        if (bytes > MAX_BYTES) throw new Error('too large');
        chunks.push(chunk);
      }
    } finally {
      body.destroy();
    }
    return Buffer.concat(chunks);
  }
}
