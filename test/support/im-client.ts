import { WebSocket } from 'ws';
import { ask } from './app';

// What a frame holds is what the test expects of it.
export type Frame = Record<string, any>;

export interface ImClientSettings {
  readonly url: string;
  readonly token: string;
  /** As its frames have it: a numeric one stays a number. */
  readonly user: string | number;
  /** Speak `parley.im.v1`. Default: yes. */
  readonly rich?: boolean;
  /** Acknowledge what it has by itself, when rich. Default: yes. */
  readonly acknowledges?: boolean;
}

/** An entry of a conversation's log as it came to a client, or the number of one of its own. */
export interface Arrival {
  readonly frame: Frame;
  readonly seq: number;
  readonly id: string;
  /** How many times the client had connected by then. */
  readonly connection: number;
}

/** What a client knows of one conversation. */
export interface Place {
  /** By number: the entry's id. */
  readonly ids: Map<number, string>;
  readonly arrivals: Arrival[];
  /** Everything up to here has come, or is its own and known to be stored. */
  upTo: number | undefined;
  acknowledged: number;
  conversationId: string | undefined;
}

const ENTRIES = new Set(['single', 'group', 'join', 'leave']);
/** A client that gets one of these does not come back by itself (protocols/im.md, "Frames"). */
const FINAL = new Set([4401, 4403, 4409]);
const FIRST_DELAY_MS = 50;
const MAX_DELAY_MS = 1_000;
/** For messages that the server could not take just then. */
const AGAIN_MS = 100;

/** A token, asked for as a tenant's server does it. */
export async function userToken(
  url: string,
  apiKey: string,
  userId: string | number,
  { client, groups }: { readonly client?: string; readonly groups?: readonly string[] } = {},
): Promise<string> {
  const [, appKey, appSecret] = /^(pk_\d+)_(.+)$/.exec(apiKey)!;
  const input = { appKey, appSecret, userId, ...(client && { client }), ...(groups && { groupId: groups }) };
  const { status, text, body } = await ask(url, 'POST', '/chat/oauth/token', input);
  if (status !== 200 || body.code !== 0) throw new Error(`no token: ${status} ${text}`);
  return body.data.token as string;
}

/**
 * A user's app as it should be: comes back by itself, says again what it does not know to be stored, acknowledges what
 * it has. A plain one knows nothing to be stored: it says everything again. Never throws after it was made;
 * what was amiss is in `faults`.
 */
export class ImClient {
  readonly frames: Frame[] = [];
  readonly places = new Map<string, Place>();
  readonly closes: number[] = [];
  /** Of every message that the server told to be stored: its `sent`. */
  readonly sent = new Map<string, Frame>();
  /** Every message that it ever said. */
  readonly said: Frame[] = [];
  /** What should not have come: other errors than "again, please", numbers that skip, two ids under one number. */
  readonly faults: string[] = [];
  connections = 0;
  /** How often it was told that a message could not be stored just then; those may be stored after later ones. */
  deferred = 0;
  private readonly unacknowledged = new Map<string, Frame>();
  private ws: WebSocket;
  private failures = 0;
  private stopped = false;
  private timer: NodeJS.Timeout | undefined;
  private dirty = new Set<Place>();
  private waiters = new Set<() => void>();

  constructor(readonly settings: ImClientSettings) {
    this.ws = this.connect();
  }

  get user(): string {
    return String(this.settings.user);
  }
  get rich(): boolean {
    return this.settings.rich ?? true;
  }
  get open(): boolean {
    return this.ws.readyState === WebSocket.OPEN;
  }
  /** Messages that a rich client doesn't know to be stored. */
  get pending(): number {
    return this.rich ? this.unacknowledged.size : 0;
  }

  /** Says it now or when it is connected again, and until it is stored. */
  say(type: 'single' | 'group', target: string | number, content: unknown, more: object = {}): Frame {
    const msg = { msgId: this.said.length + 1, timestamp: Date.now(), content };
    const frame = { type, source: this.settings.user, target, msg, ...more };
    this.said.push(frame);
    this.unacknowledged.set(String(msg.msgId), frame);
    this.send(frame);
    return frame;
  }

