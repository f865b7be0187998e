import type { OutgoingHttpHeaders, ServerResponse } from 'node:http';
import { Injectable, Logger, type OnApplicationShutdown } from '@nestjs/common';
import { Config } from '../config';
import { SseStream, type BatchFormat } from './sse-stream';

/** An idle stream gets a comment this often. */
const KEEP_ALIVE_MS = 15_000;
const TICK_MS = 5_000;
/** Within the time a reader may read nothing for. */
const LOOKS = 4;

/** Of what is kept: it goes on, and can be read from where the client was. A comment, which no client takes for an event. */
export const RE_ATTACH = ': ended, for it was read too slowly: re-attach to get the rest\n\n';

/** What of an HTTP framework's answer a stream takes over. */
export interface StreamReply {
  readonly raw: ServerResponse;
  hijack(): unknown;
  getHeaders(): object;
}

/** Every open SSE stream of this process: opens them, keeps idle ones alive, and gives up on who does not read. */
@Injectable()
export class SseStreams implements OnApplicationShutdown {
  private readonly logger = new Logger(SseStreams.name);
  private readonly open = new Set<SseStream>();
  private readonly slowMs: number;
  private readonly tickMs: number;
  /** One for all: a thousand streams cost a thousand comparisons every few seconds. */
  private readonly timer: NodeJS.Timeout;

  constructor({ env }: Config) {
    this.slowMs = env.STREAM_SLOW_READER_SECONDS * 1_000;
    this.tickMs = Math.min(TICK_MS, this.slowMs / LOOKS);
    this.timer = setInterval(() => this.tick(), this.tickMs).unref();
  }

  /** Takes the answer over. `lastWords` are for who is given up because it reads nothing. */
  begin(reply: StreamReply, format: BatchFormat, lastWords: () => string = () => RE_ATTACH): SseStream {
    reply.hijack();
    return new SseStream(reply.raw, format, this, lastWords, reply.getHeaders() as OutgoingHttpHeaders);
  }

  /** Open ones. */
  get size(): number {
    return this.open.size;
  }

  opened(stream: SseStream): void {
    this.open.add(stream);
  }

  closed(stream: SseStream): void {
    this.open.delete(stream);
  }

  onApplicationShutdown(): void {
    clearInterval(this.timer);
  }

  private tick(): void {
    const now = Date.now();
    let slow = 0;
    for (const stream of this.open) if (stream.look(now, this.slowMs, KEEP_ALIVE_MS - this.tickMs)) slow += 1;
    if (slow > 0)
      this.logger.log(`${slow} streams ended: their clients read nothing for ${this.slowMs / 1_000} s`);
  }
}
