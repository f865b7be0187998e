import type { IncomingMessage, Server } from 'node:http';
import type { Socket } from 'node:net';
import { STATUS_CODES } from 'node:http';
import { Injectable, Logger } from '@nestjs/common';
import { WebSocketServer, type WebSocket } from 'ws';

/** Why a handshake is refused, before the upgrade: an HTTP answer with a JSON body. */
export class HandshakeRefused extends Error {
  constructor(
    readonly status: number,
    readonly body: Readonly<Record<string, unknown>>,
    readonly retryAfterSeconds?: number,
  ) {
    super(`handshake refused with ${status}`);
  }
}

/** One WebSocket path and who answers on it. */
export interface SocketRoute<T = unknown> {
  readonly path: RegExp;
  /** Subprotocols in the order of preference; a client that asks for none of them gets none. */
  readonly protocols: readonly string[];
  /** A larger frame closes the connection with 1009. */
  readonly maxFrameBytes: number;
  /** Who is this? Throws HandshakeRefused. */
  admit(handshake: Handshake): Promise<T>;
  open(ws: WebSocket, admitted: T): void;
}

export interface Handshake {
  readonly url: URL;
  readonly headers: IncomingMessage['headers'];
  /** The client's IP address, also behind a trusted proxy. */
  readonly address: string;
}

const HANDSHAKE_TIMEOUT_MS = 15_000;

/** The WebSocket side of the one port: routes upgrade requests, refuses before the upgrade, hands open sockets over. */
@Injectable()
export class SocketServer {
  private readonly logger = new Logger(SocketServer.name);
  private readonly routes: { route: SocketRoute; server: WebSocketServer }[] = [];
  private closing = false;
  private addressOf = (request: IncomingMessage): string => request.socket.remoteAddress ?? '';

  add<T>(route: SocketRoute<T>): void {
    const { protocols, maxFrameBytes } = route;
    const server = new WebSocketServer({
      noServer: true,
      clientTracking: false,
      // Compression costs 300 KiB a connection; frames here are small.
      perMessageDeflate: false,
      maxPayload: maxFrameBytes,
      handleProtocols: (offered) => protocols.find((protocol) => offered.has(protocol)) ?? false,
    });
    this.routes.push({ route, server });
  }

  /** `addressOf` says whose request it is, also behind a proxy. */
  attach(server: Server, addressOf: (request: IncomingMessage) => string): void {
    this.addressOf = addressOf;
    server.on('upgrade', (request, socket, head) => void this.upgrade(request, socket as Socket, head));
  }

  /** From now on handshakes are refused with 503. */
  stopAccepting(): void {
    this.closing = true;
  }

  private async upgrade(request: IncomingMessage, socket: Socket, head: Buffer): Promise<void> {
    socket.on('error', () => socket.destroy());
    const timer = setTimeout(() => socket.destroy(), HANDSHAKE_TIMEOUT_MS);
    try {
      const url = URL.parse(request.url?.replace(/^\/{2,}/, '/') ?? '/', 'http://host');
      if (!url)
        throw new HandshakeRefused(400, { error: 'The request could not be read.', code: 'BAD_INPUT' });
      if (this.closing) {
        const error = 'This server is shutting down; come back in a moment.';
        throw new HandshakeRefused(503, { error, code: 'SHUTTING_DOWN' }, 1);
      }
      const found = this.routes.find(({ route }) => route.path.test(url.pathname));
      if (!found) throw new HandshakeRefused(404, { error: 'No such path.', code: 'NOT_FOUND' });
      const address = this.addressOf(request);
      const admitted = await found.route.admit({ url, headers: request.headers, address });
      if (socket.destroyed) return;
      found.server.handleUpgrade(request, socket, head, (ws) => found.route.open(ws, admitted));
    } catch (error) {
      refuse(socket, this.refusalOf(error));
    } finally {
      clearTimeout(timer);
    }
  }

  private refusalOf(error: unknown): HandshakeRefused {
    if (error instanceof HandshakeRefused) return error;
    this.logger.error({ err: error }, 'unexpected');
    return new HandshakeRefused(500, {
      error: 'Something went wrong here; it has been logged.',
      code: 'INTERNAL',
    });
  }
}

function refuse(socket: Socket, { status, body, retryAfterSeconds }: HandshakeRefused): void {
  if (socket.destroyed) return;
  const text = JSON.stringify(body);
  const retry = retryAfterSeconds === undefined ? '' : `retry-after: ${retryAfterSeconds}\r\n`;
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}\r\nconnection: close\r\n${retry}` +
      `content-type: application/json; charset=utf-8\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
  );
}
