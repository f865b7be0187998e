import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';
import type { WebSocket } from 'ws';

export interface Refusal {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  // What a body holds is what the test expects of it.
  readonly body: Record<string, any>;
}

export interface SocketLife {
  readonly opened: Promise<void>;
  readonly closed: Promise<{ code: number; reason: string }>;
  readonly refused: Promise<Refusal>;
}

/** Let in, refused before the upgrade, closed: each test looks at one of them. `onClose` before anybody hears of it. */
export function lifeOf(ws: WebSocket, onClose: () => void): SocketLife {
  // 'close' follows.
  ws.on('error', () => undefined);
  const opened = new Promise<void>((resolve, reject) => {
    ws.once('open', () => resolve());
    ws.once('close', (code) => reject(new Error(`closed with ${code} before it was open`)));
  });
  const closed = new Promise<{ code: number; reason: string }>((resolve) => {
    ws.once('close', (code, reason) => {
      resolve({ code, reason: reason.toString() });
      onClose();
    });
  });
  const refused = new Promise<Refusal>((resolve, reject) => {
    ws.once('open', () => reject(new Error('it was let in')));
    ws.once('unexpected-response', (_request, response: IncomingMessage) => {
      let text = '';
      response.setEncoding('utf8').on('data', (part: string) => (text += part));
      response.once('end', () => {
        const { statusCode, headers } = response;
        resolve({ status: statusCode!, headers, body: JSON.parse(text) as Refusal['body'] });
        ws.terminate();
      });
    });
  });
  opened.catch(() => undefined);
  refused.catch(() => undefined);
  return { opened, closed, refused };
}
