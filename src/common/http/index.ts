export * from './constraints';
export * from './decorators';
export * from './error-filter';
export * from './preflight';
export * from './validation';
