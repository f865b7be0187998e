import { wellFormed } from '../common';

export type JsonObject = Readonly<Record<string, unknown>>;

export const isObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Without NUL and lone surrogates, which neither PostgreSQL nor a client can hold. */
export const storable = (text: string): string => wellFormed(text.replaceAll('\0', '\uFFFD'));

/** The same value with every key and text storable. RangeError when it is nested too deeply. */
export function storableJson<T>(value: T): T {
  if (typeof value === 'string') return storable(value) as T;
  if (Array.isArray(value)) return value.map(storableJson) as T;
  if (!isObject(value)) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, entry]) => [storable(key), storableJson(entry)]),
  ) as T;
}
