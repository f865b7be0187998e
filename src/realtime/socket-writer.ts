import type { Socket } from 'node:net';
import type { WebSocket } from 'ws';
import { textFrame } from './text-frame';

/** Whether a client should come back, and how (protocols/im.md, "Frames"). */
export const CLOSE = {
  restarting: 1001,
  tooSlow: 4008,
  flooding: 4029,
  unauthorized: 4401,
  suspended: 4403,
  replaced: 4409,
} as const;

const CLOSE_PATIENCE_MS = 5_000;
const SLOW = 'reading too slowly; come back and resume';

export interface WriterLimits {
  readonly maxBufferedBytes: number;
  /** Who reads nothing of what waits for so long is as slow as who lets too much wait. */
  readonly slowAfterMs: number;
}

const flushQueue: SocketWriter[] = [];

function flushAll(): void {
  for (const writer of flushQueue.splice(0)) writer.flush();
}

/** The way out to one open socket: whole frames, gathered into one write a turn of the event loop, bounded in bytes. */
export class SocketWriter {
  open = true;
  private readonly socket: Socket;
  private out: Buffer[] = [];
  private outBytes = 0;

  constructor(
    readonly ws: WebSocket,
    private readonly writerLimits: WriterLimits,
  ) {
    // Whole frames are written beside `ws`: without compression nothing of its own waits in between.
    this.socket = (ws as unknown as { _socket: Socket })._socket;
  }

  get buffered(): number {
    return this.outBytes + this.socket.writableLength;
  }

  /** A whole WebSocket frame. Closes the connection when too much is waiting for it. */
  write(frame: Buffer): void {
    if (!this.open) return;
    if (this.out.length === 0) {
      if (flushQueue.length === 0) queueMicrotask(flushAll);
      flushQueue.push(this);
    }
    this.out.push(frame);
    this.outBytes += frame.length;
    if (this.buffered > this.writerLimits.maxBufferedBytes) {
      this.close(CLOSE.tooSlow, SLOW);
    }
  }

  send(value: object): void {
    this.write(textFrame(JSON.stringify(value)));
  }

  /** What nobody misses when it is lost: not for a client that is behind with its reading. */
  writeDroppable(frame: Buffer): void {
    if (!this.congested) this.write(frame);
  }

  get congested(): boolean {
    // Below the socket's own mark it would never tell that it has drained.
    return (
      this.buffered > Math.max(this.socket.writableHighWaterMark, this.writerLimits.maxBufferedBytes / 4)
    );
  }

  /** Everything of this turn of the event loop in one write. */
  flush(): void {
    const { out } = this;
    if (out.length === 0) return;
    this.out = [];
    this.outBytes = 0;
    if (!this.socket.writable) return;
    this.socket.write(out.length === 1 ? out[0]! : Buffer.concat(out));
  }

  /** Resolves when there is room again, or the connection is gone. */
  async writable(): Promise<void> {
    this.flush();
    while (this.open && this.congested) {
      await new Promise<void>((resolve) => {
        const tooSlow = (): void => this.close(CLOSE.tooSlow, SLOW);
        const timer = setTimeout(tooSlow, this.writerLimits.slowAfterMs).unref();
        const done = (): void => {
          clearTimeout(timer);
          this.socket.off('drain', done);
          this.socket.off('close', done);
          resolve();
        };
        this.socket.once('drain', done).once('close', done);
      });
    }
  }

  close(code: number, reason: string): void {
    if (!this.open) return;
    // What is closed for its slowness gets nothing more: its buffer is what the limit is about.
    if (code !== CLOSE.tooSlow) this.flush();
    this.open = false;
    this.out = [];
    this.outBytes = 0;
    this.ws.close(code, reason);
    setTimeout(() => this.ws.terminate(), CLOSE_PATIENCE_MS).unref();
  }
}
