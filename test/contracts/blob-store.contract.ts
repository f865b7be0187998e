import { createHash } from 'node:crypto';
import type { BlobHash, BlobStore } from '../../src/blobs';
import type { TenantId } from '../../src/common';

/** What every BlobStore does, wherever it keeps them. `tenants` are two that may keep something there. */
export function blobStoreContract(
  name: string,
  make: () => { readonly store: BlobStore; readonly tenants: readonly [TenantId, TenantId] },
): void {
  describe(`BlobStore, ${name}`, () => {
    const bytes = Buffer.from(Array.from({ length: 70_000 }, (_, n) => (n * 31) % 256));
    const nothing = 'f'.repeat(64) as BlobHash;

    it('gives back byte for byte what it was given, under the hash of it', async () => {
      const { store, tenants } = make();
      const hash = await store.put(tenants[0], { bytes, mimeType: 'image/png' });
      expect(hash).toBe(createHash('sha256').update(bytes).digest('hex'));
      const found = await store.get(tenants[0], hash);
      expect(found?.mimeType).toBe('image/png');
      expect(found?.bytes.equals(bytes)).toBe(true);
    });

    it('keeps the same bytes once, however often and at once they come', async () => {
      const { store, tenants } = make();
      const blob = { bytes: Buffer.from('the same'), mimeType: 'image/gif' };
      const hashes = await Promise.all(Array.from({ length: 8 }, () => store.put(tenants[0], blob)));
      expect(new Set(hashes).size).toBe(1);
      expect((await store.get(tenants[0], hashes[0]!))?.bytes.toString()).toBe('the same');
    });

    it('forgets what is deleted, of this tenant alone, and takes it again', async () => {
      const { store, tenants } = make();
      const blob = { bytes: Buffer.from('deleted'), mimeType: 'image/png' };
      const [hash] = await Promise.all(tenants.map((tenant) => store.put(tenant, blob)));
      await store.deleteUnless(tenants[0], hash!, () => Promise.resolve(true));
      expect(await store.get(tenants[0], hash!)).not.toBeNull();
      await store.deleteUnless(tenants[0], hash!, () => Promise.resolve(false));
      await store.deleteUnless(tenants[0], hash!, () => Promise.resolve(false));
      expect(await store.get(tenants[0], hash!)).toBeNull();
      expect((await store.get(tenants[1], hash!))?.bytes.toString()).toBe('deleted');
      await store.put(tenants[0], blob);
      expect((await store.get(tenants[0], hash!))?.bytes.toString()).toBe('deleted');
    });

    it('never deletes what is put meanwhile', async () => {
      const { store, tenants } = make();
      const blob = { bytes: Buffer.from('wanted again'), mimeType: 'image/png' };
      const hash = await store.put(tenants[0], blob);
      let again: Promise<unknown> | undefined;
      await store.deleteUnless(tenants[0], hash, () => {
        again = store.put(tenants[0], blob);
        return Promise.resolve(false);
      });
      await again;
      expect((await store.get(tenants[0], hash))?.bytes.toString()).toBe('wanted again');
    });

    it("has nothing of another tenant's, and nothing it was not given", async () => {
      const { store, tenants } = make();
      const hash = await store.put(tenants[0], { bytes: Buffer.from('mine'), mimeType: 'image/png' });
      expect(await store.get(tenants[1], hash)).toBeNull();
      expect(await store.get(tenants[0], nothing)).toBeNull();
    });
  });
}
