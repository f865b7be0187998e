import type { Socket } from 'node:net';

/** Looks within the time: who reads nothing is found out after it, a quarter late at most. */
const LOOKS = 4;

/**
 * Bytes that the kernel has not taken yet. `writableLength` counts a chunk until the last of it has gone, so that a
 * slow reader of a large one would look like none.
 */
export function unsent(socket: Socket): number {
  const { _handle: handle } = socket as unknown as { _handle?: { writeQueueSize?: number } | null };
  return handle?.writeQueueSize ?? socket.writableLength;
}

/** Whether the other side of a socket reads: calls back once when nothing of what waits has left for so long. */
export class ReadingWatch {
  private readonly timer: NodeJS.Timeout;
  private last: number;
  private since = performance.now();

  constructor(
    private readonly socket: Socket,
    private readonly ms: number,
    private readonly stalled: () => void,
  ) {
    this.last = unsent(socket);
    this.timer = setInterval(() => this.look(), Math.max(1, ms / LOOKS)).unref();
  }

  stop(): void {
    clearInterval(this.timer);
  }

  private look(): void {
    const left = unsent(this.socket);
    const now = performance.now();
    if (left !== this.last) {
      this.last = left;
      this.since = now;
    } else if (now - this.since >= this.ms) {
      this.stop();
      this.stalled();
    }
  }
}
