import { STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';

export interface RawAnswer {
  readonly status: number;
  readonly body: unknown;
  readonly retryAfterSeconds?: number | undefined;
}

/** So long what still comes is read and dropped: a connection that is closed over it may lose the answer. */
const LINGER_MS = 1_000;

/** An HTTP answer with a JSON body on a socket that no HTTP server has, or has any more; then the end of the connection. */
export function answerAndClose(socket: Socket, { status, body, retryAfterSeconds }: RawAnswer): void {
  if (socket.destroyed) return;
  const text = JSON.stringify(body);
  const retry = retryAfterSeconds === undefined ? '' : `retry-after: ${retryAfterSeconds}\r\n`;
  socket.on('error', () => socket.destroy());
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}\r\nconnection: close\r\n${retry}` +
      `content-type: application/json; charset=utf-8\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
  );
  socket.resume();
  const timer = setTimeout(() => socket.destroy(), LINGER_MS);
  socket.once('close', () => clearTimeout(timer));
}
