import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Exchange } from './upstream';

/** One request for embeddings, images or a transcript; `body` is the JSON, or the form's fields by name. */
export class MediaExchange extends Exchange {
  constructor(
    readonly path: string,
    /** The form's file. */
    readonly file: File | null,
    ...rest: ConstructorParameters<typeof Exchange>
  ) {
    super(...rest);
  }

  json(body: unknown): void {
    this.response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  }
}

export type MediaScript = (exchange: MediaExchange) => unknown;

/** An OpenAI-compatible provider of everything but chat, on a port of its own. Scripts are chosen by model name. */
export class MediaUpstream {
  private readonly scripts = new Map<string, MediaScript>();
  private readonly requests = new Map<string, MediaExchange[]>();

  private constructor(
    private readonly server: ReturnType<typeof createServer>,
    readonly url: string,
  ) {}

  static async start(): Promise<MediaUpstream> {
    const server = createServer((request, response) => {
      upstream.answer(request, response).catch((error: unknown) => {
        // Who asks may leave in the middle of an upload; anything else is this test's own mistake.
        if (!request.destroyed) throw error;
      });
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const upstream = new MediaUpstream(
      server,
      `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`,
    );
    return upstream;
  }

  on(model: string, script: MediaScript): void {
    this.scripts.set(model, script);
  }

  seen(model: string): MediaExchange[] {
    return this.requests.get(model) ?? [];
  }

  async close(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  private async answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const bytes = Buffer.concat(chunks);
    let body: Record<string, any> = {};
    let file: File | null = null;
    const type = request.headers['content-type'] ?? '';
    if (type.startsWith('multipart/')) {
      const form = await new Response(bytes, { headers: { 'content-type': type } }).formData();
      for (const [name, value] of form.entries()) {
        if (typeof value !== 'string') file = value;
        else body[name] = name in body ? [body[name], value].flat() : value;
      }
    } else {
      body = JSON.parse(bytes.toString('utf8')) as Record<string, any>;
    }
    const model = body.model as string;
    const seen = this.seen(model);
    const exchange = new MediaExchange(
      request.url ?? '',
      file,
      request.headers,
      body,
      response,
      seen.length + 1,
    );
    this.requests.set(model, [...seen, exchange]);
    await this.scripts.get(model)!(exchange);
  }
}

/** A recording of silence: 16 bits, one channel. */
export function wav(seconds: number, rate = 8_000): Buffer {
  const samples = Buffer.alloc(Math.round(seconds * rate) * 2);
  const head = Buffer.alloc(44);
  head.write('RIFF', 0);
  head.writeUInt32LE(36 + samples.length, 4);
  head.write('WAVEfmt ', 8);
  head.writeUInt32LE(16, 16);
  head.writeUInt16LE(1, 20);
  head.writeUInt16LE(1, 22);
  head.writeUInt32LE(rate, 24);
  head.writeUInt32LE(rate * 2, 28);
  head.writeUInt16LE(2, 32);
  head.writeUInt16LE(16, 34);
  head.write('data', 36);
  head.writeUInt32LE(samples.length, 40);
  return Buffer.concat([head, samples]);
}
