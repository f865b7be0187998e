import type { IncomingMessage, Server } from 'node:http';
import type { Socket } from 'node:net';
import { plainAddress } from '../address-ranges';
import { ConnectionCounts } from '../connection-counts';
import { AppError } from '../errors';
import type { TrustedProxies } from './client-address';
import { answerAndClose } from './raw-answer';

export interface StrangerLimits {
  /** Of one process, and of one address. */
  readonly connections: number;
  readonly connectionsPerAddress: number;
  /** Many come through one of these: its connections are counted by who asks over them. */
  readonly proxies: TrustedProxies;
}

const RETRY_AFTER_SECONDS = 1;
/** Who was turned away gets a moment to read why; past so many nobody does. */
const MAX_LEAVING = 1_000;

/**
 * Connections on which no key and no token has been seen yet, HTTP and WebSocket alike: they are counted from their
 * first moment, and those over the limits are told so and closed before anything is read from them.
 */
export class Strangers {
  private readonly addresses = new Map<Socket, string>();
  private readonly counts = new ConnectionCounts();
  private leaving = 0;

  constructor(private readonly limits: StrangerLimits) {}

  get count(): number {
    return this.addresses.size;
  }

  has(socket: Socket): boolean {
    return this.addresses.has(socket);
  }

  /** A server as it was made: whoever listens for its connections by then meets none that is one too many. */
  guard(server: Server): void {
    const listeners = server.listeners('connection') as ((this: Server, socket: Socket) => void)[];
    server.removeAllListeners('connection');
    server.on('connection', (socket: Socket) => {
      if (!this.meet(socket)) return;
      for (const listener of listeners) listener.call(server, socket);
    });
  }

  /** A credential was good: it is a stranger's connection no more. */
  recognise(socket: Socket): void {
    const address = this.addresses.get(socket);
    if (address === undefined) return;
    this.addresses.delete(socket);
    this.counts.remove([address]);
  }

  /** Counts a stranger's connection by who asks over it, which is somebody else where a proxy stands between. RATE_LIMITED. */
  locate(request: IncomingMessage): void {
    const counted = this.addresses.get(request.socket);
    if (counted === undefined) return;
    const address = this.limits.proxies.addressOf(request);
    if (address === counted) return;
    const refusal = this.tooManyFrom(address);
    if (refusal) throw refusal;
    this.counts.remove([counted]);
    this.counts.add([address]);
    this.addresses.set(request.socket, address);
  }

  private meet(socket: Socket): boolean {
    const address = plainAddress(socket.remoteAddress ?? '');
    const refusal =
      this.count >= this.limits.connections
        ? new AppError('OVERLOADED', { retryAfterSeconds: RETRY_AFTER_SECONDS })
        : this.tooManyFrom(address);
    if (refusal) {
      this.turnAway(socket, refusal);
      return false;
    }
    this.addresses.set(socket, address);
    this.counts.add([address]);
    socket.once('close', () => this.recognise(socket));
    return true;
  }

  private tooManyFrom(address: string): AppError | null {
    const { proxies, connectionsPerAddress } = this.limits;
    if (proxies.trusts(address) || this.counts.of(address) < connectionsPerAddress) return null;
    return new AppError('RATE_LIMITED', {
      message: 'Too many connections of this address without a key; come back later.',
      retryAfterSeconds: RETRY_AFTER_SECONDS,
    });
  }

  private turnAway(socket: Socket, { status, message, code, retryAfterSeconds }: AppError): void {
    if (this.leaving >= MAX_LEAVING) {
      socket.destroy();
      return;
    }
    this.leaving += 1;
    socket.once('close', () => (this.leaving -= 1));
    answerAndClose(socket, { status, body: { error: message, code }, retryAfterSeconds });
  }
}
