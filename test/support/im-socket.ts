import type { IncomingMessage } from 'node:http';
import { WebSocket } from 'ws';
import { ask } from './app';

// What a frame holds is what the test expects of it.
export type Frame = Record<string, any>;

export interface SocketOptions {
  readonly token?: string;
  readonly rich?: boolean;
  readonly headers?: Record<string, string>;
  /** False: a peer that answers no ping, so nothing proves that it read anything. */
  readonly autoPong?: boolean;
  readonly path?: string;
}

/** A WebSocket of the IM wire with nothing done by itself: what came, as text and parsed, and how it ended. */
export class ImSocket {
  readonly texts: string[] = [];
  readonly opened: Promise<void>;
  closed: { code: number; reason: string } | undefined;
  private taken = 0;
  private waiters: (() => void)[] = [];

  private constructor(readonly ws: WebSocket) {
    ws.on('message', (data: Buffer) => {
      this.texts.push(data.toString());
      this.wake();
    });
    ws.on('close', (code, reason) => {
      this.closed = { code, reason: reason.toString() };
      this.wake();
    });
    ws.on('error', () => undefined);
    this.opened = new Promise((resolve, reject) => ws.once('open', resolve).once('error', reject));
    this.opened.catch(() => undefined);
  }

  static dial(
    url: string,
    { token, rich, headers, autoPong = true, path = '/chat' }: SocketOptions,
  ): ImSocket {
    const query = token === undefined ? '' : `?token=${encodeURIComponent(token)}`;
    return new ImSocket(
      new WebSocket(`${url.replace('http', 'ws')}${path}${query}`, rich ? ['parley.im.v1'] : [], {
        autoPong,
        ...(headers && { headers }),
      }),
    );
  }

  /** Open, and in the richer dialect `ready`. */
  static async open(url: string, options: SocketOptions): Promise<ImSocket> {
    const socket = ImSocket.dial(url, options);
    await socket.opened;
    if (options.rich) await socket.next(({ type }) => type === 'ready');
    return socket;
  }

  /** Status and body of the refusal that is expected. */
  static async refused(url: string, options: SocketOptions): Promise<{ status: number; body: Frame }> {
    const { ws } = ImSocket.dial(url, options);
    return new Promise((resolve, reject) => {
      ws.once('open', () => reject(new Error('it was let in')));
      ws.once('unexpected-response', (_request, response: IncomingMessage) => {
        let text = '';
        response.setEncoding('utf8').on('data', (part: string) => (text += part));
        response.once('end', () =>
          resolve({ status: response.statusCode!, body: JSON.parse(text) as Frame }),
        );
      });
    });
  }

  get frames(): Frame[] {
    return this.texts.map((text) => JSON.parse(text) as Frame);
  }

  send(frame: Frame | string): this {
    this.ws.send(typeof frame === 'string' ? frame : JSON.stringify(frame));
    return this;
  }

  /** The next frame that fits; those before it are passed over. */
  async next(fits: (frame: Frame) => boolean = () => true): Promise<Frame> {
    for (;;) {
      while (this.taken < this.texts.length) {
        const frame = JSON.parse(this.texts[this.taken]!) as Frame;
        this.taken += 1;
        if (fits(frame)) return frame;
      }
      if (this.closed) throw new Error(`closed with ${this.closed.code}: ${fits.toString()} never came`);
      await new Promise<void>((resolve) => this.waiters.push(resolve));
    }
  }

  /** Everything that was to come before now has come: what this socket is sent is in order with the answer to a ping. */
  async settled(): Promise<Frame[]> {
    this.send({ type: 'ping' });
    await this.next(({ type }) => type === 'pong');
    return this.frames.filter(({ type }) => type !== 'pong');
  }

  /** Sends, and waits for the error that comes of it. */
  fails(frame: Frame | string): Promise<Frame> {
    return this.send(frame).next(({ type }) => type === 'error');
  }

  async ended(): Promise<{ code: number; reason: string }> {
    while (!this.closed) await new Promise<void>((resolve) => this.waiters.push(resolve));
    return this.closed;
  }

  async close(): Promise<void> {
    this.ws.close();
    await this.ended();
  }

  private wake(): void {
    for (const wake of this.waiters.splice(0)) wake();
  }
}

export const halvesOf = (apiKey: string): { appKey: string; appSecret: string } => {
  const [, appKey, appSecret] = /^(pk_\d+)_(.+)$/.exec(apiKey)!;
  return { appKey: appKey!, appSecret: appSecret! };
};

export async function imToken(
  url: string,
  apiKey: string,
  userId: string | number,
  more: { client?: string; groupId?: string[] } = {},
): Promise<string> {
  const answer = await ask(url, 'POST', '/chat/oauth/token', { ...halvesOf(apiKey), userId, ...more });
  if (answer.status !== 200) throw new Error(`no token: ${answer.status} ${answer.text}`);
  return answer.body.data.token as string;
}
