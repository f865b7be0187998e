export * from './live-replies';
export * from './replies.module';
export * from './reply-engine';
