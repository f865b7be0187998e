export * from './audio-form';
export * from './constraints';
export * from './decorators';
export * from './error-filter';
export * from './preflight';
export * from './slow-answers';
export * from './validation';
export * from './while-present';
