import { createServer, type IncomingHttpHeaders, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { WebSocket } from 'ws';
import { ask, eventually, type Answer, type TenantSettings, type TestApp, type TestTenant } from './app';
import { query } from './database';

// What a frame holds is what the test expects of it.
export type Frame = Record<string, any>;

export interface DeviceOptions {
  readonly client?: string;
  /** Speak `parley.im.v1`. */
  readonly rich?: boolean;
  /** Groups to be a member of. */
  readonly groups?: readonly string[];
  readonly token?: string;
}

/** One tenant's server on the IM wire: its REST, and devices of its users. */
export class Im {
  constructor(
    readonly url: string,
    readonly apiKey: string,
  ) {}

  get(path: string): Promise<Answer> {
    return this.ask('GET', path);
  }
  post(path: string, body?: unknown): Promise<Answer> {
    return this.ask('POST', path, body);
  }
  patch(path: string, body: unknown): Promise<Answer> {
    return this.ask('PATCH', path, body);
  }
  delete(path: string): Promise<Answer> {
    return this.ask('DELETE', path);
  }

  /** Sends one-to-one; the rest of the message may be given, too. */
  say(source: string | number, target: string | number, content: string, more: object = {}): Promise<Answer> {
    return this.post('/messages', { type: 'single', source, target, msg: { content }, ...more });
  }

  async token(userId: string | number, { client = 'pc', groups }: DeviceOptions = {}): Promise<string> {
    const answer = await this.post('/tokens', { userId, client, ...(groups && { groupId: groups }) });
    if (answer.status !== 200) throw new Error(`${answer.status} ${answer.text}`);
    return answer.body.data.token as string;
  }

  /**
   * Resolves when the server counts the device as online, what is sent from now on reaches it live, and when its own end
   * is open too: the server knows of that first.
   */
  async connect(userId: string | number, options: DeviceOptions = {}): Promise<Device> {
    const { client = 'pc', rich = false } = options;
    const device = new Device(
      this.url,
      String(userId),
      options.token ?? (await this.token(userId, options)),
      rich,
    );
    if (rich) await device.next({ type: 'ready' });
    else {
      await device.opened();
      await eventually(async () => (await this.clients(userId)).includes(client));
    }
    return device;
  }

  async clients(userId: string | number): Promise<string[]> {
    const { body } = await this.get(`/users/${encodeURIComponent(userId)}/presence`);
    return (body.clients as { client: string }[]).map(({ client }) => client);
  }

  async history(conversationId: string, query = ''): Promise<Frame[]> {
    const { body } = await this.get(`/conversations/${conversationId}/messages${query}`);
    return body.data as Frame[];
  }

  private ask(method: string, path: string, body?: unknown): Promise<Answer> {
    return ask(this.url, method, `/api/v1/im${path}`, body, { 'x-api-key': this.apiKey });
  }
}

/** An open socket, and what came over it. */
export class Device {
  readonly frames: Frame[] = [];
  /** The upgrade's status when it was refused. */
  refused: number | undefined;
  private taken = 0;
  private code: number | undefined;
  private readonly ws: WebSocket;
  private waiters: (() => void)[] = [];

  constructor(
    url: string,
    readonly user: string,
    token: string,
    rich = false,
  ) {
    const address = `${url.replace('http', 'ws')}/chat?token=${token}`;
    this.ws = rich ? new WebSocket(address, 'parley.im.v1') : new WebSocket(address);
    this.ws.on('open', () => this.wake());
    this.ws.on('message', (data: Buffer) => {
      this.frames.push(JSON.parse(data.toString()) as Frame);
      this.wake();
    });
    this.ws.on('unexpected-response', (_request, response) => {
      this.refused = response.statusCode;
      this.ended(0);
    });
    this.ws.on('close', (code) => this.ended(code)).on('error', () => this.ended(0));
  }

  /** Resolves when frames can be sent; throws when it was refused. */
  async opened(): Promise<void> {
    while (this.ws.readyState === WebSocket.CONNECTING && this.code === undefined)
      await new Promise<void>((resolve) => this.waiters.push(resolve));
    if (this.ws.readyState !== WebSocket.OPEN) throw new Error(`not open: ${this.refused ?? this.code}`);
  }

  send(frame: Frame): this {
    this.ws.send(JSON.stringify({ source: this.user, ...frame }));
    return this;
  }

  /** JSON text as it is: with numbers that an object can not hold. */
  sendText(text: string): this {
    this.ws.send(text);
    return this;
  }

  /** The next frame that has these fields, or passes the check; those before it are passed over. */
  async next(wanted: Frame | ((frame: Frame) => boolean)): Promise<Frame> {
    const fits =
      typeof wanted === 'function'
        ? wanted
        : (frame: Frame) => Object.entries(wanted).every(([key, value]) => frame[key] === value);
    for (;;) {
      while (this.taken < this.frames.length) {
        const frame = this.frames[this.taken]!;
        this.taken += 1;
        if (fits(frame)) return frame;
      }
      if (this.code !== undefined)
        throw new Error(
          `closed with ${this.code} before ${typeof wanted === 'function' ? wanted.toString() : JSON.stringify(wanted)}`,
        );
      await new Promise<void>((resolve) => this.waiters.push(resolve));
    }
  }

  /** Sends, and waits for the error that comes of it. */
  async fails(frame: Frame): Promise<Frame> {
    return this.send(frame).next({ type: 'error' });
  }

  /** What came of a type, from or to anybody or one target. */
  of(type: string, target?: string): Frame[] {
    return this.frames.filter(
      (frame) => frame.type === type && (target === undefined || frame.target === target),
    );
  }

  /** The close code, when it has closed. */
  async closed(): Promise<number> {
    while (this.code === undefined) await new Promise<void>((resolve) => this.waiters.push(resolve));
    return this.code;
  }

  async close(): Promise<void> {
    this.ws.close();
    await this.closed();
  }

  private ended(code: number): void {
    this.code ??= code;
    this.wake();
  }

  private wake(): void {
    for (const wake of this.waiters.splice(0)) wake();
  }
}

export interface Received {
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
  readonly body: Frame;
}

/** A tenant's server that is told of things, and answers what the test says: a status, sooner or later. */
export class Receiver {
  readonly received: Received[] = [];
  answer: (delivery: Received) => number | Promise<number> = () => 204;
  private waiters: (() => void)[] = [];
  private readonly server: Server;

  private constructor() {
    this.server = createServer((request, response) => {
      void (async () => {
        let text = '';
        for await (const part of request.setEncoding('utf8')) text += part as string;
        const delivery = { headers: request.headers, text, body: JSON.parse(text) as Frame };
        this.received.push(delivery);
        for (const wake of this.waiters.splice(0)) wake();
        response.writeHead(await this.answer(delivery), { location: this.url }).end('{}');
      })();
    });
  }

  static async start(): Promise<Receiver> {
    const receiver = new Receiver();
    await new Promise<void>((resolve) => receiver.server.listen(0, '127.0.0.1', resolve).unref());
    return receiver;
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }
  get url(): string {
    return `http://127.0.0.1:${this.port}/hook`;
  }

  /** Waits for so many deliveries. */
  async has(count: number): Promise<Received[]> {
    while (this.received.length < count) await new Promise<void>((resolve) => this.waiters.push(resolve));
    return this.received;
  }

  data(event: string): Frame[] {
    return this.received.filter(({ body }) => body.event === event).map(({ body }) => body.data as Frame);
  }
}

/** A delivery that is still to be made. */
export interface Waiting {
  readonly event_id: string;
  readonly attempts: number;
  readonly last_error: string | null;
  readonly dead: boolean;
  /** Seconds until the next attempt. */
  readonly wait: number;
}

/** A tenant whose server is told of some events. */
export class Hooked {
  private constructor(
    private readonly app: TestApp,
    readonly tenant: TestTenant,
    readonly im: Im,
    readonly receiver: Receiver,
    readonly hook: { readonly id: string; readonly secret: string },
  ) {}

  /** `url`: somewhere else than to its receiver. */
  static async make(
    app: TestApp,
    events: string[],
    url?: string,
    settings?: TenantSettings,
  ): Promise<Hooked> {
    const [tenant, receiver] = await Promise.all([app.tenant(settings), Receiver.start()]);
    const im = new Im(app.url, tenant.apiKey);
    const { status, text, body } = await im.post('/webhooks', { url: url ?? receiver.url, events });
    if (status !== 201) throw new Error(text);
    return new Hooked(app, tenant, im, receiver, body as Hooked['hook']);
  }

  get path(): string {
    return `/webhooks/${this.hook.id}`;
  }

  sql<T = unknown>(text: string, ...values: unknown[]): Promise<T[]> {
    return query<T>(this.app.databaseUrl, text, values);
  }

  outbox(): Promise<Waiting[]> {
    return this.sql<Waiting>(
      `select event_id, attempts, last_error, dead, extract(epoch from next_at - now())::float8 as wait
       from webhook_deliveries where webhook_id = $1 order by id`,
      this.hook.id,
    );
  }

  async delivered(): Promise<void> {
    await eventually(async () => (await this.outbox()).length === 0);
  }

  /** Names of what was told, in the order it happened. */
  events(): string[] {
    const inOrder = [...this.receiver.received].sort((a, b) => Number(a.body.id) - Number(b.body.id));
    return inOrder.map(({ body }) => body.event as string);
  }

  /** Waits until every delivery that is left has come to this. */
  async all(check: (row: Waiting) => boolean): Promise<Waiting[]> {
    return eventually(async () => {
      const rows = await this.outbox();
      return rows.length > 0 && rows.every(check) && rows;
    });
  }

  /** Instead of waiting out the back-off. */
  async dueNow(attempts: number): Promise<void> {
    await this.sql(
      'update webhook_deliveries set next_at = now(), attempts = $2 where webhook_id = $1',
      this.hook.id,
      attempts,
    );
  }
}
