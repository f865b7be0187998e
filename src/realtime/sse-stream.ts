import type { OutgoingHttpHeaders, ServerResponse } from 'node:http';
import type { StreamBatch, StreamCursor } from './stream-log';

/** An idle stream gets a comment this often, so that nothing between us and the client takes it for dead. */
const KEEP_ALIVE_MS = 15_000;
/** A client that reads nothing for this long is let go; it can re-attach. */
const STALLED_MS = 60_000;
const PIECES_A_WRITE = 256;
const TICK_MS = 5_000;

/** How one wire writes a batch as SSE: the events' text. */
export type BatchFormat = (batch: StreamBatch) => string;

/**
 * One client on one reply. It takes from the cursor only while the socket takes from it: a client that does not read
 * costs its place in the log and one socket buffer, however long the reply grows.
 */
export class SseStream {
  private static readonly open = new Set<SseStream>();
  private static timer: NodeJS.Timeout | undefined;

  private cursor: StreamCursor | null = null;
  private blocked = false;
  private wrote = false;
  private lastWrite = Date.now();

  constructor(
    private readonly response: ServerResponse,
    private readonly format: BatchFormat,
    headers: OutgoingHttpHeaders = {},
  ) {
    response.writeHead(200, {
      ...headers,
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache, no-transform',
      connection: 'keep-alive',
      'x-accel-buffering': 'no', // nginx would hold the pieces back
    });
    response.on('drain', () => {
      this.blocked = false;
      this.pump();
    });
    response.on('close', () => this.detach());
    response.on('error', () => this.detach());
    SseStream.open.add(this);
    SseStream.timer ??= setInterval(() => SseStream.tick(), TICK_MS).unref();
  }

  /** Writes an event of its own, before any of the cursor's. */
  event(text: string): void {
    this.write(text);
  }

  /** From here on what the cursor has is what the client gets. */
  attach(cursor: StreamCursor): void {
    if (this.response.destroyed) {
      cursor.close();
      return;
    }
    this.cursor = cursor;
    this.pump();
    // A reader whose next piece is a minute away should know now that it was let in. Where something was written the
    // head went with it: one packet, not two, before the first event.
    if (!this.wrote) this.response.flushHeaders();
  }

  /** The cursor's `wake`. */
  readonly pump = (): void => {
    const { cursor } = this;
    if (!cursor) return;
    while (!this.blocked) {
      const batch = cursor.take(PIECES_A_WRITE);
      if (batch) this.write(this.format(batch));
      if (batch?.end || cursor.exhausted) return this.finish();
      if (!batch) return;
    }
  };

  /** Ends it before its time: what the cursor still has is not written, and who does not read is cut off. */
  cutOff(event: string): void {
    if (this.response.destroyed || this.response.writableEnded) return;
    if (this.blocked) this.response.destroy();
    else this.write(event);
    this.finish();
  }

  finish(): void {
    this.detach();
    this.response.end();
  }

  private write(text: string): void {
    this.lastWrite = Date.now();
    this.wrote = true;
    if (!this.response.write(text)) this.blocked = true;
  }

  private detach(): void {
    this.cursor?.close();
    this.cursor = null;
    SseStream.open.delete(this);
  }

  /** One timer for all streams: a thousand of them cost a thousand comparisons in five seconds. */
  private static tick(): void {
    const now = Date.now();
    for (const stream of SseStream.open) {
      const quiet = now - stream.lastWrite;
      if (stream.blocked ? quiet > STALLED_MS : false) stream.response.destroy();
      else if (!stream.blocked && quiet > KEEP_ALIVE_MS - TICK_MS) stream.write(': keep-alive\n\n');
    }
  }
}
