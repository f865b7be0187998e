import type { IncomingMessage, Server } from 'node:http';
import type { Socket } from 'node:net';
import { Injectable, Logger } from '@nestjs/common';
import { WebSocketServer, type WebSocket } from 'ws';
import { AppError, ERRORS, Shutdown } from '../common';
import { answerAndClose, Strangers } from '../common/http';

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

/** What else a request offers to go on in, as HTTP/2 in the clear, is not taken up: it is answered in HTTP/1.1. */
export function asksForSocket({ headers }: IncomingMessage): boolean {
  return headers.upgrade?.toLowerCase() === 'websocket';
}

/** Over the wait for a connection to Postgres: who waits for that is told of it. */
const HANDSHAKE_TIMEOUT_MS = 10_000;
const RETRY_SECONDS = 1;

/** The WebSocket side of the one port: routes upgrade requests, refuses before the upgrade, hands open sockets over. */
@Injectable()
export class SocketServer {
  private readonly logger = new Logger(SocketServer.name);
  private readonly routes: { route: SocketRoute; server: WebSocketServer }[] = [];
  private addressOf = (request: IncomingMessage): string => request.socket.remoteAddress ?? '';

  constructor(
    private readonly shutdown: Shutdown,
    private readonly strangers: Strangers,
  ) {}

  /** Milliseconds until a handshake that nobody has decided on is answered 503. */
  handshakePatienceMs = HANDSHAKE_TIMEOUT_MS;

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

  private async upgrade(request: IncomingMessage, socket: Socket, head: Buffer): Promise<void> {
    socket.on('error', () => socket.destroy());
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      answerAndClose(socket, TOO_SLOW);
    }, this.handshakePatienceMs);
    try {
      const url = URL.parse(request.url?.replace(/^\/{2,}/, '/') ?? '/', 'http://host');
      if (!url)
        throw new HandshakeRefused(400, { error: 'The request could not be read.', code: 'BAD_INPUT' });
      this.refuseStopping();
      const found = this.routes.find(({ route }) => route.path.test(url.pathname));
      if (!found) throw new HandshakeRefused(404, { error: 'No such path.', code: 'NOT_FOUND' });
      this.strangers.locate(request);
      const address = this.addressOf(request);
      const admitted = await found.route.admit({ url, headers: request.headers, address });
      if (late || socket.destroyed) return;
      // The signal may have come while it was asked who this is.
      this.refuseStopping();
      this.strangers.recognise(socket);
      found.server.handleUpgrade(request, socket, head, (ws) => found.route.open(ws, admitted));
    } catch (error) {
      const refusal = this.refusalOf(error);
      if (!late) answerAndClose(socket, refusal);
    } finally {
      clearTimeout(timer);
    }
  }

  private refuseStopping(): void {
    if (!this.shutdown.begun) return;
    const { status, message } = ERRORS.SHUTTING_DOWN;
    throw new HandshakeRefused(status, { error: message, code: 'SHUTTING_DOWN' }, 1);
  }

  private refusalOf(error: unknown): HandshakeRefused {
    if (error instanceof HandshakeRefused) return error;
    if (error instanceof AppError) return refusalOf(error);
    this.logger.error({ err: error }, 'unexpected');
    return new HandshakeRefused(500, {
      error: 'Something went wrong here; it has been logged.',
      code: 'INTERNAL',
    });
  }
}

const TOO_SLOW = new HandshakeRefused(
  ERRORS.OVERLOADED.status,
  { error: ERRORS.OVERLOADED.message, code: 'OVERLOADED' },
  RETRY_SECONDS,
);

/** A failure as every handshake tells it. */
function refusalOf({ status, message, code, retryAfterSeconds }: AppError): HandshakeRefused {
  return new HandshakeRefused(status, { error: message, code }, retryAfterSeconds);
}
