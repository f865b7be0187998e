import { Global, Module } from '@nestjs/common';
import { Config } from '../config';
import { Database } from '../database';
import { BlobStore } from './blob-store';
import { PostgresBlobStore } from './postgres-blob-store';
import { S3BlobStore } from './s3-blob-store';

/** Blobs: files that belong to tenants, in PostgreSQL or in a bucket. */
@Global()
@Module({
  providers: [{ provide: BlobStore, inject: [Config, Database], useFactory: storeOf }],
  exports: [BlobStore],
})
export class BlobsModule {}

function storeOf({ env }: Config, database: Database): BlobStore {
  const { S3_BUCKET: bucket, S3_ACCESS_KEY_ID: accessKeyId, S3_SECRET_ACCESS_KEY: secretAccessKey } = env;
  if (!bucket) return new PostgresBlobStore(database);
  const settings = {
    bucket,
    region: env.S3_REGION,
    endpoint: env.S3_ENDPOINT,
    credentials: accessKeyId && secretAccessKey ? { accessKeyId, secretAccessKey } : undefined,
    forcePathStyle: env.S3_FORCE_PATH_STYLE === 'true',
  };
  return new S3BlobStore(settings, database);
}
