import { WebSocket } from 'ws';
import { ask, type TestApp, type TestTenant } from './app';
import { lifeOf, type Refusal } from './socket-life';

export type { Refusal };

// What a frame holds is what the test expects of it.
export type Frame = Record<string, any>;
export type UserId = string | number;

export interface TokenOptions {
  readonly client?: string;
  readonly groupId?: readonly string[];
}
export interface ConnectOptions {
  /** Ask for `parley.im.v1`. */
  readonly rich?: boolean;
  readonly origin?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly path?: string;
  /** False: WebSocket pings are left unanswered, so that nothing proves what was read. */
  readonly autoPong?: boolean;
}

/** How long something that must come may take; only a failing test waits that long. */
const PATIENCE_MS = 5_000;
/** Who sends what only marks that everything before it has come. */
const FENCE = 'fence';

/** The two halves of an API key. */
export function halves({ apiKey }: { readonly apiKey: string }): { appKey: string; appSecret: string } {
  const [, appKey, appSecret] = /^(pk_\d+)_(.+)$/.exec(apiKey)!;
  return { appKey: appKey!, appSecret: appSecret! };
}

/** As a tenant's server asks for it. */
export async function imToken(
  url: string,
  tenant: { readonly apiKey: string },
  userId: UserId,
  options: TokenOptions = {},
): Promise<string> {
  const answer = await ask(url, 'POST', '/chat/oauth/token', { ...halves(tenant), userId, ...options });
  if (answer.status !== 200) throw new Error(`no token: ${answer.status} ${answer.text}`);
  return answer.body.data.token as string;
}

/** A tenant with settings of its own, made before anything else asks for them. */
export async function tenantWith(app: TestApp, settings: object): Promise<TestTenant> {
  const tenant = await app.tenant();
  await change(app, tenant, settings);
  return tenant;
}

export async function change(app: TestApp, tenant: TestTenant, settings: object): Promise<void> {
  const path = `/api/admin/tenants/${tenant.id}`;
  const answer = await ask(app.url, 'PATCH', path, settings, { 'x-api-key': app.rootKey });
  if (answer.status !== 200) throw new Error(answer.text);
}

/** A bare WebSocket: sends what it is told to, keeps what comes, does nothing by itself. */
export class Peer {
  readonly texts: string[] = [];
  readonly frames: Frame[] = [];
  readonly opened: Promise<Peer>;
  readonly closed: Promise<{ code: number; reason: string }>;
  readonly refused: Promise<Refusal>;
  private readonly ws: WebSocket;
  private readonly pings: { readonly data: Buffer; readonly after: number }[] = [];
  private taken = 0;
  private waiting = new Set<() => void>();

