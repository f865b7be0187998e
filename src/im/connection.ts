import type { WebSocket } from 'ws';
import type { ConversationId, TenantId } from '../common';
import type { Gap } from '../messages';
import {
  CLOSE,
  FrameRate,
  SocketWriter,
  type Allowance,
  type ControlKind,
  type ReplayAllowances,
  type WriterLimits,
} from '../realtime';
import { type ConnectionLimits, type UserToken } from '../tenancy';

export interface ConnectionSettings extends WriterLimits {
  readonly id: string;
  readonly token: UserToken;
  readonly rich: boolean;
  readonly limits: ConnectionLimits;
  readonly replays: ReplayAllowances;
  readonly address: string;
}

/** One open socket of a user's device: what it has been written, and what it is known to have read. */
export class Connection extends SocketWriter {
  /** Per conversation, the last entry written to this socket; what comes next is that plus one, or there is a gap. */
  readonly positions = new Map<ConversationId, number>();
  /** Conversations that are behind the log, and how far it is known to reach. */
  readonly behind = new Map<ConversationId, number>();
  /** Of the richer dialect: where the device began, in conversations in which it has no mark yet. */
  beginnings: Map<ConversationId, number> | undefined;
  /** In groups that its user went out of and came back into: what was said meanwhile is not the user's. */
  gaps: Map<ConversationId, readonly Gap[]> | undefined;
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
  /** Among the hub's own: neither gone nor replaced. */
  present = false;
  /** Of the first ping that nothing has answered; 0: none waits. */
  pingedAt = 0;
  /** The connection of the same device whose place this one took. */
  replaces: string | undefined;
  watching: Set<string> | undefined;
  /** What happened before has been looked at; look again not before. */
  lookedAt = Date.now();
  nextLookAt = 0;
  /** What has to wait for an earlier frame of this connection. */
  backlog: { readonly text: string; readonly control: ControlKind | undefined }[] | undefined;
  private readonly rate: FrameRate;
  private pings = 0;

  constructor(
    ws: WebSocket,
    readonly settings: ConnectionSettings,
  ) {
    super(ws, settings);
    this.rate = new FrameRate(settings.limits);
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

  /** What its user may have sent again, on whatever connection. */
  get replay(): Allowance {
    return this.settings.replays.of(`${this.tenantId}\n${this.userId}`);
  }

  /** Takes one of the frames it may send; false: over the rate. */
  admitFrame(now: number, control?: ControlKind): boolean {
    const admitted = this.rate.admit(now, control);
    if (this.rate.flooding) this.close(CLOSE.flooding, 'too many frames; come back later');
    return admitted;
  }

  error(code: number, message: string, msgId?: unknown): void {
    this.send({ type: 'error', code, message, ...(msgId !== undefined && { msgId }) });
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
