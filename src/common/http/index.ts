export * from './audio-form';
export * from './constraints';
export * from './decorators';
export * from './error-filter';
export * from './preflight';
export * from './validation';
export * from './while-held';
export * from './while-present';
