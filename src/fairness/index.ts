export * from './fair-shares';
export * from './fairness.module';
export * from './share-fairly';
export * from './tenant-slots';
