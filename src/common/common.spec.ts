import { isPrivateAddress } from './addresses';
import { AppError } from './errors';
import { FreshCache } from './fresh-cache';
import { IdGenerator } from './id-generator';
import { asId, isId } from './ids';
import { truncate } from './text';
import { platformTime } from './time';

describe('ids', () => {
  it('are decimal strings within 64 bits', () => {
    for (const id of ['1', '1810970515641233410', '9223372036854775807']) expect(isId(id)).toBe(true);
    for (const no of [
      '',
      '0',
      '01',
      '-1',
      '1.0',
      '9223372036854775808',
      '1;',
      'x',
      1,
      null,
      undefined,
      {},
      ' 1',
    ])
      expect(isId(no)).toBe(false);
    expect(asId(42)).toBe('42');
    expect(asId(2 ** 60)).toBeNull();
  });

  it('are unique and in order, also within a millisecond and when the clock steps back', () => {
    let now = 1_800_000_000_000;
    const ids = new IdGenerator(3, () => now);
    const made: bigint[] = [];
    for (let n = 0; n < 10_000; n += 1) {
      if (n === 5_000) now -= 1_000;
      made.push(BigInt(ids.next()));
    }
    expect(made.every((id, n) => n === 0 || id > made[n - 1]!)).toBe(true);
    expect(made.every((id) => ((id >> 12n) & 1023n) === 3n)).toBe(true);
  });

  it('of two nodes never meet', () => {
    const now = () => 1_800_000_000_000;
    const [a, b] = [new IdGenerator(1, now), new IdGenerator(2, now)];
    const seen = new Set(Array.from({ length: 4_000 }, (_, n) => (n % 2 ? a : b).next<never>()));
    expect(seen.size).toBe(4_000);
    expect(() => a.useSlot(1_024)).toThrow(RangeError);
  });
});

describe('text and time', () => {
  it('truncates by UTF-16 units, never inside a surrogate pair', () => {
    expect(truncate('abc', 5)).toBe('abc');
    expect(truncate('ab😀', 3)).toBe('ab');
    expect(truncate('ab😀', 4)).toBe('ab😀');
  });

  it('writes times as the assistant-platform wire has them', () => {
    expect(platformTime(new Date(Date.UTC(2026, 0, 2, 3, 4, 5, 678)))).toBe('2026-01-02 03:04:05');
  });
});

describe('FreshCache', () => {
  const away = () => Promise.reject(new AppError('STORAGE_UNAVAILABLE'));
  let now = 0;
  beforeEach(() => {
    now = 1_000_000;
  });
  const cache = () => new FreshCache<{ v: number } | null>(10, () => now);

  it('asks once for many, again when the answer is over 750 ms old', async () => {
    let asked = 0;
    const load = async () => ({ v: (asked += 1) });
    const fresh = cache();
    const answers = await Promise.all([fresh.get('k', load), fresh.get('k', load)]);
    expect(answers).toEqual([{ v: 1 }, { v: 1 }]);
    now += 700;
    expect(await fresh.get('k', load)).toEqual({ v: 1 });
    now += 100;
    expect(await fresh.get('k', load)).toEqual({ v: 2 });
    expect(await fresh.get('k', load, 0)).toEqual({ v: 3 });
    fresh.delete('k');
    expect(await fresh.get('k', load)).toEqual({ v: 4 });
  });

  it('stands by its last answer while the storage is away, for ten minutes', async () => {
    const fresh = cache();
    await fresh.get('k', async () => ({ v: 1 }));
    now += 60_000;
    expect(await fresh.get('k', away)).toEqual({ v: 1 });
    now += 600_000;
    await expect(fresh.get('k', away)).rejects.toMatchObject({ code: 'STORAGE_UNAVAILABLE' });
    await expect(fresh.get('never seen', away)).rejects.toMatchObject({ code: 'STORAGE_UNAVAILABLE' });
  });

  it('stands by nothing when the failure is another', async () => {
    const fresh = cache();
    await fresh.get('k', async () => ({ v: 1 }));
    now += 1_000;
    await expect(fresh.get('k', () => Promise.reject(new Error('bug')))).rejects.toThrow('bug');
  });
});

describe('private addresses', () => {
  it.each([
    '10.0.0.1',
    '127.0.0.1',
    '169.254.169.254',
    '::ffff:127.0.0.1',
    '::ffff:7f00:1',
    '::',
    '::1',
    '::7f00:1',
    '::a9fe:a9fe',
    '::ffff:0:7f00:1',
    '64:ff9b::7f00:1',
    '64:ff9b:1::7f00:1',
    '64:ff9b:1:7f00::1',
    '2002:7f00:1::',
    '2002:a9fe:a9fe::1',
    'fc00::1',
    'fe80::1',
    'fec0::1',
    'feff::1',
    'ff02::1',
    '192.0.2.1',
    '192.88.99.1',
    '198.51.100.7',
    '203.0.113.255',
    '255.255.255.255',
    '::ffff:203.0.113.1',
    '100::1',
    '100:0:0:1::1',
    '2001::1',
    '2001:1ff:ffff::1',
    '2001:db8::1',
    '3fff:fff::1',
    '5f00::1',
  ])('%s is one', (address) => expect(isPrivateAddress(address)).toBe(true));

  it.each([
    '8.8.8.8',
    '192.0.3.1',
    '192.88.98.1',
    '198.51.101.1',
    '203.0.114.1',
    '223.255.255.255',
    '100:0:0:2::1',
    '2001:200::1',
    '2001:db9::1',
    '3ffe::1',
    '::ffff:8.8.8.8',
    '::ffff:808:808',
    '64:ff9a::1',
    '64:ff9b:2::1',
    '2001:4860:4860::8888',
    '2003::1',
    '2a00:1450:4001:81b::200e',
  ])('%s is none', (address) => expect(isPrivateAddress(address)).toBe(false));
});
