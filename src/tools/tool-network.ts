import { isIP } from 'node:net';
import { Injectable, type OnApplicationShutdown } from '@nestjs/common';
import { Agent, fetch } from 'undici';
import { guardedLookup, hostOf, isPrivateAddress, RefusedAddressError } from '../common';
import { Config } from '../config';
import { ToolFailure } from './tool-failure';

const CONNECT_MS = 5_000;
/** Above the limit of a call, which says it better. */
const SILENCE_MS = 35_000;
export const MAX_ANSWER_BYTES = 1_048_576;

export class AnswerTooLarge extends ToolFailure {
  constructor() {
    super('its answer is over 1 MiB');
  }
}

/**
 * The only way from here to anybody else's server: never to a private address unless the installation allows it, never
 * along a redirect, and never for more than 1 MiB (counted unpacked).
 */
@Injectable()
export class ToolNetwork implements OnApplicationShutdown {
  private readonly agent: Agent;

  constructor(private readonly config: Config) {
    this.agent = new Agent({
      connect: { timeout: CONNECT_MS, lookup: guardedLookup((address) => this.refused(address)) },
      headersTimeout: SILENCE_MS,
      bodyTimeout: SILENCE_MS,
    });
  }

  async onApplicationShutdown(): Promise<void> {
    await this.agent.destroy();
  }

  refused(address: string): boolean {
    return !this.config.privateProviderAddresses && isPrivateAddress(address);
  }

  /**
   * fetch, but for the guards. A body that grows too large fails its reader with AnswerTooLarge and tells `onTooLarge`;
   * a redirect is an answer like any other.
   */
  async fetch(
    url: string | URL,
    init: RequestInit = {},
    onTooLarge?: (error: Error) => void,
  ): Promise<Response> {
    const host = hostOf(String(url));
    if (isIP(host) && this.refused(host)) throw new RefusedAddressError();
    const answer = await fetch(String(url), {
      method: init.method ?? 'GET',
      headers: { 'user-agent': 'Parley-Tools/1', ...Object.fromEntries(new Headers(init.headers)) },
      body: (init.body as string | null | undefined) ?? null,
      signal: init.signal ?? null,
      redirect: 'manual',
      dispatcher: this.agent,
    });
    return new Response(answer.body && bounded(answer.body as ReadableStream<Uint8Array>, onTooLarge), {
      status: answer.status,
      headers: [...answer.headers],
    });
  }
}

function bounded(
  body: ReadableStream<Uint8Array>,
  onTooLarge?: (error: Error) => void,
): ReadableStream<Uint8Array> {
  let left = MAX_ANSWER_BYTES;
  const meter = new TransformStream<Uint8Array, Uint8Array>({
    transform(chunk, controller) {
      left -= chunk.byteLength;
      if (left >= 0) return controller.enqueue(chunk);
      const error = new AnswerTooLarge();
      controller.error(error);
      onTooLarge?.(error);
    },
  });
  return body.pipeThrough(meter);
}
