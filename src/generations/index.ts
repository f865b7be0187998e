export * from './audio-format';
export * from './generations';
export * from './generations.module';
export * from './image-fetcher';
