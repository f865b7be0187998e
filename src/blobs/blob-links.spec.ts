import type { TenantId } from '../common';
import { BlobLinks } from './blob-links';
import type { BlobHash } from './blob-store';

const tenant = '7' as TenantId;
const hash = 'ab'.repeat(32) as BlobHash;
const DAY = 86_400;
let now = 1_800_000_000_000;
const links = new BlobLinks('secret-of-the-tests-0123456789abcdef', undefined, () => now);
const parts = () => Object.fromEntries(new URLSearchParams(links.sign(tenant, hash)));

describe('BlobLinks', () => {
  it('are good for a day', () => {
    now = 1_800_000_000_000;
    const { expires, signature } = parts();
    expect(links.check(tenant, hash, expires, signature)).toBe(DAY);
    now += (DAY - 1) * 1_000;
    expect(links.check(tenant, hash, expires, signature)).toBe(1);
    now += 1_000;
    expect(links.check(tenant, hash, expires, signature)).toBeNull();
  });

  it('are good for one blob of one tenant until one time, under one secret', () => {
    const { expires, signature } = parts();
    expect(links.check('8' as TenantId, hash, expires, signature)).toBeNull();
    expect(links.check(tenant, 'cd'.repeat(32) as BlobHash, expires, signature)).toBeNull();
    expect(links.check(tenant, hash, String(Number(expires) + 1), signature)).toBeNull();
    const other = new BlobLinks('another-secret-0123456789abcdefghij', undefined, () => now);
    expect(other.check(tenant, hash, expires, signature)).toBeNull();
  });

  it('are good under the secret before, too, and signed under the new one', () => {
    const before = 'secret-of-the-tests-0123456789abcdef';
    const after = new BlobLinks('another-secret-0123456789abcdefghij', before, () => now);
    const old = parts();
    expect(after.check(tenant, hash, old.expires, old.signature)).toBe(DAY);
    const { expires, signature } = Object.fromEntries(new URLSearchParams(after.sign(tenant, hash)));
    expect(after.check(tenant, hash, expires, signature)).toBe(DAY);
    expect(links.check(tenant, hash, expires, signature)).toBeNull();
  });

  it.each([undefined, '', 'x', ['a'], '-1', '9'.repeat(13), '1e9'])('take %p for no time', (expires) => {
    expect(links.check(tenant, hash, expires, parts().signature)).toBeNull();
  });

  it.each([undefined, '', 'x', ['a'], 'A'.repeat(43), '\0'])('take %p for no signature', (signature) => {
    expect(links.check(tenant, hash, parts().expires, signature)).toBeNull();
  });
});
