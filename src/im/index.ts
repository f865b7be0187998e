export * from './im.module';
export { tokenErrors } from './tokens.controller';
