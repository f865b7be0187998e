export { openAiErrors } from './errors';
export * from './media.module';
export * from './openai.module';
