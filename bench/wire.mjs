// A WebSocket client for load and nothing else (RFC 6455): text frames, pings answered, no extensions, no fragments. It
// reads into one buffer for all sockets and makes no object for a frame, so that what is measured gets the machine. Its
// masking key is zero, which a client with anything to protect must not do.
import { randomBytes } from 'node:crypto';
import { connect } from 'node:net';

const TEXT = 0x1;
const CLOSE = 0x8;
const PING = 0x9;
const PONG = 0xa;
const MASKED = 0x80;
const HEAD_END = '\r\n\r\n';
const LATIN1 = 'latin1';

/** Everything is read here first: a socket's bytes are taken out before the next socket is read. */
const shared = Buffer.allocUnsafe(262_144);

function frameOf(opcode, payload) {
  const length = payload.length;
  const head = length < 126 ? 2 : length < 65_536 ? 4 : 10;
  const frame = Buffer.alloc(head + 4 + length);
  frame[0] = 0x80 | opcode;
  frame[1] = MASKED | (head === 2 ? length : head === 4 ? 126 : 127);
  if (head === 4) frame.writeUInt16BE(length, 2);
  if (head === 10) frame.writeBigUInt64BE(BigInt(length), 2);
  if (typeof payload === 'string') frame.write(payload, head + 4, LATIN1);
  else payload.copy(frame, head + 4);
  return frame;
}

/** Texts are ASCII. `onFrame(buffer, from, to)` sees the payload in place: it is gone when it returns. */
export class Wire {
  #socket;
  #rest;
  #open = false;
  #closed = false;
  #code = 1006;
  #why = '';
  #queue = [];

  constructor(address, { protocol, timeoutMs, onOpen, onFrame, onClose }) {
    const { hostname, port, pathname, search } = new URL(address);
    Object.assign(this, { onOpen, onFrame, onClose });
    const read = (count, buffer) => {
      this.#take(buffer, count);
      return true;
    };
    this.#socket = connect({
      host: hostname,
      port,
      noDelay: true,
      onread: { buffer: shared, callback: read },
    });
    this.#socket.on('error', ({ message }) => (this.#why ||= message));
    this.#socket.on('close', () => this.#ended());
    this.#socket.setTimeout(
      timeoutMs,
      () => this.#open || this.#socket.destroy(new Error('no handshake in time')),
    );
    this.#socket.write(
      [
        `GET ${pathname}${search} HTTP/1.1`,
        `host: ${hostname}:${port}`,
        'connection: Upgrade',
        'upgrade: websocket',
        'sec-websocket-version: 13',
        `sec-websocket-key: ${randomBytes(16).toString('base64')}`,
        ...(protocol ? [`sec-websocket-protocol: ${protocol}`] : []),
        '',
        '',
      ].join('\r\n'),
    );
  }

  send(text) {
    this.#socket.write(frameOf(TEXT, text));
  }

  /** Goes out with what else is queued, at `flush`. */
  queue(text) {
    return this.#queue.push(frameOf(TEXT, text));
  }

  flush() {
    const frames = this.#queue;
    this.#queue = [];
    this.#socket.write(frames.length === 1 ? frames[0] : Buffer.concat(frames));
  }

  close() {
    if (this.#closed) return;
    this.#socket.write(frameOf(CLOSE, Buffer.from([0x03, 0xe8])));
  }

  terminate() {
    this.#socket.destroy();
  }

  #take(buffer, count) {
    let from = 0;
    let to = count;
    if (this.#rest) {
      buffer = Buffer.concat([this.#rest, buffer.subarray(0, count)]);
      to = buffer.length;
      this.#rest = undefined;
    }
    if (!this.#open) {
      const head = buffer.subarray(0, to).indexOf(HEAD_END);
      if (head < 0) return this.#keep(buffer, 0, to);
      const status = buffer.latin1Slice(0, head).split('\r\n', 1)[0];
      if (!status.startsWith('HTTP/1.1 101')) {
        this.#why = `unexpected answer: ${status}`;
        this.#socket.destroy();
        return;
      }
      this.#open = true;
      this.#socket.setTimeout(0);
      from = head + HEAD_END.length;
      this.onOpen();
    }
    while (to - from >= 2) {
      let length = buffer[from + 1] & 0x7f;
      let at = from + 2;
      if (length === 126) {
        if (to - from < 4) break;
        length = buffer.readUInt16BE(at);
        at += 2;
      } else if (length === 127) {
        if (to - from < 10) break;
        length = Number(buffer.readBigUInt64BE(at));
        at += 8;
      }
      if (to - at < length) break;
      this.#frame(buffer[from], buffer, at, at + length);
      from = at + length;
    }
    if (from < to) this.#keep(buffer, from, to);
  }

  #keep(buffer, from, to) {
    this.#rest = Buffer.from(buffer.subarray(from, to));
  }

  #frame(first, buffer, from, to) {
    const opcode = first & 0x0f;
    if (first === (0x80 | TEXT)) this.onFrame(buffer, from, to);
    else if (opcode === PING) this.#socket.write(frameOf(PONG, buffer.subarray(from, to)));
    else if (opcode === CLOSE) {
      if (to - from >= 2) this.#code = buffer.readUInt16BE(from);
      this.#why = buffer.utf8Slice(Math.min(from + 2, to), to);
      this.#socket.end(frameOf(CLOSE, Buffer.from(buffer.subarray(from, Math.min(from + 2, to)))));
    } else if (opcode !== PONG) {
      this.#why = `a frame beginning with 0x${first.toString(16)}`;
      this.#socket.destroy();
    }
  }

  #ended() {
    if (this.#closed) return;
    this.#closed = true;
    this.onClose(this.#code, this.#why);
  }
}
