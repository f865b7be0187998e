import type { S3Client } from '@aws-sdk/client-s3';
import type { EntityManager } from 'typeorm';
import { AppError, type TenantId } from '../common';
import { tenantScope, type Database } from '../database';
import { BlobStore, whileDeleted, whileKept, type Blob, type BlobHash } from './blob-store';

export interface S3Settings {
  readonly bucket: string;
  readonly region: string;
  /** Undefined: Amazon's own. */
  readonly endpoint: string | undefined;
  /** Undefined: what the SDK finds by itself. */
  readonly credentials: { readonly accessKeyId: string; readonly secretAccessKey: string } | undefined;
  readonly forcePathStyle: boolean;
}

const CONNECT_TIMEOUT_MS = 5_000;
const REQUEST_TIMEOUT_MS = 30_000;

/** A bucket of an S3-compatible server; a blob's key is `<tenant>/<sha256>`. */
export class S3BlobStore extends BlobStore {
  private connected: Promise<{ sdk: typeof import('@aws-sdk/client-s3'); client: S3Client }> | undefined;

  constructor(
    private readonly settings: S3Settings,
    private readonly database: Database,
  ) {
    super();
  }

  async get(tenantId: TenantId, hash: BlobHash): Promise<Blob | null> {
    const { sdk, client } = await this.connect();
    try {
      const { Body, ContentType } = await client.send(
        new sdk.GetObjectCommand({ Bucket: this.settings.bucket, Key: keyOf(tenantId, hash) }),
      );
      const bytes = Buffer.from(await Body!.transformToByteArray());
      return { bytes, mimeType: ContentType ?? 'application/octet-stream' };
    } catch (error) {
      if (error instanceof sdk.NoSuchKey) return null;
      throw unavailable(error);
    }
  }

  deleteUnless(
    tenantId: TenantId,
    hash: BlobHash,
    needs: (tx: EntityManager) => Promise<boolean>,
  ): Promise<void> {
    return this.locked(whileDeleted, tenantId, hash, async (tx) => {
      if (await needs(tx)) return;
      const { sdk, client } = await this.connect();
      const Key = keyOf(tenantId, hash);
      await client.send(new sdk.DeleteObjectCommand({ Bucket: this.settings.bucket, Key })).catch(tell);
    });
  }

  async close(): Promise<void> {
    (await this.connected)?.client.destroy();
  }

  protected store(tenantId: TenantId, hash: BlobHash, { bytes, mimeType }: Blob): Promise<void> {
    return this.locked(whileKept, tenantId, hash, async () => {
      const { sdk, client } = await this.connect();
      const { bucket: Bucket } = this.settings;
      const object = { Bucket, Key: keyOf(tenantId, hash), Body: bytes, ContentType: mimeType };
      await client.send(new sdk.PutObjectCommand(object)).catch(tell);
    });
  }

  /** The bucket knows no locks; PostgreSQL does. */
  private locked(
    lock: typeof whileKept,
    tenantId: TenantId,
    hash: BlobHash,
    work: (tx: EntityManager) => Promise<void>,
  ): Promise<void> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const { text, values } = lock(tenantId, hash);
      await tx.query(text, [...values]);
      await work(tx);
    });
  }

  /** The SDK is large: it is loaded with the first blob, and never where PostgreSQL keeps them. */
  private connect(): Promise<{ sdk: typeof import('@aws-sdk/client-s3'); client: S3Client }> {
    return (this.connected ??= import('@aws-sdk/client-s3').then((sdk) => {
      const { region, endpoint, credentials, forcePathStyle } = this.settings;
      const client = new sdk.S3Client({
        region,
        forcePathStyle,
        ...(endpoint !== undefined && { endpoint }),
        ...(credentials && { credentials }),
        requestHandler: { connectionTimeout: CONNECT_TIMEOUT_MS, requestTimeout: REQUEST_TIMEOUT_MS },
        // Servers that are not Amazon's often know none but the old ones.
        requestChecksumCalculation: 'WHEN_REQUIRED',
        responseChecksumValidation: 'WHEN_REQUIRED',
      });
      return { sdk, client };
    }));
  }
}

const keyOf = (tenantId: TenantId, hash: BlobHash): string => `${tenantId}/${hash}`;

const unavailable = (cause: unknown): AppError =>
  new AppError('STORAGE_UNAVAILABLE', {
    message: 'The image store is not available right now; come back in a moment.',
    retryAfterSeconds: 1,
    cause,
  });

const tell = (cause: unknown): never => {
  throw unavailable(cause);
};
