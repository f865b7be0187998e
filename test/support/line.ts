import { connect, type Socket } from 'node:net';
import { eventually } from './app';

/** A connection that says what it is told to, and what came back. */
export class Line {
  text = '';
  closed = false;
  private constructor(readonly socket: Socket) {
    socket.setEncoding('utf8').on('data', (text: string) => (this.text += text));
    socket.on('close', () => (this.closed = true)).on('error', () => undefined);
  }

  static async open(url: string, localAddress = '127.0.0.1'): Promise<Line> {
    const { hostname, port } = new URL(url);
    const socket = connect({ host: hostname, port: Number(port), localAddress });
    await new Promise((resolve) => socket.once('connect', resolve));
    return new Line(socket);
  }

  say(head: string, body = ''): this {
    this.socket.write(`${head.trim().replaceAll('\n', '\r\n')}\r\nhost: x\r\n\r\n${body}`);
    return this;
  }

  /** The status of the first answer. */
  status(): Promise<number> {
    return eventually(async () => Number(/^HTTP\/1\.1 (\d{3})/.exec(this.text)?.[1]));
  }

  ended(): Promise<boolean> {
    return eventually(async () => this.closed);
  }
}
