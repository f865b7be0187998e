export * from './eraser';
export * from './retention-keeper';
export * from './retention.module';
