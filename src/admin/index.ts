export * from './admin.module';
export { problemErrors } from './problem';
