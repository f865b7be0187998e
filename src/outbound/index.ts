export * from './download';
export { RefusedAddressError, type NameLookup } from './guard';
export * from './outbound';
export type { OutboundPolicy } from './policies';
export * from './redaction';
export * from './shown-url';
export type { Dispatcher } from 'undici';
