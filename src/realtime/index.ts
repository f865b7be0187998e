export * from './bus';
export * from './in-process-bus';
export * from './in-process-stream-log';
export * from './realtime.module';
export * from './socket-server';
export * from './stream-log';
export * from './text-frame';
