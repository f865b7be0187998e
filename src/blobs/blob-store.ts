import { createHash } from 'node:crypto';
import type { EntityManager } from 'typeorm';
import type { TenantId } from '../common';
import type { Statement } from '../database';

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

  /**
   * Deletes it unless somebody `needs` it, while nobody can put the same. `needs` is asked in a transaction of the tenant.
   * Resolves when it is gone, was not there, or is needed. STORAGE_UNAVAILABLE when that is not certain.
   */
  abstract deleteUnless(
    tenantId: TenantId,
    hash: BlobHash,
    needs: (tx: EntityManager) => Promise<boolean>,
  ): Promise<void>;

  protected abstract store(tenantId: TenantId, hash: BlobHash, blob: Blob): Promise<void>;
}

export function isBlobHash(text: string): text is BlobHash {
  return /^[0-9a-f]{64}$/.test(text);
}

const LOCK = `hashtextextended($1::text || ' ' || $2, 7300421)`;

/** Until the transaction ends nobody deletes this blob; any number may put it. */
export const whileKept = (tenantId: TenantId, hash: BlobHash): Statement<void> => ({
  name: 'blob-lock-shared',
  text: `select pg_advisory_xact_lock_shared(${LOCK})`,
  values: [tenantId, hash],
  map: () => undefined,
});

/** Until the transaction ends nobody else puts or deletes this blob. */
export const whileDeleted = (tenantId: TenantId, hash: BlobHash): Statement<void> => ({
  name: 'blob-lock',
  text: `select pg_advisory_xact_lock(${LOCK})`,
  values: [tenantId, hash],
  map: () => undefined,
});

/** What a blob of these bytes is called. */
export const hashOf = (bytes: Buffer): BlobHash =>
  createHash('sha256').update(bytes).digest('hex') as BlobHash;