  /** Any frame, once; lost when there is no connection. */
  send(frame: Frame): void {
    if (this.open) this.ws.send(JSON.stringify(frame));
  }

  acknowledge(conversationId: string, seq: number): void {
    this.send({ type: 'ack', conversationId, seq });
  }

  place(type: 'single' | 'group', target: string | number): Place {
    return this.placeOf(`${type} ${target}`);
  }

  /** Resolves when it is so; looked at again whenever something has come or gone. */
  async waitFor(predicate: (client: this) => boolean, withinMs = 20_000): Promise<void> {
    if (predicate(this)) return;
    await new Promise<void>((resolve, reject) => {
      const end = (then: () => void): void => {
        clearTimeout(timer);
        this.waiters.delete(look);
        then();
      };
      const look = (): void => {
        if (predicate(this)) end(resolve);
      };
      const timer = setTimeout(() => {
        const state = `${this.connections} connections, closed ${this.closes.length} times, last with [${this.closes.slice(-5).join()}], ${this.faults.slice(0, 5).join('; ') || 'no faults'}`;
        end(() =>
          reject(
            new Error(
              `client ${this.user}: not within ${withinMs} ms: ${predicate.toString()} (${state}; last: ${JSON.stringify(this.frames.at(-1))?.slice(0, 300)})`,
            ),
          ),
        );
      }, withinMs);
      this.waiters.add(look);
    });
  }

  /** Resolves when the server has handled everything that was sent before on this connection. */
  async handled(): Promise<void> {
    const before = this.frames.length;
    this.send({ type: 'ping' });
    await this.waitFor(({ frames }) => frames.slice(before).some(({ type }) => type === 'pong'));
  }

  /** Stops reading from its socket. */
  pause(): void {
    this.ws.pause();
  }
  resume(): void {
    this.ws.resume();
  }

  /** Vanishes: the socket is destroyed without a word. It comes back by itself. */
  drop(): void {
    this.ws.terminate();
  }

  async stop(): Promise<void> {
    this.stopped = true;
    clearTimeout(this.timer);
    if (this.ws.readyState === WebSocket.CLOSED) return;
    const closed = new Promise((resolve) => this.ws.once('close', resolve));
    this.ws.terminate();
    await closed;
  }

