import { createHash } from 'node:crypto';
import type { TenantId } from '../common';

/** The SHA-256 of a blob's bytes: 64 lower-case hexadecimal digits. */
export type BlobHash = string & { readonly __blob: true };

export interface Blob {
  readonly bytes: Buffer;
  /** e.g. `image/png` */
  readonly mimeType: string;
}

/** Files of tenants, each under the hash of its bytes: the same bytes twice are one blob, and a blob never changes. */
export abstract class BlobStore {
  /** Resolves when it is durable. STORAGE_UNAVAILABLE when it can't be. */
  async put(tenantId: TenantId, blob: Blob): Promise<BlobHash> {
    const hash = hashOf(blob.bytes);
    await this.store(tenantId, hash, blob);
    return hash;
  }

  /** Null when this tenant has none of that hash. STORAGE_UNAVAILABLE. */
  abstract get(tenantId: TenantId, hash: BlobHash): Promise<Blob | null>;

  /** Resolves when it is gone, or was not there. STORAGE_UNAVAILABLE when that is not certain. */
  abstract delete(tenantId: TenantId, hash: BlobHash): Promise<void>;

  protected abstract store(tenantId: TenantId, hash: BlobHash, blob: Blob): Promise<void>;
}

export function isBlobHash(text: string): text is BlobHash {
  return /^[0-9a-f]{64}$/.test(text);
}

const hashOf = (bytes: Buffer): BlobHash => createHash('sha256').update(bytes).digest('hex') as BlobHash;
