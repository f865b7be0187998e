export * from './errors';
export * from './fresh-cache';
export * from './id-generator';
export * from './ids';
export * from './principal';
export * from './text';
export * from './time';
export * from './paging';
