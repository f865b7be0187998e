import { Injectable } from '@nestjs/common';
import { Outbound } from '../outbound';
import { ToolFailure } from './tool-failure';

/** The silence is above the limit of a call, which says it better. */
const POOL = { connectMs: 5_000, silenceMs: 35_000 };
export const MAX_ANSWER_BYTES = 1_048_576;

export class AnswerTooLarge extends ToolFailure {
  constructor() {
    super('its answer is over 1 MiB');
  }
}

/** The way to a tool's server: never along a redirect, and never for more than 1 MiB (counted unpacked). */
@Injectable()
export class ToolNetwork {
  constructor(private readonly outbound: Outbound) {}

  /** BAD_INPUT naming `field` for an address that may not be called. */
  check(field: string, url: string): Promise<void> {
    return this.outbound.check('tool', field, url);
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
    const headers = { 'user-agent': 'Parley-Tools/1', ...Object.fromEntries(new Headers(init.headers)) };
    const {
      body,
      status,
      headers: said,
    } = await this.outbound.fetch('tool', url, { ...init, headers }, POOL);
    return new Response(body && bounded(body, onTooLarge), { status, headers: said });
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
