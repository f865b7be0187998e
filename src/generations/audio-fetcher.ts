import { Injectable } from '@nestjs/common';
import { badInput } from '../common';
import { download, DownloadError, Outbound } from '../outbound';

const LIMITS = { timeoutMs: 30_000, maxBytes: 26_214_400, maxRedirects: 3 };

/** Loads a recording from where a client says it is: never from inside our own network, 25 MiB and 30 s at most, three redirects. */
@Injectable()
export class AudioFetcher {
  constructor(private readonly outbound: Outbound) {}

  /** BAD_INPUT naming `url`, whatever the reason; `signal.reason` when aborted. */
  async fetch(url: string, signal: AbortSignal): Promise<Buffer> {
    try {
      return await download(this.outbound, url, { ...LIMITS, signal });
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      // Why a connection failed would tell what there is in our network.
      throw badInput('url', error instanceof DownloadError ? error.message : 'could not be fetched');
    }
  }
}
