export * from './array-parameter';
export * from './data-source';
export * from './database';
export * from './database.module';
export * from './node-registry';
export * from './scope';
export * from './statement';
