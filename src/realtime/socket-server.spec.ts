import { createServer } from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { Shutdown } from '../common';
import type { Strangers } from '../common/http';
import { SocketServer } from './socket-server';

const PATIENCE_MS = 30;
const strangers = { locate: () => undefined, recognise: () => undefined } as unknown as Strangers;

/** What a handshake is answered, whole, until its connection ends. */
function handshake(port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1').setEncoding('latin1').on('error', reject);
    let text = '';
    socket.on('data', (data: string) => (text += data)).on('close', () => resolve(text));
    socket.write(
      'GET /slow HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n' +
        'sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n',
    );
  });
}

describe.each([
  ['comes too late', (done: () => void) => done],
  ['fails too late', (_: () => void, failed: (error: Error) => void) => () => failed(new Error('late'))],
])('a handshake whose admission %s', (_, end) => {
  it('is answered 503 once, in time, and never opened', async () => {
    const sockets = new SocketServer(new Shutdown(), strangers);
    sockets.handshakePatienceMs = PATIENCE_MS;
    let decide = (): void => undefined;
    const opened = jest.fn();
    sockets.add({
      path: /^\/slow$/,
      protocols: [],
      maxFrameBytes: 1_024,
      admit: () => new Promise<void>((resolve, reject) => (decide = end(resolve, reject))),
      open: opened,
    });
    const server = createServer();
    sockets.attach(server, () => '127.0.0.1');
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
    // Decided while the answer is still being read.
    const timer = setTimeout(() => decide(), 2 * PATIENCE_MS);
    const text = await handshake((server.address() as AddressInfo).port);
    clearTimeout(timer);
    decide();
    await new Promise(setImmediate);
    server.close();
    const [head, body] = text.split('\r\n\r\n') as [string, string];
    expect(head).toMatch(/^HTTP\/1\.1 503 /);
    expect(head).toMatch(/\r\nretry-after: 1(\r\n|$)/);
    expect(JSON.parse(body)).toMatchObject({ code: 'OVERLOADED' });
    expect(opened).not.toHaveBeenCalled();
  });
});
