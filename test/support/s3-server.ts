import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

interface StoredObject {
  readonly bytes: Buffer;
  readonly contentType: string;
}

/** As much of S3 as keeps objects: PUT, GET and DELETE of `/<bucket>/<key>`, signed requests only. */
export class S3Server {
  readonly objects = new Map<string, StoredObject>();
  /** From now on every request is answered with this status. */
  failing: number | undefined;
  readonly credentials = { accessKeyId: 'test-key', secretAccessKey: 'test-secret' };

  private constructor(
    private readonly server: ReturnType<typeof createServer>,
    readonly url: string,
  ) {}

  static async start(): Promise<S3Server> {
    const server = createServer((request, response) => void s3.answer(request, response));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const s3 = new S3Server(server, `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    return s3;
  }

  async close(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  private async answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const { pathname: key } = new URL(request.url ?? '/', this.url);
    const signed = /^AWS4-HMAC-SHA256 Credential=test-key\//.test(request.headers.authorization ?? '');
    if (!signed || this.failing !== undefined) {
      refuse(response, signed ? this.failing! : 403, signed ? 'InternalError' : 'AccessDenied');
      return;
    }
    if (request.method === 'PUT') {
      const contentType = request.headers['content-type'] ?? '';
      this.objects.set(key, { bytes: Buffer.concat(chunks), contentType });
      response.writeHead(200, { etag: '"1"' }).end();
      return;
    }
    if (request.method === 'DELETE') {
      this.objects.delete(key);
      response.writeHead(204).end();
      return;
    }
    const object = this.objects.get(key);
    if (!object) refuse(response, 404, 'NoSuchKey');
    else response.writeHead(200, { 'content-type': object.contentType }).end(object.bytes);
  }
}

function refuse(response: ServerResponse, status: number, code: string): void {
  response
    .writeHead(status, { 'content-type': 'application/xml' })
    .end(`<?xml version="1.0"?><Error><Code>${code}</Code><Message>no</Message></Error>`);
}
