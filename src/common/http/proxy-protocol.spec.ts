import fc from 'fast-check';
import { parseProxyHeader } from './proxy-protocol';

const v1 = (line: string) => parseProxyHeader(Buffer.from(line, 'latin1'));
const v2 = (command: number, family: number, body: Buffer, length = body.length): Buffer => {
  const head = Buffer.from('\r\n\r\n\0\r\nQUIT\n\0\0\0\0', 'latin1');
  head[12] = command;
  head[13] = family;
  head.writeUInt16BE(length, 14);
  return Buffer.concat([head, body]);
};
const ipv4 = Buffer.from([192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x67, 0, 80]);
const ipv6 = Buffer.from(`20010db8${'0'.repeat(23)}7${'0'.repeat(32)}12670050`, 'hex');

describe('version 1', () => {
  it('names the client', () => {
    expect(v1('PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\nGET /')).toEqual({ bytes: 39, address: '192.0.2.1' });
    expect(v1('PROXY TCP6 2001:db8::7 ::1 4711 80\r\n')).toEqual({ bytes: 36, address: '2001:db8::7' });
    expect(v1('PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n')).toMatchObject({ address: '192.0.2.1' });
    expect(v1('PROXY UNKNOWN ffff::1 whatever\r\n')).toEqual({ bytes: 32, address: null });
    expect(v1('PROXY UNKNOWN\r\n')).toEqual({ bytes: 15, address: null });
  });

  it.each([
    'GET / HTTP/1.1\r\n',
    'proxy TCP4 192.0.2.1 10.0.0.1 4711 80\r\n',
    'PROXY TCP4 192.0.2.1 10.0.0.1 4711\r\n',
    'PROXY TCP4 192.0.2.1 10.0.0.1 4711 80 1\r\n',
    'PROXY TCP4 192.0.2.1 10.0.0.1 4711 65536\r\n',
    'PROXY TCP4 192.0.2.1 10.0.0.1 04711 80\r\n',
    'PROXY TCP4 192.0.2.1 10.0.0.1  80\r\n',
    'PROXY TCP4 192.0.2.256 10.0.0.1 4711 80\r\n',
    'PROXY TCP4 2001:db8::7 ::1 4711 80\r\n',
    'PROXY TCP6 192.0.2.1 10.0.0.1 4711 80\r\n',
    'PROXY UDP4 192.0.2.1 10.0.0.1 4711 80\r\n',
    'PROXY  TCP4 192.0.2.1 10.0.0.1 4711 80\r\n',
    'PROXY\r\n',
    `PROXY UNKNOWN ${'x'.repeat(92)}\r\n`,
  ])('refuses %j', (line) => {
    expect(v1(line)).toBe('bad');
  });

  it('takes the longest there is, and no more', () => {
    expect(v1(`PROXY UNKNOWN ${'x'.repeat(91)}\r\n`)).toEqual({ bytes: 107, address: null });
  });
});

describe('version 2', () => {
  it('names the client', () => {
    expect(parseProxyHeader(v2(0x21, 0x11, ipv4))).toEqual({ bytes: 28, address: '192.0.2.1' });
    expect(parseProxyHeader(v2(0x21, 0x21, ipv6))).toEqual({ bytes: 52, address: '2001:db8::7' });
    const tlv = Buffer.concat([ipv4, Buffer.from([4, 0, 1, 0])]);
    expect(parseProxyHeader(v2(0x21, 0x11, tlv))).toEqual({ bytes: 32, address: '192.0.2.1' });
    const mapped = Buffer.from(`${'0'.repeat(20)}ffffc0000201${'0'.repeat(32)}00010002`, 'hex');
    expect(parseProxyHeader(v2(0x21, 0x21, mapped))).toMatchObject({ address: '192.0.2.1' });
  });

  it('names nobody for a health check, and for what is no IP address', () => {
    expect(parseProxyHeader(v2(0x20, 0x00, Buffer.alloc(0)))).toEqual({ bytes: 16, address: null });
    expect(parseProxyHeader(v2(0x20, 0x11, ipv4))).toEqual({ bytes: 28, address: null });
    expect(parseProxyHeader(v2(0x21, 0x31, Buffer.alloc(216)))).toEqual({ bytes: 232, address: null });
    expect(parseProxyHeader(v2(0x21, 0x00, Buffer.alloc(0)))).toEqual({ bytes: 16, address: null });
  });

  it.each([
    ['version 1 in it', v2(0x11, 0x11, ipv4)],
    ['an unknown command', v2(0x22, 0x11, ipv4)],
    ['an unknown family', v2(0x21, 0x41, ipv4)],
    ['an unknown transport', v2(0x21, 0x13, ipv4)],
    ['too short an IPv4', v2(0x21, 0x11, ipv4.subarray(1))],
    ['too short an IPv6', v2(0x21, 0x21, ipv6.subarray(1))],
    ['more than is kept', v2(0x21, 0x11, ipv4, 4_081)],
  ])('refuses %s', (_, head) => {
    expect(parseProxyHeader(head)).toBe('bad');
  });

  it('takes all that is kept', () => {
    const body = Buffer.concat([ipv4, Buffer.alloc(4_068)]);
    expect(parseProxyHeader(v2(0x21, 0x11, body))).toEqual({ bytes: 4_096, address: '192.0.2.1' });
  });
});

it('wants more until it is whole, whatever is cut where, and never throws', () => {
  for (const whole of [
    Buffer.from('PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n'),
    Buffer.from('PROXY UNKNOWN\r\n'),
    v2(0x21, 0x11, ipv4),
    v2(0x21, 0x21, ipv6),
    v2(0x20, 0, Buffer.alloc(0)),
  ]) {
    for (let cut = 0; cut < whole.length; cut += 1)
      expect(parseProxyHeader(whole.subarray(0, cut))).toBe('more');
    expect(parseProxyHeader(Buffer.concat([whole, Buffer.from('GET')]))).toMatchObject({
      bytes: whole.length,
    });
  }
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.boolean(), (bytes, signed) => {
      const head = signed ? v2(bytes[0] ?? 0, bytes[1] ?? 0, Buffer.from(bytes)) : Buffer.from(bytes);
      const found = parseProxyHeader(head);
      if (typeof found !== 'string') expect(found.bytes).toBeLessThanOrEqual(head.length);
    }),
  );
});
