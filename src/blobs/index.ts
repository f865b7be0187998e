export * from './blob-links';
export * from './blob-store';
export * from './blobs.module';
export * from './postgres-blob-store';
export * from './s3-blob-store';
