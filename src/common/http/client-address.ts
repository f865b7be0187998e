import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';

/** Who stands at the other end of a connection. */
export function peerAddress(socket: Socket): string {
  return socket.remoteAddress ?? '';
}

/** Whether that is a proxy of ours, through which many come: its connections are counted by who asks over them. */
export function isOwnProxy(_peer: string): boolean {
  return false;
}

/** Who asks. Whatever counts, allows or notes by address gets it here. */
export function clientAddress(request: IncomingMessage): string {
  return peerAddress(request.socket);
}
