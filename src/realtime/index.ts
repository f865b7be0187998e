export * from './bus';
export * from './in-process-bus';
export * from './in-process-stream-log';
export * from './realtime.module';
export * from './stream-log';
