/** A number that a double may not hold as it was written. Also true for the same in a string: that only costs time. */
const UNUSUAL_NUMBER = /\d{16}|\d[.eE]|-0/;
// In Node 24, not yet in TypeScript's library.
const { rawJSON } = JSON as unknown as { rawJSON: (text: string) => object };

const keepSource = (_key: string, value: unknown, context?: { source?: string }): unknown =>
  typeof value === 'number' && context?.source !== undefined && String(value) !== context.source
    ? rawJSON(context.source)
    : value;

export function hasUnusualNumbers(text: string): boolean {
  return UNUSUAL_NUMBER.test(text);
}

/** JSON that is known to be an object, with every number as it was written: one that a double can't hold is a raw-JSON object. */
export function parseExact(text: string): Record<string, unknown> {
  return (hasUnusualNumbers(text) ? JSON.parse(text, keepSource) : JSON.parse(text)) as Record<
    string,
    unknown
  >;
}
