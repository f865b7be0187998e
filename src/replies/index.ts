export * from './access';
export * from './completions';
export * from './live-replies';
export * from './replies.module';
export * from './reply-engine';