  private connect(): WebSocket {
    const { url, token } = this.settings;
    const ws = new WebSocket(
      `${url.replace('http', 'ws')}/chat?token=${token}`,
      this.rich ? ['parley.im.v1'] : [],
    );
    ws.on('open', () => {
      this.connections += 1;
      this.failures = 0;
      // In the order in which they were said, before anything new.
      for (const frame of this.unacknowledged.values()) this.send(frame);
      this.wake();
    });
    ws.on('message', (data: Buffer) => this.receive(JSON.parse(data.toString()) as Frame));
    // 'close' follows.
    ws.on('error', () => undefined);
    ws.on('close', (code) => {
      this.closes.push(code);
      this.failures += 1;
      if (FINAL.has(code)) this.stopped = true;
      if (!this.stopped) {
        const delay = Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(this.failures, 10));
        this.timer = setTimeout(() => (this.ws = this.connect()), delay * (0.5 + Math.random() / 2));
      }
      this.wake();
    });
    return ws;
  }

  private receive(frame: Frame): void {
    this.frames.push(frame);
    if (ENTRIES.has(frame.type as string)) this.arrived(frame);
    else if (frame.type === 'sent') this.stored(frame);
    else if (frame.type === 'error') this.failed(frame);
    this.wake();
  }

  private arrived(frame: Frame): void {
    const { type, source, target, seq, id, conversationId } = frame;
    const key =
      type === 'single' ? `single ${String(source) === this.user ? target : source}` : `group ${target}`;
    const place = this.placeOf(key);
    // A member's first entry is the one of its joining; a one-to-one conversation begins at the beginning.
    place.upTo ??= type === 'single' ? 0 : (seq as number) - 1;
    place.conversationId ??= conversationId as string | undefined;
    place.arrivals.push({ frame, seq, id, connection: this.connections });
    // A plain client is not told the numbers of its own: only who looks at the log afterwards knows what they were.
    if (this.rich && seq > place.upTo + 1) this.faults.push(`${key}: ${seq} came after ${place.upTo}`);
    this.note(key, place, seq as number, id as string);
    this.acknowledgeSoon(place);
  }

  private stored(sent: Frame): void {
    const said = this.unacknowledged.get(String(sent.msgId));
    if (this.sent.has(String(sent.msgId))) {
      const { id, seq } = this.sent.get(String(sent.msgId))!;
      if (id !== sent.id || seq !== sent.seq)
        this.faults.push(`${sent.msgId}: another id or seq than before`);
      return;
    }
    if (!said) return;
    this.unacknowledged.delete(String(sent.msgId));
    this.sent.set(String(sent.msgId), sent);
    const key = `${said.type} ${said.target}`;
    const place = this.placeOf(key);
    if (said.type === 'single') place.upTo ??= 0;
    place.conversationId ??= sent.conversationId as string;
    this.note(key, place, sent.seq as number, sent.id as string);
    this.acknowledgeSoon(place);
  }

  private failed(error: Frame): void {
    const said = this.unacknowledged.get(String(error.msgId));
    if (said && (error.code === 5003 || error.code === 4029)) {
      this.deferred += 1;
      setTimeout(() => this.send(said), AGAIN_MS);
    } else this.faults.push(`${error.code} ${error.message}`);
  }

  private note(key: string, place: Place, seq: number, id: string): void {
    const known = place.ids.get(seq);
    if (known !== undefined && known !== id) this.faults.push(`${key}: ${seq} is ${known} and ${id}`);
    place.ids.set(seq, id);
    while (place.upTo !== undefined && place.ids.has(place.upTo + 1)) place.upTo += 1;
  }

  /** Once for all that came in one go. */
  private acknowledgeSoon(place: Place): void {
    if (!this.rich || this.settings.acknowledges === false) return;
    if (this.dirty.size === 0) setImmediate(() => this.acknowledgeDirty());
    this.dirty.add(place);
  }

  private acknowledgeDirty(): void {
    for (const place of this.dirty) {
      const { conversationId, upTo } = place;
      if (!conversationId || upTo === undefined || upTo <= place.acknowledged) continue;
      place.acknowledged = upTo;
      this.acknowledge(conversationId, upTo);
    }
    this.dirty.clear();
  }

  private placeOf(key: string): Place {
    let place = this.places.get(key);
    if (!place) {
      place = {
        ids: new Map(),
        arrivals: [],
        upTo: undefined,
        acknowledged: 0,
        conversationId: undefined,
      };
      this.places.set(key, place);
    }
    return place;
  }

  private wake(): void {
    for (const look of [...this.waiters]) look();
  }
}

/**
 * What is wrong with what a client got of a conversation, its log being known: an entry of others that never came,
 * came before one in front of it, or differs. Its own may or may not have come.
 */
export function misses(client: ImClient, place: Place, log: readonly Frame[], from = 1): string[] {
  const wrong: string[] = [];
  const bySeq = new Map(log.map((entry) => [entry.seq as number, entry]));
  const own = ({ type, source }: Frame): boolean =>
    (type === 'single' || type === 'group') && String(source) === client.user;
  const had = new Set(log.filter(own).map(({ seq }) => seq as number));
  let upTo = from - 1;
  for (const { seq, id, frame } of place.arrivals) {
    while (had.has(upTo + 1)) upTo += 1;
    if (seq > upTo + 1) wrong.push(`${seq} came before ${upTo + 1}`);
    had.add(seq);
    const entry = bySeq.get(seq);
    if (entry?.id !== id || JSON.stringify(entry.msg) !== JSON.stringify(frame.msg ?? null))
      wrong.push(`${seq} came as ${JSON.stringify(frame)}, is stored as ${JSON.stringify(entry)}`);
  }
  for (const { seq } of log) if (seq >= from && !had.has(seq as number)) wrong.push(`${seq} never came`);
  return wrong;
}
