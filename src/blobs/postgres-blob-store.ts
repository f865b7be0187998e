import type { TenantId } from '../common';
import { tenantScope, type Database, type Statement } from '../database';
import { BlobStore, type Blob, type BlobHash } from './blob-store';

/** Beside everything else: one backup, one transaction log, nothing to set up. For more than some gigabytes there is S3. */
export class PostgresBlobStore extends BlobStore {
  constructor(private readonly database: Database) {
    super();
  }

  get(tenantId: TenantId, hash: BlobHash): Promise<Blob | null> {
    return this.database.one(tenantScope(tenantId), findBlob(tenantId, hash));
  }

  delete(tenantId: TenantId, hash: BlobHash): Promise<void> {
    return this.database.one(tenantScope(tenantId), deleteBlob(tenantId, hash));
  }

  protected store(tenantId: TenantId, hash: BlobHash, blob: Blob): Promise<void> {
    return this.database.one(tenantScope(tenantId), storeBlob(tenantId, hash, blob));
  }
}

const findBlob = (tenantId: TenantId, hash: BlobHash): Statement<Blob | null> => ({
  name: 'blob-find',
  text: 'select content, mime_type from blobs where tenant_id = $1 and sha256 = $2',
  values: [tenantId, hash],
  map: ([row]) => (row ? { bytes: row.content as Buffer, mimeType: row.mime_type as string } : null),
});

const deleteBlob = (tenantId: TenantId, hash: BlobHash): Statement<void> => ({
  name: 'blob-delete',
  text: 'delete from blobs where tenant_id = $1 and sha256 = $2',
  values: [tenantId, hash],
  map: () => undefined,
});

const storeBlob = (tenantId: TenantId, hash: BlobHash, { bytes, mimeType }: Blob): Statement<void> => ({
  name: 'blob-store',
  text: `insert into blobs (tenant_id, sha256, mime_type, bytes, content) values ($1, $2, $3, $4, $5)
         on conflict do nothing`,
  values: [tenantId, hash, mimeType, bytes.length, bytes],
  map: () => undefined,
});
