const CHUNK_HEAD_BYTES = 8;
const BYTE_RATE_AT = 8;
const FORMAT_BYTES = 16;
/** Recorders write a handful; millions of empty ones fit a file. */
const MAX_CHUNKS = 1_000;

/** Seconds of a WAV, from its header; null when that does not say. A length beyond the file's end counts as up to there. */
export function wavSeconds(bytes: Buffer): number | null {
  let byteRate = 0;
  let at = 12;
  for (let chunks = 0; chunks < MAX_CHUNKS && at + CHUNK_HEAD_BYTES <= bytes.length; chunks += 1) {
    const name = bytes.toString('latin1', at, at + 4);
    const length = bytes.readUInt32LE(at + 4);
    const from = at + CHUNK_HEAD_BYTES;
    if (name === 'fmt ' && from + FORMAT_BYTES <= bytes.length)
      byteRate = bytes.readUInt32LE(from + BYTE_RATE_AT);
    if (name === 'data') {
      // A recorder that streams does not know its length yet, and writes the largest there is.
      const present = Math.min(length, bytes.length - from);
      return byteRate > 0 ? present / byteRate : null;
    }
    // Chunks are padded to an even length.
    at = from + length + (length % 2);
  }
  return null;
}
