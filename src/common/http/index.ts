export * from './audio-form';
export * from './constraints';
export * from './decorators';
export * from './error-filter';
export * from './preflight';
export * from './unreadable';
export * from './validation';
export * from './while-present';
