/** A 64-bit id as a decimal string, branded so that the compiler tells one kind from another. */
export type Id<N extends string> = string & { readonly __id: N };
export type TenantId = Id<'tenant'>;
export type ApiKeyId = Id<'api-key'>;
export type ProviderId = Id<'model-provider'>;
export type ModelServiceId = Id<'model-service'>;
export type AssistantId = Id<'assistant'>;
export type AssistantVersionId = Id<'assistant-version'>;
export type DialogueId = Id<'dialogue'>;
export type MessageId = Id<'message'>;
export type ConversationId = Id<'conversation'>;
export type GenerationAppId = Id<'generation-app'>;
export type GenerationRecordId = Id<'generation-record'>;
export type WebhookId = Id<'webhook'>;
export type BroadcastId = Id<'broadcast'>;

const MAX_ID = 9_223_372_036_854_775_807n;

/** True for the decimal form of a positive 64-bit integer without leading zeros: what may be sent to a bigint column. */
export function isId(value: unknown): value is string {
  return typeof value === 'string' && /^[1-9]\d{0,18}$/.test(value) && BigInt(value) <= MAX_ID;
}

/** The id as branded text, or null for anything that can't be one: a look-up by it then finds nothing. */
export function asId<T extends Id<string>>(value: unknown): T | null {
  const text = typeof value === 'number' && Number.isSafeInteger(value) ? String(value) : value;
  return isId(text) ? (text as T) : null;
}
