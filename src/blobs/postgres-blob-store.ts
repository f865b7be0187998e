import type { EntityManager } from 'typeorm';
import type { TenantId } from '../common';
import { tenantScope, type Database, type Statement } from '../database';
import { BlobStore, whileDeleted, whileKept, type Blob, type BlobHash } from './blob-store';

/** Beside everything else: one backup, one transaction log, nothing to set up. For more than some gigabytes there is S3. */
export class PostgresBlobStore extends BlobStore {
  constructor(private readonly database: Database) {
    super();
  }

  get(tenantId: TenantId, hash: BlobHash): Promise<Blob | null> {
    return this.database.one(tenantScope(tenantId), findBlob(tenantId, hash));
  }

  deleteUnless(
    tenantId: TenantId,
    hash: BlobHash,
    needs: (tx: EntityManager) => Promise<boolean>,
  ): Promise<void> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const { text, values } = whileDeleted(tenantId, hash);
      await tx.query(text, [...values]);
      if (await needs(tx)) return;
      await tx.query('delete from blobs where tenant_id = $1 and sha256 = $2', [tenantId, hash]);
    });
  }

  protected async store(tenantId: TenantId, hash: BlobHash, blob: Blob): Promise<void> {
    await this.database.run(tenantScope(tenantId), [
      whileKept(tenantId, hash),
      storeBlob(tenantId, hash, blob),
    ]);
  }
}

const findBlob = (tenantId: TenantId, hash: BlobHash): Statement<Blob | null> => ({
  name: 'blob-find',
  text: 'select content, mime_type from blobs where tenant_id = $1 and sha256 = $2',
  values: [tenantId, hash],
  map: ([row]) => (row ? { bytes: row.content as Buffer, mimeType: row.mime_type as string } : null),
});

const storeBlob = (tenantId: TenantId, hash: BlobHash, { bytes, mimeType }: Blob): Statement<void> => ({
  name: 'blob-store',
  text: `insert into blobs (tenant_id, sha256, mime_type, bytes, content) values ($1, $2, $3, $4, $5)
         on conflict do nothing`,
  values: [tenantId, hash, mimeType, bytes.length, bytes],
  map: () => undefined,
});
