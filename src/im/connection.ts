import type { Socket } from 'node:net';
import type { WebSocket } from 'ws';
import { TokenBucket, type ConversationId, type TenantId } from '../common';
import { textFrame } from '../realtime';
import type { UserToken } from '../tenancy';
import type { ImLimits } from './limits';

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
/** Frames over the rate that are answered with an error before the connection is closed. */
const FLOOD_PATIENCE = 100;

export interface ConnectionSettings {
  readonly id: string;
  readonly token: UserToken;
  readonly rich: boolean;
  readonly limits: ImLimits;
  readonly maxBufferedBytes: number;
  /** Who reads nothing of what waits for so long is as slow as who lets too much wait. */
  readonly slowAfterMs: number;
  readonly address: string;
}

const flushQueue: Connection[] = [];

function flushAll(): void {
  for (const connection of flushQueue.splice(0)) connection.flush();
}

/** One open socket of a user's device: what it has been written, and what it is known to have read. */
export class Connection {
  /** Per conversation, the last entry written to this socket; what comes next is that plus one, or there is a gap. */
  readonly positions = new Map<ConversationId, number>();
  /** Conversations that are behind the log, and how far it is known to reach. */
  readonly behind = new Map<ConversationId, number>();
  /** The number of the last joining or leaving that this connection was told of, while it is open. */
  readonly memberships = new Map<ConversationId, number>();
  /** Groups this connection gets the live messages of. */
  readonly groups = new Set<ConversationId>();
  /** Written and not proven to be read: since the last WebSocket ping, or not acknowledged in the richer dialect. */
  unproven: Map<ConversationId, number> | undefined;
  /** Written before the ping of this number. */
  proving: { readonly ping: number; readonly marks: Map<ConversationId, number> } | undefined;
  /** False until the device's conversations are known: until then whatever comes live is only noted. */
  ready = false;
  pumping = false;
  open = true;
  /** Of the first ping that nothing has answered; 0: none waits. */
  pingedAt = 0;
  /** The connection of the same device whose place this one took. */
  replaces: string | undefined;
  watching: Set<string> | undefined;
  /** What happened before has been looked at; look again not before. */
  lookedAt = Date.now();
  nextLookAt = 0;
  /** What has to wait for an earlier frame of this connection. */
  backlog: string[] | undefined;
  private readonly socket: Socket;
  private out: Buffer[] = [];
  private outBytes = 0;
  private readonly rate: TokenBucket;
  private flooding = 0;
  private pings = 0;

  constructor(
    readonly ws: WebSocket,
    readonly settings: ConnectionSettings,
  ) {
    // Whole frames are written beside `ws`: without compression nothing of its own waits in between.
    this.socket = (ws as unknown as { _socket: Socket })._socket;
    this.rate = new TokenBucket(settings.limits.framesBurst, Date.now());
  }

  get id(): string {
    return this.settings.id;
  }
  get tenantId(): TenantId {
    return this.settings.token.tenantId;
  }
  get userId(): string {
    return this.settings.token.userId;
  }
  get client(): string {
    return this.settings.token.client;
  }
  get rich(): boolean {
    return this.settings.rich;
  }

  get buffered(): number {
    return this.outBytes + this.socket.writableLength;
  }

  /** Takes one of the frames it may send; false: over the rate. */
  admitFrame(now: number): boolean {
    const { framesPerSecond, framesBurst } = this.settings.limits;
    if (this.rate.take(now, framesBurst, framesPerSecond)) {
      if (this.rate.left > framesBurst / 2) this.flooding = 0;
      return true;
    }
    this.flooding += 1;
    if (this.flooding > FLOOD_PATIENCE) this.close(CLOSE.flooding, 'too many frames; come back later');
    return false;
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
    if (this.buffered > this.settings.maxBufferedBytes) {
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
    return this.buffered > Math.max(this.socket.writableHighWaterMark, this.settings.maxBufferedBytes / 4);
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
        const timer = setTimeout(tooSlow, this.settings.slowAfterMs).unref();
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

  error(code: number, message: string, msgId?: unknown): void {
    this.send({ type: 'error', code, message, ...(msgId !== undefined && { msgId }) });
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

  /** Notes that everything up to `seq` has been written, for the proof by the next ping and pong. */
  wrote(id: ConversationId, seq: number): void {
    this.positions.set(id, seq);
    (this.unproven ??= new Map()).set(id, seq);
  }

  ping(now: number): void {
    if (!this.open) return;
    this.flush();
    if (this.pingedAt === 0) this.pingedAt = now;
    this.pings += 1;
    if (!this.rich && !this.proving && this.unproven) {
      this.proving = { ping: this.pings, marks: this.unproven };
      this.unproven = undefined;
    }
    this.ws.ping(String(this.pings));
  }

  /** What the pong to that ping proves to have been read. One that answers an earlier ping proves nothing. */
  proven(data: string): ReadonlyMap<ConversationId, number> | null {
    this.pingedAt = 0;
    const { proving } = this;
    if (!proving || !(Number(data) >= proving.ping)) return null;
    this.proving = undefined;
    return proving.marks;
  }
}
