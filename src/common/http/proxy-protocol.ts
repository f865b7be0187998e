import { isIP, type Server, type Socket } from 'node:net';
import { plainAddress } from '../address-ranges';

const SIGNATURE = Buffer.from('\r\n\r\n\0\r\nQUIT\n', 'latin1');
/** "PROXY UNKNOWN" and two of the longest IPv6 addresses, as the protocol has it. */
const MAX_V1_BYTES = 107;
/** The addresses and what a proxy may tell beside them (TLS names, ids); 64 KiB would be allowed. */
const MAX_V2_BYTES = 4_096;

/** What a connection begins with: so far too little, nothing that is a header, or a header. */
export type ProxyHeader =
  | 'more'
  | 'bad'
  /** `address` null: the proxy speaks for itself (a health check) or of no IP address. */
  | { readonly bytes: number; readonly address: string | null };

/** Reads a header of the PROXY protocol, version 1 or 2. */
export function parseProxyHeader(head: Buffer): ProxyHeader {
  const compared = Math.min(head.length, SIGNATURE.length);
  if (head.subarray(0, compared).equals(SIGNATURE.subarray(0, compared)))
    return head.length < 16 ? 'more' : parseV2(head);
  return parseV1(head);
}

function parseV1(head: Buffer): ProxyHeader {
  const text = head.subarray(0, MAX_V1_BYTES).toString('latin1');
  if (!text.startsWith('PROXY '.slice(0, text.length))) return 'bad';
  const end = text.indexOf('\r\n');
  if (end < 0) return text.length < MAX_V1_BYTES ? 'more' : 'bad';
  const bytes = end + 2;
  const [, family, source = '', target = '', ...ports] = text.slice(0, end).split(' ');
  // What follows UNKNOWN is to be ignored.
  if (family === 'UNKNOWN') return { bytes, address: null };
  const version = { TCP4: 4, TCP6: 6 }[family ?? ''];
  if (version === undefined || isIP(source) !== version || isIP(target) !== version) return 'bad';
  if (ports.length !== 2 || !ports.every((port) => /^(0|[1-9]\d{0,4})$/.test(port) && Number(port) <= 65_535))
    return 'bad';
  return { bytes, address: plainAddress(source) };
}

function parseV2(head: Buffer): ProxyHeader {
  const length = head.readUInt16BE(14);
  const bytes = 16 + length;
  const [version, command] = [head[12]! >> 4, head[12]! & 0xf];
  if (version !== 2 || command > 1 || bytes > MAX_V2_BYTES) return 'bad';
  if (head.length < bytes) return 'more';
  // LOCAL: whatever follows is to be skipped.
  if (command === 0) return { bytes, address: null };
  const [family, transport] = [head[13]! >> 4, head[13]! & 0xf];
  if (family > 3 || transport > 2) return 'bad';
  if (family === 1) {
    if (length < 12) return 'bad';
    return { bytes, address: head.subarray(16, 20).join('.') };
  }
  if (family === 2) {
    if (length < 36) return 'bad';
    const groups = Array.from({ length: 8 }, (_, i) => head.readUInt16BE(16 + i * 2).toString(16));
    // As the URL parser writes it, which is as a socket does.
    const address = new URL(`http://[${groups.join(':')}]/`).hostname.slice(1, -1);
    const v4 = groups.slice(0, 6).join(':') === '0:0:0:0:0:ffff' ? head.subarray(28, 32).join('.') : null;
    return { bytes, address: v4 ?? address };
  }
  return { bytes, address: null };
}

export interface ProxyProtocolSettings {
  readonly trusts: (address: string | undefined) => boolean;
  /** How long a trusted peer may take for its header. */
  readonly timeoutMs?: number;
  /** A trusted peer did not send what it must; the connection is gone. */
  readonly refused?: (address: string, why: string) => void;
}

/**
 * From now on every connection from a trusted peer has to begin with a PROXY header; the address in it becomes the
 * socket's `remoteAddress`, for all who look later. Others' connections are handed on as they are. What listens to the
 * server's 'connection' already is told once the header is read. Returns what ends the connections that still owe it.
 */
export function readProxyHeaders(
  server: Server,
  { trusts, timeoutMs = 5_000, refused }: ProxyProtocolSettings,
): () => void {
  const waiting = new Set<Socket>();
  const listeners = server.listeners('connection') as ((socket: Socket) => void)[];
  server.removeAllListeners('connection');
  const handOn = (socket: Socket): void => {
    for (const listener of listeners) listener.call(server, socket);
  };
  server.on('connection', (socket: Socket) => {
    const peer = socket.remoteAddress ?? '';
    if (!trusts(peer)) return handOn(socket);
    let head: Buffer = Buffer.alloc(0);
    const over = (): void => {
      clearTimeout(timer);
      waiting.delete(socket);
      socket.off('readable', read).off('end', gone).off('error', gone).off('close', over);
    };
    const gone = (): void => void socket.destroy();
    const refuse = (why: string): void => {
      over();
      socket.on('error', () => undefined).destroy();
      refused?.(peer, why);
    };
    const read = (): void => {
      const chunk = socket.read() as Buffer | null;
      if (!chunk) return;
      head = head.length === 0 ? chunk : Buffer.concat([head, chunk]);
      const found = parseProxyHeader(head);
      if (found === 'more') return;
      if (found === 'bad') return refuse('its connection began with something else than a PROXY header');
      over();
      if (found.address !== null)
        Object.defineProperty(socket, 'remoteAddress', { value: found.address, configurable: true });
      if (head.length > found.bytes) socket.unshift(head.subarray(found.bytes));
      handOn(socket);
    };
    const timer = setTimeout(() => refuse(`no PROXY header came within ${timeoutMs} ms`), timeoutMs);
    waiting.add(socket);
    socket.on('readable', read).on('end', gone).on('error', gone).on('close', over);
  });
  return () => {
    for (const socket of waiting) socket.destroy();
  };
}
