import { WebSocket } from 'ws';
import { lifeOf, type Refusal } from './socket-life';

export type { Refusal };

// What a frame holds is what the test expects of it.
export type Frame = Record<string, any>;

export interface ChannelOptions {
  /** As `x-api-key`. */
  readonly key?: string;
  /** As `?token=`. */
  readonly token?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly origin?: string;
  readonly path?: string;
  /** Speak `agent.events.v1`. */
  readonly events?: boolean;
  /** False: WebSocket pings are left unanswered. */
  readonly autoPong?: boolean;
}

/** How long something that must come may take; only a failing test waits that long. */
const PATIENCE_MS = 10_000;
/** What is asked only to know that everything before it was dealt with; the answer is kept apart. */
const FENCE = 'fence';

/** A client of the agent channel: sends what it is told to, keeps what comes. */
export class Channel {
  readonly texts: string[] = [];
  readonly frames: Frame[] = [];
  readonly opened: Promise<Channel>;
  readonly closed: Promise<{ code: number; reason: string }>;
  readonly refused: Promise<Refusal>;
  /** WebSocket pings that came. */
  pings = 0;
  private readonly ws: WebSocket;
  private readonly fences = new Set<string>();
  private taken = 0;
  private waiting = new Set<() => void>();

  constructor(url: string, options: ChannelOptions = {}) {
    const { key, token, headers, origin, path = '/api/v1/ws', events = false, autoPong = true } = options;
    const query =
      token === undefined ? '' : `${path.includes('?') ? '&' : '?'}token=${encodeURIComponent(token)}`;
    const ws = new WebSocket(
      `${url.replace('http', 'ws')}${path}${query}`,
      events ? ['agent.events.v1'] : [],
      {
        autoPong,
        headers: { ...(key !== undefined && { 'x-api-key': key }), ...headers },
        ...(origin !== undefined && { origin }),
      },
    );
    this.ws = ws;
    ws.on('message', (data: Buffer) => {
      const frame = JSON.parse(data.toString()) as Frame;
      if (String(frame.requestId).startsWith(FENCE)) this.fences.add(frame.requestId as string);
      else {
        this.texts.push(data.toString());
        this.frames.push(frame);
      }
      this.wake();
    });
    ws.on('ping', () => {
      this.pings += 1;
      this.wake();
    });
    const life = lifeOf(ws, () => this.wake());
    this.opened = life.opened.then(() => this);
    this.opened.catch(() => undefined);
    this.closed = life.closed;
    this.refused = life.refused;
  }

  get protocol(): string {
    return this.ws.protocol;
  }

  /** An object, a text as it is to be on the wire, or bytes of a binary message. */
  send(...frames: (Frame | string | Buffer)[]): this {
    for (const frame of frames)
      this.ws.send(typeof frame === 'string' || Buffer.isBuffer(frame) ? frame : JSON.stringify(frame));
    return this;
  }

  /** The next frame that has these fields or passes the check; those before it are passed over. */
  async next(wanted: Frame | ((frame: Frame) => boolean) = {}): Promise<Frame> {
    const fits =
      typeof wanted === 'function'
        ? wanted
        : (frame: Frame) => Object.entries(wanted).every(([name, value]) => frame[name] === value);
    return this.until(
      () => {
        while (this.taken < this.frames.length) {
          const frame = this.frames[this.taken]!;
          this.taken += 1;
          if (fits(frame)) return frame;
        }
        return undefined;
      },
      typeof wanted === 'function' ? wanted.toString() : JSON.stringify(wanted),
    );
  }

  /** The next so many, whatever they are. */
  async take(count: number): Promise<Frame[]> {
    const frames: Frame[] = [];
    while (frames.length < count) frames.push(await this.next());
    return frames;
  }

  /** Everything that comes up to the end of a reply: its last frame, or its error. */
  async reply(): Promise<Frame[]> {
    const frames: Frame[] = [];
    do frames.push(await this.next());
    while (!isEnd(frames.at(-1)!));
    return frames;
  }

  /** Says it, and takes what comes up to the reply's end. */
  chat(message: string, more: Frame = {}): Promise<Frame[]> {
    return this.send({ type: 'chat', message, ...more }).reply();
  }

  /** Sends, and waits for the error that comes of it. */
  fails(frame: Frame | string | Buffer): Promise<Frame> {
    return this.send(frame).next({ type: 'error' });
  }

  /** Resolves when every frame that was sent before was dealt with: frames are, one after the other. */
  async handled(): Promise<void> {
    const requestId = fresh(FENCE);
    this.send({ type: 'cancel', agentId: 'main', sessionId: requestId, requestId });
    await this.until(() => this.fences.has(requestId) || undefined, requestId);
  }

  pinged(count = 1): Promise<true> {
    const before = this.pings;
    return this.until(() => this.pings >= before + count || undefined, 'a WebSocket ping');
  }

  /** Stops reading from its socket. */
  pause(): void {
    this.ws.pause();
  }
  unpause(): void {
    this.ws.resume();
  }

  async close(): Promise<void> {
    this.ws.close();
    await this.closed;
  }

  /** Vanishes: the socket is destroyed without a word. */
  async drop(): Promise<void> {
    this.ws.terminate();
    await this.closed;
  }

  /** Resolves to what `look` finds, when it finds something; looked again whenever something has come. */
  async until<T>(look: () => T | undefined, what = look.toString(), withinMs = PATIENCE_MS): Promise<T> {
    const deadline = Date.now() + withinMs;
    for (;;) {
      const found = look();
      if (found !== undefined) return found;
      const came = `: ${what} never came; last: ${this.texts.slice(-3).join(' ').slice(0, 500)}`;
      if (this.ws.readyState === WebSocket.CLOSED) throw new Error(`closed${came}`);
      const left = deadline - Date.now();
      if (left <= 0) throw new Error(`not within ${withinMs} ms${came}`);
      await new Promise<void>((resolve) => {
        const wake = (): void => {
          clearTimeout(timer);
          this.waiting.delete(wake);
          resolve();
        };
        const timer = setTimeout(wake, left);
        this.waiting.add(wake);
      });
    }
  }

  private wake(): void {
    for (const wake of [...this.waiting]) wake();
  }
}

let names = 0;

/** A name that no other test has. */
export const fresh = (what: string): string => `${what} ${(names += 1)}`;

export const open = (url: string, options?: ChannelOptions): Promise<Channel> =>
  new Channel(url, options).opened;

/** Of a handshake that must be refused. */
export const refusal = (url: string, options?: ChannelOptions): Promise<Refusal> =>
  new Channel(url, options).refused;

/** The last frame of a reply, in either dialect. */
export const isEnd = ({ type, done }: Frame): boolean => done === true || type === 'done' || type === 'error';

/** The text of a reply, or of what of it was resumed; the offsets must say the same. */
export function textOf(frames: readonly Frame[], from?: number): string {
  let text = '';
  const pieces = frames.filter(({ type }) => type === 'stream');
  const begin = from ?? (pieces[0]?.offset as number);
  for (const { offset, content } of pieces) {
    if (offset !== begin + text.length)
      throw new Error(`a piece at ${String(offset)} after ${begin + text.length}`);
    text += content as string;
  }
  return text;
}

export async function away(...channels: Channel[]): Promise<void> {
  await Promise.all(channels.map((channel) => channel.close()));
}