  constructor(url: string, token: string | null, options: ConnectOptions = {}) {
    const { rich = false, origin, headers, path = '/chat', autoPong = true } = options;
    const query = token === null ? '' : `?token=${encodeURIComponent(token)}`;
    this.ws = new WebSocket(`${url.replace('http', 'ws')}${path}${query}`, rich ? ['parley.im.v1'] : [], {
      autoPong,
      ...(origin !== undefined && { origin }),
      ...(headers && { headers }),
    });
    const { ws } = this;
    ws.on('message', (data: Buffer) => {
      this.texts.push(data.toString());
      this.frames.push(JSON.parse(data.toString()) as Frame);
      this.wake();
    });
    ws.on('ping', (data: Buffer) => {
      this.pings.push({ data, after: this.frames.length });
      this.wake();
    });
    const life = lifeOf(ws, () => this.wake());
    this.opened = life.opened.then(() => this);
    this.opened.catch(() => undefined);
    this.closed = life.closed;
    this.refused = life.refused;
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
    const found = await this.until(
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
    return found;
  }

  /** The next so many, one after the other. */
  async take(count: number, wanted: Frame | ((frame: Frame) => boolean)): Promise<Frame[]> {
    const frames: Frame[] = [];
    while (frames.length < count) frames.push(await this.next(wanted));
    return frames;
  }

  /** Sends, and waits for the error that comes of it. */
  fails(frame: Frame | string | Buffer): Promise<Frame> {
    return this.send(frame).next({ type: 'error' });
  }

  /** The `pong`: frames that were sent before, joins above all, have been dealt with. */
  ping(): Promise<Frame> {
    return this.send({ type: 'ping' }).next({ type: 'pong' });
  }

  /** What the first WebSocket ping carries that came after the frames that were taken so far. */
  async pinged(): Promise<Buffer> {
    const after = this.taken;
    return this.until(() => this.pings.find((ping) => ping.after >= after)?.data, 'a WebSocket ping');
  }

  pong(data: Buffer): void {
    this.ws.pong(data);
  }

  async close(): Promise<void> {
    this.ws.close();
    await this.closed;
  }

  /** Vanishes without a word. */
  async drop(): Promise<void> {
    this.ws.terminate();
    await this.closed;
  }

  private async until<T>(look: () => T | undefined, what: string): Promise<T> {
    const deadline = Date.now() + PATIENCE_MS;
    for (;;) {
      const found = look();
      if (found !== undefined) return found;
      const came = `: ${what} never came; last: ${this.texts.slice(-3).join(' ').slice(0, 500)}`;
      if (this.ws.readyState === WebSocket.CLOSED) throw new Error(`closed${came}`);
      const left = deadline - Date.now();
      if (left <= 0) throw new Error(`not within ${PATIENCE_MS} ms${came}`);
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

/** Open, and in the richer dialect past `ready`. */
export async function connect(url: string, token: string, options: ConnectOptions = {}): Promise<Peer> {
  const peer = await new Peer(url, token, options).opened;
  if (options.rich) await peer.next({ type: 'ready' });
  return peer;
}

/** Of a handshake that must be refused. */
export function refusal(url: string, token: string | null, options: ConnectOptions = {}): Promise<Refusal> {
  return new Peer(url, token, options).refused;
}

let fences = 0;

/** A user's device: knows whose it is, and can tell that nothing more was to come. */
export interface Device extends Peer {
  readonly user: UserId;
  /** Everything that was sent to this device until now has come; resolves to it, `ready` and `pong` left out. */
  settled(): Promise<Frame[]>;
}

/** Connects; resolves when the server counts the device as online: for a further device, that is where its present begins. */
export async function device(
  { url }: { readonly url: string },
  tenant: TestTenant,
  user: UserId,
  options: TokenOptions & ConnectOptions = {},
): Promise<Device> {
  const { client = 'pc', groupId, ...how } = options;
  const token = await imToken(url, tenant, user, { client, ...(groupId && { groupId }) });
  const peer = await connect(url, token, how);
  const presence = `/api/v1/im/users/${encodeURIComponent(user)}/presence`;
  const isOnline = async (): Promise<boolean> => {
    const { body } = await tenant.get(presence);
    return (body.clients as Frame[]).some((session) => session.client === client);
  };
  while (!how.rich && !(await isOnline()));
  return Object.assign(peer, {
    user,
    settled: async () => {
      const content = `fence ${(fences += 1)}`;
      const message = { type: 'single', source: FENCE, target: user, msg: { content } };
      await tenant.post('/api/v1/im/messages', message);
      await peer.next((frame) => frame.msg?.content === content);
      return peer.frames.filter(
        ({ type, source }) => source !== FENCE && type !== 'ready' && type !== 'pong',
      );
    },
  });
}

/** Sends as a client of the richer dialect does, and waits until everything is stored. */
export async function say(from: Peer, ...frames: Frame[]): Promise<Frame[]> {
  from.send(...frames);
  return from.take(frames.length, { type: 'sent' });
}

export async function away(...peers: Peer[]): Promise<void> {
  await Promise.all(peers.map((peer) => peer.close()));
}

let names = 0;

/** A user or group that no other test has. */
export const fresh = (what: string): string => `${what} ${(names += 1)}`;

/** Short for frames. */
export const single = (source: UserId, target: UserId, msg: Frame = {}, more: Frame = {}): Frame => ({
  type: 'single',
  source,
  target,
  ...more,
  msg,
});
export const group = (source: UserId, target: UserId, msg: Frame = {}): Frame => ({
  type: 'group',
  source,
  target,
  msg,
});
export const join = (source: UserId, target: UserId): Frame => ({ type: 'join', source, target });
export const leave = (source: UserId, target: UserId): Frame => ({ type: 'leave', source, target });

export const seqs = (frames: Frame[]): number[] => frames.map(({ seq }) => seq as number);
export const upTo = (last: number): number[] => Array.from({ length: last }, (_, index) => index + 1);
