/** A number that a double may not hold as it was written. Also true for the same in a string: that only costs time. */
const UNUSUAL_NUMBER = /\d{16}|\d[.eE]|-0/;
// In Node 24, not yet in TypeScript's library.
const { rawJSON, isRawJSON } = JSON as unknown as {
  rawJSON: (text: string) => object;
  isRawJSON: (value: unknown) => boolean;
};

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

const NUMBER = /^(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/;

/** The digits of an integer, however it was written (`5`, `5.0`, `50e-1`); null when it is none, or longer than that. */
export function integerDigits(number: string, maxChars: number): string | null {
  const [, sign, whole, fraction = '', exponent = '0'] = NUMBER.exec(number) ?? [];
  if (sign === undefined || whole === undefined) return null;
  const digits = (whole + fraction).replace(/^0+/, '');
  if (digits === '') return '0';
  const shift = Number(exponent) - fraction.length;
  const length = sign.length + digits.length + shift;
  if (length > maxChars || !/^0*$/.test(shift < 0 ? digits.slice(shift) : '')) return null;
  return shift < 0 ? sign + digits.slice(0, shift) : sign + digits + '0'.repeat(shift);
}

/** The text of a number that a double did not hold as it was written; null for everything else. */
export function rawNumber(value: unknown): string | null {
  return isRawJSON(value) ? JSON.stringify(value) : null;
}

/** Neither too large for a double nor, without being nought, too small. */
export function isInDoublesRange(number: string): boolean {
  const value = Number(number);
  return Number.isFinite(value) && (value !== 0 || !/^[^eE]*[1-9]/.test(number));
}
