import type { DataSource } from 'typeorm';
import { entities } from '../../src/app';
import { PostgresBlobStore, S3BlobStore } from '../../src/blobs';
import type { TenantId } from '../../src/common';
import { applicationDataSource, Database } from '../../src/database';
import { blobStoreContract } from '../contracts/blob-store.contract';
import { freshDatabase, query } from '../support/database';
import { S3Server } from '../support/s3-server';

let database: Awaited<ReturnType<typeof freshDatabase>>;
let source: DataSource;
let ofApplication: Database;
let s3: S3Server;

beforeAll(async () => {
  [database, s3] = await Promise.all([freshDatabase(), S3Server.start()]);
  source = await applicationDataSource({ url: database.url, poolSize: 4, entities }).initialize();
  ofApplication = new Database(source);
});
afterAll(async () => {
  await ofApplication.onApplicationShutdown();
  await Promise.all([database.drop(), s3.close()]);
});

const tenants = ['1', '2'] as unknown as [TenantId, TenantId];
const bucket = (credentials = s3.credentials) =>
  new S3BlobStore(
    { bucket: 'pictures', region: 'eu-1', endpoint: s3.url, credentials, forcePathStyle: true },
    ofApplication,
  );

blobStoreContract('PostgreSQL', () => ({ store: new PostgresBlobStore(ofApplication), tenants }));
blobStoreContract('S3', () => ({ store: bucket(), tenants }));

it('in PostgreSQL are rows of their tenant', async () => {
  const store = new PostgresBlobStore(ofApplication);
  const hash = await store.put(tenants[1], { bytes: Buffer.from('a row'), mimeType: 'image/webp' });
  expect(
    await query(database.url, 'select tenant_id, mime_type, bytes from blobs where sha256 = $1', [hash]),
  ).toEqual([{ tenant_id: '2', mime_type: 'image/webp', bytes: 5 }]);
});

it('in a bucket are objects under tenant and hash', async () => {
  const hash = await bucket().put(tenants[1], { bytes: Buffer.from('an object'), mimeType: 'image/webp' });
  expect(s3.objects.get(`/pictures/2/${hash}`)).toEqual({
    bytes: Buffer.from('an object'),
    contentType: 'image/webp',
  });
});

it('a bucket that refuses or fails is a store that is away', async () => {
  const blob = { bytes: Buffer.from('x'), mimeType: 'image/png' };
  const hash = await bucket().put(tenants[0], blob);
  const away = { code: 'STORAGE_UNAVAILABLE' };
  const stranger = bucket({ accessKeyId: 'other', secretAccessKey: 'other' });
  await expect(stranger.put(tenants[0], blob)).rejects.toMatchObject(away);
  await expect(stranger.get(tenants[0], hash)).rejects.toMatchObject(away);
  s3.failing = 500;
  try {
    await expect(bucket().get(tenants[0], hash)).rejects.toMatchObject(away);
  } finally {
    s3.failing = undefined;
  }
});
