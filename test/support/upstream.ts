import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

/** One request to the scripted provider, and what the script may do with it. */
export class Exchange {
  /** Resolves when Parley closed the connection before the answer's end. */
  readonly aborted: Promise<void>;
  constructor(
    readonly headers: IncomingMessage['headers'],
    readonly body: any,
    readonly response: ServerResponse,
    /** 1 for the model's first request, 2 for the second … */
    readonly attempt: number,
  ) {
    this.aborted = new Promise((resolve) =>
      response.once('close', () => {
        if (!response.writableFinished) resolve();
      }),
    );
  }

  start(type = 'text/event-stream'): this {
    if (!this.response.headersSent) this.response.writeHead(200, { 'content-type': type });
    return this;
  }

  /** Writes exactly these bytes in one write, and waits until they left. */
  async raw(bytes: string | Buffer): Promise<this> {
    this.start();
    await new Promise<void>((resolve) => this.response.write(bytes, () => resolve()));
    return this;
  }

  chunk(chunk: unknown): Promise<this> {
    return this.raw(`data: ${JSON.stringify(chunk)}\n\n`);
  }

  piece(content: string): Promise<this> {
    return this.chunk({ choices: [{ index: 0, delta: { content } }] });
  }

  async pieces(...contents: string[]): Promise<this> {
    for (const content of contents) await this.piece(content);
    return this;
  }

  /** A regular end: finish reason, usage, [DONE]. */
  async done(
    usage: { prompt_tokens: number; completion_tokens: number } | null = {
      prompt_tokens: 7,
      completion_tokens: 5,
    },
  ): Promise<void> {
    await this.chunk({ choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] });
    if (usage)
      await this.chunk({
        choices: [],
        usage: { ...usage, total_tokens: usage.prompt_tokens + usage.completion_tokens },
      });
    await this.raw('data: [DONE]\n\n');
    this.response.end();
  }

  fail(
    status: number,
    body: string,
    headers: Record<string, string> = { 'content-type': 'application/json' },
  ): void {
    this.response.writeHead(status, headers).end(body);
  }
}

export type Script = (exchange: Exchange) => Promise<unknown> | void;

/** An OpenAI-compatible provider on a port of its own whose every answer a test writes. Scripts are chosen by model name. */
export class Upstream {
  private readonly scripts = new Map<string, Script>();
  readonly requests = new Map<string, Exchange[]>();

  private constructor(
    private readonly server: ReturnType<typeof createServer>,
    readonly url: string,
  ) {}

  static async start(): Promise<Upstream> {
    const server = createServer((request, response) => {
      void (async () => {
        let text = '';
        for await (const part of request.setEncoding('utf8')) text += part as string;
        await upstream.answer(request, JSON.parse(text) as { model: string }, response);
      })();
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const upstream = new Upstream(server, `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`);
    return upstream;
  }

  /** From now on requests for `model` are answered by `script`; without one the last user message comes back word by word. */
  on(model: string, script: Script): void {
    this.scripts.set(model, script);
  }

  seen(model: string): Exchange[] {
    return this.requests.get(model) ?? [];
  }

  async close(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  private async answer(
    request: IncomingMessage,
    body: { model: string; messages?: { role: string; content: string }[] },
    response: ServerResponse,
  ): Promise<void> {
    const seen = this.seen(body.model);
    const exchange = new Exchange(request.headers, body, response, seen.length + 1);
    this.requests.set(body.model, [...seen, exchange]);
    const script = this.scripts.get(body.model);
    if (script) {
      await script(exchange);
      return;
    }
    const said = body.messages?.findLast(({ role }) => role === 'user')?.content ?? '';
    await exchange.pieces(...(said.match(/\S+\s*|\s+/g) ?? []));
    await exchange.done();
  }
}

/** A promise that a test opens by hand: how script and test agree on an order without sleeping. */
export function gate(): { opened: Promise<void>; open: () => void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  return { opened: promise, open: resolve };
}
