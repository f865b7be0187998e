import { isIP } from 'node:net';
import { Agent, request, type Dispatcher } from 'undici';
import { badInput, guardedLookup, hostOf, isPrivateAddress } from '../common';

const TIMEOUT_MS = 30_000;
const MAX_BYTES = 26_214_400;
const MAX_REDIRECTS = 3;
const REDIRECTS = new Set([301, 302, 303, 307, 308]);

class Unfit extends Error {}

/** Loads a recording from where a client says it is: never from inside our own network, 25 MiB and 30 s at most, three redirects. */
export class AudioFetcher {
  private readonly agent: Agent;

  constructor(private readonly refused: (address: string) => boolean = isPrivateAddress) {
    this.agent = new Agent({
      connect: { timeout: TIMEOUT_MS, lookup: guardedLookup(refused) },
      headersTimeout: TIMEOUT_MS,
      bodyTimeout: TIMEOUT_MS,
    });
  }

  /** BAD_INPUT naming `url`, whatever the reason; `signal.reason` when aborted. */
  async fetch(url: string, signal: AbortSignal): Promise<Buffer> {
    const timed = AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]);
    try {
      let at = url;
      for (let redirects = 0; redirects <= MAX_REDIRECTS; redirects += 1) {
        const answer = await this.ask(at, timed);
        if (Buffer.isBuffer(answer)) return answer;
        at = answer.movedTo;
      }
      throw new Unfit('leads from one address to the next');
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      // Why a connection failed would tell what there is in our network.
      throw badInput('url', error instanceof Unfit ? error.message : 'could not be fetched');
    }
  }

  private async ask(url: string, signal: AbortSignal): Promise<Buffer | { readonly movedTo: string }> {
    if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol))
      throw new Unfit('must be an address that begins with http:// or https://');
    const host = hostOf(url);
    if (isIP(host) && this.refused(host)) throw new Unfit('could not be fetched');
    const { statusCode, headers, body } = await request(url, { dispatcher: this.agent, signal });
    // Destroyed before its end it emits an error, whoever listens.
    body.on('error', () => undefined);
    try {
      const { location } = headers;
      if (REDIRECTS.has(statusCode) && typeof location === 'string' && URL.canParse(location, url))
        return { movedTo: new URL(location, url).href };
      if (statusCode !== 200) throw new Unfit(`could not be fetched: it answers ${statusCode}`);
      return await bytesOf(body);
    } finally {
      body.destroy();
    }
  }
}

async function bytesOf(body: Dispatcher.ResponseData['body']): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of body as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > MAX_BYTES) throw new Unfit('must be a file of at most 25 MiB');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
