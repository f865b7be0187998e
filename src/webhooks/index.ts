export type { Delivery } from './deliveries.repository';
export * from './secret-opener';
export * from './webhook-sender';
export * from './webhooks.module';
export * from './webhooks.repository';
