import type { OutgoingHttpHeaders, ServerResponse } from 'node:http';
import { unsent } from './reading-watch';
import type { StreamBatch, StreamCursor } from './stream-log';

/** One write: so many pieces, or pieces of so many UTF-16 units together. */
const PIECES_A_WRITE = 256;
const CHARS_A_WRITE = 16_384;
/** Who was given up has so long to read that it was. */
const LAST_WORDS_MS = 5_000;

/** How one wire writes a batch as SSE: the events' text. */
export type BatchFormat = (batch: StreamBatch) => string;

/** What a stream tells of itself to who keeps all of them. */
export interface StreamKeeper {
  opened(stream: SseStream): void;
  closed(stream: SseStream): void;
}

/**
 * One client on one reply. It takes from the cursor only while the socket takes from it: a client that does not read
 * costs its place in the log and one write, however long the reply grows.
 */
export class SseStream {
  private cursor: StreamCursor | null = null;
  private blocked = false;
  /** Nothing more is written; what was is still to be read. */
  private ending = false;
  private wrote = false;
  private lastWrite = Date.now();
  private unsent = 0;
  private readAt = 0;

  constructor(
    private readonly response: ServerResponse,
    private readonly format: BatchFormat,
    private readonly keeper: StreamKeeper,
    /** Called when the client is given up for reading nothing: the last that is written to it. */
    private readonly lastWords: () => string,
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
    keeper.opened(this);
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
      const batch = cursor.take(PIECES_A_WRITE, CHARS_A_WRITE);
      if (batch) this.write(this.format(batch));
      if (batch?.end || cursor.exhausted) return this.finish();
      if (!batch) return;
    }
  };

  /** Ends it before its time: what the cursor still has is not written, and who does not read is cut off. */
  cutOff(event: string): void {
    if (this.response.destroyed || this.response.writableEnded) return;
    if (this.blocked) {
      this.response.destroy();
      return;
    }
    this.end(event);
    this.readAt = Date.now();
  }

  /** Watched until all of it has left: who does not read the end either is let go like any other. */
  finish(): void {
    this.end('');
    this.readAt = Date.now();
  }

  /** Who reads nothing for `slowMs` is given up; who is idle for `quietMs` gets a comment. True: given up now. */
  look(now: number, slowMs: number, quietMs: number): boolean {
    if (!this.blocked && !this.ending) {
      // So that nothing between us and the client takes it for dead.
      if (now - this.lastWrite > quietMs) this.write(': keep-alive\n\n');
      return false;
    }
    const left = this.response.socket ? unsent(this.response.socket) : 0;
    if (left !== this.unsent) {
      this.unsent = left;
      this.readAt = now;
      return false;
    }
    if (now - this.readAt < slowMs) return false;
    this.keeper.closed(this);
    if (this.ending) this.response.destroy();
    else {
      this.end(this.lastWords());
      setTimeout(() => this.response.destroy(), LAST_WORDS_MS).unref();
    }
    return true;
  }

  private end(last: string): void {
    this.ending = true;
    this.cursor?.close();
    this.cursor = null;
    this.response.end(last);
  }

  private write(text: string): void {
    this.lastWrite = Date.now();
    this.wrote = true;
    if (this.response.write(text)) return;
    this.blocked = true;
    this.readAt = this.lastWrite;
  }

  private detach(): void {
    this.cursor?.close();
    this.cursor = null;
    this.keeper.closed(this);
  }
}
