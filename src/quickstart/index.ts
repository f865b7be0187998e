export * from './quickstart';
