import type { Socket } from 'node:net';
import type { WebSocket } from 'ws';
import { ReadingWatch } from './reading-watch';
import { textFrame } from './text-frame';

/** Whether a client should come back, and how (protocols/im.md, "Frames"). */
export const CLOSE = {
  /** Service Restart (IANA). Not 1001: there are clients that take it for a good-bye and stay away. */
  restarting: 1012,
  /** Try Again Later (IANA). Not 1011, which some clients take for final. */
  failed: 1013,
  tooSlow: 4008,
  flooding: 4029,
  unauthorized: 4401,
  suspended: 4403,
  replaced: 4409,
} as const;

const CLOSE_PATIENCE_MS = 5_000;
const SLOW = 'reading too slowly; come back and resume';
const NOTHING = Buffer.alloc(0);

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
  /** Of a frame that was let out alone although it is larger than what may wait, until it has left. */
  private oversize = 0;

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

  /** Whether a frame of so many bytes may be written now. One larger than all that may wait fits when nothing waits. */
  fits(bytes: number): boolean {
    const waits = this.buffered;
    return waits === 0 || waits + bytes <= this.writerLimits.maxBufferedBytes;
  }

  /** A whole WebSocket frame. Closes the connection when too much is waiting for it. */
  write(frame: Buffer): void {
    if (!this.open) return;
    const waits = this.buffered;
    const { maxBufferedBytes } = this.writerLimits;
    if (waits === 0) this.oversize = frame.length > maxBufferedBytes ? frame.length : 0;
    if (this.out.length === 0) {
      if (flushQueue.length === 0) queueMicrotask(flushAll);
      flushQueue.push(this);
    }
    this.out.push(frame);
    this.outBytes += frame.length;
    if (waits + frame.length > maxBufferedBytes + this.oversize) this.close(CLOSE.tooSlow, SLOW);
  }

  send(value: object): void {
    this.write(textFrame(JSON.stringify(value)));
  }

  /** What nobody misses when it is lost: not for a client that is behind with its reading. */
  writeDroppable(frame: Buffer): void {
    if (!this.congested && this.fits(frame.length)) this.write(frame);
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

  /** Resolves when there is room again, also for a frame of so many bytes, or the connection is gone. */
  async writable(bytes = 0): Promise<void> {
    this.flush();
    while (this.open && (this.congested || !this.fits(bytes))) {
      await new Promise<void>((resolve) => {
        const { socket } = this;
        const watch = new ReadingWatch(socket, this.writerLimits.slowAfterMs, () =>
          this.close(CLOSE.tooSlow, SLOW),
        );
        const done = (): void => {
          watch.stop();
          socket.off('drain', done);
          socket.off('close', done);
          resolve();
        };
        socket.once('close', done);
        // Below its mark a socket tells nobody that it has drained; a write tells who made it.
        if (socket.writableNeedDrain) socket.once('drain', done);
        else socket.write(NOTHING, done);
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
