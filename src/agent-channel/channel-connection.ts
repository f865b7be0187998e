import type { WebSocket } from 'ws';
import type { Principal } from '../common';
import {
  CLOSE,
  FrameRate,
  SocketWriter,
  textFrame,
  type Allowance,
  type ControlKind,
  type ReplayAllowances,
  type WriterLimits,
} from '../realtime';
import type { ConnectionLimits, UserToken } from '../tenancy';
import type { Feed } from './feed';
import type { View } from './views';

export interface ChannelSettings extends WriterLimits {
  readonly id: string;
  readonly principal: Principal;
  /** Of a user's own token; null: a key. */
  readonly token: UserToken | null;
  readonly address: string;
  readonly limits: ConnectionLimits;
  readonly replays: ReplayAllowances;
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
  /** Replies that it asked to be shown again and was not shown to their end. */
  resuming = 0;
  private readonly rate: FrameRate;
  private ownReplay: Allowance | undefined;

  constructor(
    ws: WebSocket,
    readonly settings: ChannelSettings,
  ) {
    super(ws, settings);
    this.rate = new FrameRate(settings.limits);
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

  /** What may be sent again: to a user, on whatever connection; to a tenant's server, on this one. */
  get replay(): Allowance {
    const { tenantId, userId, endUser } = this.principal;
    const { replays } = this.settings;
    return endUser ? replays.of(`${tenantId}\n${userId}`) : (this.ownReplay ??= replays.of(null));
  }

  /** Takes one of the frames it may send; false: over the rate. */
  admitFrame(now: number, control?: ControlKind): boolean {
    const admitted = this.rate.admit(now, control);
    if (this.rate.flooding) this.close(CLOSE.flooding, 'too many frames; come back later');
    return admitted;
  }

  say(...frames: (string | null)[]): void {
    for (const frame of frames) if (frame !== null) this.write(textFrame(frame));
  }
}
