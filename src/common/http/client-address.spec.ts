import { TrustedProxies } from './client-address';

const from = (remoteAddress: string | undefined, forwarded?: string) =>
  ({ socket: { remoteAddress }, headers: { 'x-forwarded-for': forwarded } }) as unknown as Parameters<
    TrustedProxies['addressOf']
  >[0];

const proxies = new TrustedProxies(['10.0.0.0/8', 'fd00::1']);

it.each([
  ['no proxy', '203.0.113.9', undefined, '203.0.113.9'],
  ['a stranger who says he is one', '203.0.113.9', '192.0.2.1', '203.0.113.9'],
  ['a stranger who names a proxy', '203.0.113.9', '10.0.0.1', '203.0.113.9'],
  ['a proxy that says nothing', '10.0.0.1', undefined, '10.0.0.1'],
  ['a proxy', '10.0.0.1', '192.0.2.1', '192.0.2.1'],
  ['a proxy on a socket for both families', '::ffff:10.0.0.1', '::ffff:192.0.2.1', '192.0.2.1'],
  ['an IPv6 proxy', 'fd00::1', '2001:db8::7', '2001:db8::7'],
  ['its neighbour', 'fd00::2', '2001:db8::7', 'fd00::2'],
  ['two proxies', '10.0.0.1', '192.0.2.1, 10.0.0.2', '192.0.2.1'],
  ['what the client made up to the left', '10.0.0.1', '198.51.100.1, 192.0.2.1', '192.0.2.1'],
  ['a proxy that the client made up', '10.0.0.1', '10.9.9.9, 192.0.2.1', '192.0.2.1'],
  ['all of them proxies', '10.0.0.1', '10.0.0.3,10.0.0.2', '10.0.0.3'],
  ['a port', '10.0.0.1', '192.0.2.1:4711', '192.0.2.1'],
  ['a port of IPv6', '10.0.0.1', '[2001:db8::7]:4711', '2001:db8::7'],
  ['rubbish', '10.0.0.1', 'unknown', '10.0.0.1'],
  ['rubbish before a proxy', '10.0.0.1', '192.0.2.1, _hidden, 10.0.0.2', '10.0.0.2'],
  ['rubbish left of the client', '10.0.0.1', 'x, 192.0.2.1', '192.0.2.1'],
  ['an empty entry', '10.0.0.1', '192.0.2.1,', '10.0.0.1'],
  ['a zone', '10.0.0.1', 'fe80::1%eth0', '10.0.0.1'],
  ['an octal address', '10.0.0.1', '0300.0.2.1', '10.0.0.1'],
  ['a socket that is gone', undefined, '192.0.2.1', ''],
])('%s', (_, peer, forwarded, client) => {
  expect(proxies.addressOf(from(peer, forwarded))).toBe(client);
});

it('believes nobody when it names nobody', () => {
  const none = new TrustedProxies([]);
  expect(none.any).toBe(false);
  expect(none.addressOf(from('127.0.0.1', '192.0.2.1'))).toBe('127.0.0.1');
  expect(none.trusts('127.0.0.1')).toBe(false);
});

it.each<[string, boolean]>([
  ['0.0.0.0/0', true],
  ['::/0', true],
  ['10.0.0.0/8', false],
  ['10.0.0.10', false],
  ['fd00::/10', false],
])('knows whether it names everybody: %s', (entry, everybody) => {
  expect(new TrustedProxies(['192.0.2.1', entry]).everybody).toBe(everybody);
});
