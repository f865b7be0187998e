import { createHmac, hkdfSync, timingSafeEqual } from 'node:crypto';
import type { TenantId } from '../common';
import type { BlobHash } from './blob-store';

const LIFETIME_SECONDS = 86_400;

/** Addresses of blobs that anybody may open who has them, for a day: signed under a key derived from the installation's secret. */
export class BlobLinks {
  /** The first signs. */
  private readonly keys: readonly Buffer[];

  /** What `previous` signed is good, too. */
  constructor(
    secretKey: string,
    previous?: string,
    private readonly now: () => number = Date.now,
  ) {
    this.keys = [secretKey, previous].flatMap((secret) =>
      secret === undefined ? [] : Buffer.from(hkdfSync('sha256', secret, '', 'parley blob links v1', 32)),
    );
  }

  /** The query of the blob's address, without `?`. */
  sign(tenantId: TenantId, hash: BlobHash): string {
    const expires = String(Math.floor(this.now() / 1_000) + LIFETIME_SECONDS);
    const signed = signatureOf(this.keys[0]!, tenantId, hash, expires);
    return `expires=${expires}&signature=${signed.toString('base64url')}`;
  }

  /** Seconds that it is still good for; null for one that we did not sign, or that is over. */
  check(tenantId: TenantId, hash: BlobHash, expires: unknown, signature: unknown): number | null {
    if (typeof expires !== 'string' || typeof signature !== 'string' || !/^\d{1,12}$/.test(expires))
      return null;
    const given = Buffer.from(signature, 'base64url');
    const signed = this.keys.some((key) => {
      const ours = signatureOf(key, tenantId, hash, expires);
      return given.length === ours.length && timingSafeEqual(given, ours);
    });
    if (!signed) return null;
    const left = Number(expires) - Math.floor(this.now() / 1_000);
    return left > 0 ? left : null;
  }
}

function signatureOf(key: Buffer, tenantId: TenantId, hash: BlobHash, expires: string): Buffer {
  return createHmac('sha256', key).update(`${tenantId}/${hash}/${expires}`).digest();
}
