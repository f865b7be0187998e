const BYTES = Float32Array.BYTES_PER_ELEMENT;

/** As the client asked for it, whichever the provider sent: numbers, or the base64 of little-endian float32. */
export function vectorIn(
  format: 'float' | 'base64',
  vector: readonly number[] | string,
): readonly number[] | string {
  if (typeof vector === 'string') return format === 'base64' ? vector : numbersOf(vector);
  return format === 'float' ? vector : base64Of(vector);
}

function base64Of(numbers: readonly number[]): string {
  const bytes = Buffer.allocUnsafe(numbers.length * BYTES);
  numbers.forEach((number, i) => bytes.writeFloatLE(number, i * BYTES));
  return bytes.toString('base64');
}

function numbersOf(base64: string): number[] {
  const bytes = Buffer.from(base64, 'base64');
  return Array.from({ length: Math.floor(bytes.length / BYTES) }, (_, i) => bytes.readFloatLE(i * BYTES));
}
