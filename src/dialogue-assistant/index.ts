export * from './dialogue-assistant.module';
export { envelopeErrors } from './envelope';
