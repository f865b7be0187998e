import { formatApiKey, hashSecret, makeSecret, parseApiKey, secretMatches } from './api-key';
import { addressAllowed } from './allowed-addresses';
import { RootKey } from './root-key';
import type { ApiKeyId } from '../common';

const id = '1810970515641233410' as ApiKeyId;

describe('API keys', () => {
  it('are made, written, read back and checked', () => {
    const secret = makeSecret(id);
    const key = formatApiKey({ id, secret });
    expect(key).toMatch(/^pk_1810970515641233410_[0-9A-Za-z]{38}$/);
    expect(parseApiKey(key)).toEqual({ id, secret });
    expect(secretMatches(secret, hashSecret(secret))).toBe(true);
    expect(secretMatches(makeSecret(id), hashSecret(secret))).toBe(false);
  });

  it('with any character changed, of another id or of another form are no keys', () => {
    const key = formatApiKey({ id, secret: makeSecret(id) });
    for (let at = key.indexOf('_', 3) + 1; at < key.length; at += 1) {
      const other = key[at] === 'a' ? 'b' : 'a';
      expect(parseApiKey(key.slice(0, at) + other + key.slice(at + 1))).toBeNull();
    }
    for (const no of ['', 'pk__', key.replace(id, '1'), `${key} `, key.slice(0, -1), key.replace('pk', 'sk')])
      expect(parseApiKey(no)).toBeNull();
  });

  it('of the platform match nothing when there is none', () => {
    expect(new RootKey('r'.repeat(32)).matches('r'.repeat(32))).toBe(true);
    expect(new RootKey('r'.repeat(32)).matches('x')).toBe(false);
    expect(new RootKey(undefined).matches('')).toBe(false);
  });
});

it('addresses are allowed by address, by range, in both families, and mapped', () => {
  expect(addressAllowed('1.2.3.4', [])).toBe(true);
  const allowed = ['10.0.0.0/8', '192.168.1.5', '2001:db8::/32'];
  for (const yes of ['10.9.8.7', '192.168.1.5', '::ffff:10.1.1.1', '2001:db8::1'])
    expect(addressAllowed(yes, allowed)).toBe(true);
  for (const no of ['11.0.0.1', '192.168.1.6', '2001:db9::1', 'nonsense'])
    expect(addressAllowed(no, allowed)).toBe(false);
});
