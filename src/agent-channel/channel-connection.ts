import type { WebSocket } from 'ws';
import { TokenBucket, type Principal } from '../common';
import { CLOSE, SocketWriter, textFrame, type WriterLimits } from '../realtime';
import type { ConnectionLimits, UserToken } from '../tenancy';
import type { Feed } from './feed';
import type { View } from './views';

/** Frames over the rate that are answered with an error before the connection is closed. */
const FLOOD_PATIENCE = 100;

export interface ChannelSettings extends WriterLimits {
  readonly id: string;
  readonly principal: Principal;
  /** Of a user's own token; null: a key. */
  readonly token: UserToken | null;
  readonly address: string;
  readonly limits: ConnectionLimits;
  /** For frames that name none. */
  readonly agentId: string;
  readonly view: View;
}

/** One open socket of the agent channel. */
export class ChannelConnection extends SocketWriter {
  /** By session, what this connection is shown. */
  readonly feeds = new Map<object, Feed>();
  /** Of the first ping that nothing has answered; 0: none waits. */
  pingedAt = 0;
  /** Revoked or suspended: what waits of it is not said any more. */
  lostAccess = false;
  /** Frames are dealt with one after the other: this is the last one's end. */
  last: Promise<void> = Promise.resolve();
  waiting = 0;
  private readonly rate: TokenBucket;
  private flooding = 0;

  constructor(
    ws: WebSocket,
    readonly settings: ChannelSettings,
  ) {
    super(ws, settings);
    this.rate = new TokenBucket(settings.limits.framesBurst, Date.now());
  }

  get principal(): Principal {
    return this.settings.principal;
  }
  get view(): View {
    return this.settings.view;
  }
  /** The session of frames that name none. */
  get ownSession(): string {
    return `connection-${this.settings.id}`;
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

  say(...frames: (string | null)[]): void {
    for (const frame of frames) if (frame !== null) this.write(textFrame(frame));
  }
}
