import { createHash } from 'node:crypto';
import { crc32, deflateSync } from 'node:zlib';

const DIMENSIONS = 64;
const IMAGE_PIXELS = 64;
const PNG_SIGNATURE = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);

/** A unit vector that depends on the text alone: the same text, the same vector. Means nothing. */
export function demoEmbedding(text: string, dimensions = DIMENSIONS): number[] {
  const bytes = createHash('shake256', { outputLength: dimensions * 4 })
    .update(text)
    .digest();
  const values = Array.from({ length: dimensions }, (_, i) => bytes.readInt32LE(i * 4));
  const length = Math.hypot(...values) || 1;
  return values.map((value) => value / length);
}

/** A PNG of 64 by 64 pixels in one colour, which the prompt decides. */
export function demoImage(prompt: string, number: number): Buffer {
  const colour = createHash('sha256').update(`${number}:${prompt}`).digest().subarray(0, 3);
  const header = Buffer.alloc(13);
  header.writeUInt32BE(IMAGE_PIXELS, 0);
  header.writeUInt32BE(IMAGE_PIXELS, 4);
  header.set([8, 2], 8); // bits a sample; true colour
  const pixels = Array.from({ length: IMAGE_PIXELS }, () => colour);
  const row = Buffer.concat([Buffer.of(0), ...pixels]); // no filter
  const rows = Buffer.concat(Array.from({ length: IMAGE_PIXELS }, () => row));
  return Buffer.concat([
    PNG_SIGNATURE,
    pngChunk('IHDR', header),
    pngChunk('IDAT', deflateSync(rows)),
    pngChunk('IEND', Buffer.alloc(0)),
  ]);
}

function pngChunk(type: string, data: Buffer): Buffer {
  const chunk = Buffer.alloc(12 + data.length);
  chunk.writeUInt32BE(data.length, 0);
  chunk.write(type, 4, 'latin1');
  chunk.set(data, 8);
  chunk.writeUInt32BE(crc32(chunk.subarray(4, 8 + data.length)), 8 + data.length);
  return chunk;
}

/** What is told instead of what was said. */
export function demoTranscript(extension: string, bytes: number): string {
  return `This is Parley's built-in demo model (no provider is configured). It was sent ${bytes} bytes of ${extension} audio.`;
}
