import { Injectable } from '@nestjs/common';
import { AppError } from '../common';
import { download, Outbound } from '../outbound';

const LIMITS = { timeoutMs: 30_000, maxBytes: 20_971_520, maxRedirects: 3, type: /^image\//i };

/** Loads an image from where a provider says it is: never from inside our own network, 20 MiB and 30 s at most, three redirects. */
@Injectable()
export class ImageFetcher {
  constructor(private readonly outbound: Outbound) {}

  /** PROVIDER_FAILED, without the address in its message, whatever the reason; `signal.reason` when aborted. */
  async fetch(url: string, signal: AbortSignal): Promise<Buffer> {
    try {
      const inline = /^data:image\/[\w.+-]+;base64,/i.exec(url);
      if (inline) return Buffer.from(url.slice(inline[0].length), 'base64');
      return await download(this.outbound, url, { ...LIMITS, signal });
    } catch (cause) {
      if (signal.aborted) throw signal.reason;
      throw new AppError('PROVIDER_FAILED', {
        message: 'The model provider made an image that could not be fetched from where it says it is.',
        cause,
      });
    }
  }
}
