import type { IncomingMessage, RequestListener, Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { ERRORS } from '../errors';

export interface TurnLimits {
  /** Requests of this connection that are not answered yet, the one at work included. */
  atOnce(socket: Socket): number;
  /** So long the answer to one that waited its turn may lie unread, in milliseconds. */
  readonly unreadMs: number;
}

/** Behind the one that is told to come back later; past so many the connection is cut off. */
const MAX_UNHEARD = 64;
const RETRY_AFTER_SECONDS = '1';
const REFUSAL = JSON.stringify({
  error: 'Too many requests on this connection before their answers were read; read them first.',
  code: 'RATE_LIMITED',
});

/**
 * Node reads all requests that came in one packet and begins every one of them. Here those of one connection are worked
 * on in turn: the next begins when the answer before it has left, so a connection has one answer in memory, read or not.
 */
export class Turns {
  private readonly waiting = new WeakMap<Socket, number>();

  constructor(private readonly limits: TurnLimits) {}

  /** What Node calls for a request, in turn. */
  inTurn(work: RequestListener): RequestListener {
    return (request, response) => {
      // It has the connection already: nothing is before it.
      if (response.socket !== null) work(request, response);
      else this.queue(request, response, work);
    };
  }

  /** `work` also for requests that ask whether they may send their body: who does it says so, when it is so far. */
  serve(server: Server, work: RequestListener): void {
    server.on('checkContinue', this.inTurn(work));
    server.on(
      'checkExpectation',
      this.inTurn((_, response) => void response.writeHead(417).end()),
    );
  }

  private queue(request: IncomingMessage, response: ServerResponse, work: RequestListener): void {
    const { socket } = request;
    // Node reads the packet to its end, whatever became of the connection.
    if (socket.destroyed) return;
    const waiting = (this.waiting.get(socket) ?? 0) + 1;
    const excess = waiting + 1 - this.limits.atOnce(socket);
    if (excess > MAX_UNHEARD) {
      socket.destroy();
      return;
    }
    this.waiting.set(socket, waiting);
    if (excess === 1) refuse(response);
    if (excess > 0) return;
    response.once('socket', () => {
      this.waiting.set(socket, this.waiting.get(socket)! - 1);
      // Node gives it the connection first, and then writes what it has of it.
      process.nextTick(() => this.begin(request, response, work));
    });
  }

  private begin(request: IncomingMessage, response: ServerResponse, work: RequestListener): void {
    const { socket } = request;
    if (socket.destroyed) return;
    // The answer before it may have left its own.
    socket.setTimeout(0);
    response.once('prefinish', () => response.setTimeout(this.limits.unreadMs, () => response.destroy()));
    work(request, response);
  }
}

/** Goes out after the answers before it; then the connection is closed. */
function refuse(response: ServerResponse): void {
  response
    .writeHead(ERRORS.RATE_LIMITED.status, {
      connection: 'close',
      'retry-after': RETRY_AFTER_SECONDS,
      'content-type': 'application/json; charset=utf-8',
      'content-length': Buffer.byteLength(REFUSAL),
    })
    .end(REFUSAL);
}
