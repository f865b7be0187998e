const TEXT_OID = 25;
const HEADER_BYTES = 20;
/** Of UTF-8, for a UTF-16 unit. */
const MAX_BYTES_A_CHAR = 3;
const MAX_SCRATCH_BYTES = 4_194_304;
/** Where arrays are written before their length is known: cheaper than asking for it first. */
let scratch = Buffer.alloc(0);

/** A list of ids or numbers as a Postgres array. Only what needs no quotes: `pg` would look at every element for them. */
export function idArray(ids: readonly (string | number | null)[]): string {
  let text = '{';
  for (let i = 0; i < ids.length; i += 1) text += i === 0 ? (ids[i] ?? 'NULL') : `,${ids[i] ?? 'NULL'}`;
  return `${text}}`;
}

/**
 * A `text[]` parameter in Postgres' binary format (array_recv: dimensions, null flag, element type, length, lower
 * bound, then each element after its length). Nothing is escaped here and nothing unescaped there: for hundreds of
 * JSON texts a batch, that was a third of the cost of sending it.
 */
export function textArray(values: readonly (string | null)[]): Buffer {
  if (values.length === 0) return Buffer.from([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, TEXT_OID]);
  let most = HEADER_BYTES;
  for (const value of values) most += 4 + MAX_BYTES_A_CHAR * (value?.length ?? 0);
  if (scratch.length < most) scratch = Buffer.alloc(most);
  const words = new DataView(scratch.buffer, scratch.byteOffset);
  let nulls = 0;
  let at = HEADER_BYTES;
  for (const value of values) {
    if (value === null) {
      nulls = 1;
      words.setInt32(at, -1);
      at += 4;
    } else {
      const bytes = scratch.write(value, at + 4, 'utf8');
      words.setInt32(at, bytes);
      at += 4 + bytes;
    }
  }
  words.setInt32(0, 1);
  words.setInt32(4, nulls);
  words.setInt32(8, TEXT_OID);
  words.setInt32(12, values.length);
  words.setInt32(16, 1);
  const array = Buffer.allocUnsafe(at);
  array.set(scratch.subarray(0, at));
  // What one large batch has needed is not kept for the small ones.
  if (scratch.length > MAX_SCRATCH_BYTES) scratch = Buffer.alloc(0);
  return array;
}
