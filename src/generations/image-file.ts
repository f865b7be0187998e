/** What an image file is by its content, whatever it is called. */
export interface ImageFile {
  readonly mimeType: 'image/png' | 'image/jpeg' | 'image/webp' | 'image/gif';
  /** Pixels. */
  readonly width: number;
  readonly height: number;
}

const PNG = Buffer.from('89504e470d0a1a0a', 'hex');
/** Start-of-frame markers; C4, C8 and CC between them are none. */
const isFrameMarker = (marker: number): boolean =>
  marker >= 0xc0 && marker <= 0xcf && marker !== 0xc4 && marker !== 0xc8 && marker !== 0xcc;

/** Null for what is none of the four, or has no size in its header. */
export function imageFileOf(bytes: Buffer): ImageFile | null {
  const file = readHeader(bytes);
  return file && file.width > 0 && file.height > 0 ? file : null;
}

function readHeader(bytes: Buffer): ImageFile | null {
  const head = bytes.toString('latin1', 0, 16);
  if (bytes.subarray(0, 8).equals(PNG)) {
    if (bytes.length < 24 || head.slice(12, 16) !== 'IHDR') return null;
    return { mimeType: 'image/png', width: bytes.readUInt32BE(16), height: bytes.readUInt32BE(20) };
  }
  if (/^GIF8[79]a/.test(head)) {
    if (bytes.length < 10) return null;
    return { mimeType: 'image/gif', width: bytes.readUInt16LE(6), height: bytes.readUInt16LE(8) };
  }
  if (head.startsWith('\xff\xd8\xff')) return readJpeg(bytes);
  if (head.startsWith('RIFF') && head.slice(8, 12) === 'WEBP') return readWebp(bytes);
  return null;
}

/** Segment by segment until the first frame's header. */
function readJpeg(bytes: Buffer): ImageFile | null {
  let at = 2;
  while (at + 9 < bytes.length) {
    if (bytes[at] !== 0xff) return null;
    const marker = bytes[at + 1]!;
    // Fill bytes before a marker.
    if (marker === 0xff) {
      at += 1;
      continue;
    }
    if (isFrameMarker(marker)) {
      return {
        mimeType: 'image/jpeg',
        height: bytes.readUInt16BE(at + 5),
        width: bytes.readUInt16BE(at + 7),
      };
    }
    // Neither has a length, and both are over before any frame could come.
    if (marker === 0xd9 || marker === 0xda) return null;
    const length = bytes.readUInt16BE(at + 2);
    if (length < 2) return null;
    at += 2 + length;
  }
  return null;
}

/** Lossy, lossless and extended (RFC 9649). */
function readWebp(bytes: Buffer): ImageFile | null {
  if (bytes.length < 30) return null;
  const mimeType = 'image/webp';
  switch (bytes.toString('latin1', 12, 16)) {
    case 'VP8 ':
      return { mimeType, width: bytes.readUInt16LE(26) & 0x3fff, height: bytes.readUInt16LE(28) & 0x3fff };
    case 'VP8L': {
      const bits = bytes.readUInt32LE(21);
      return { mimeType, width: (bits & 0x3fff) + 1, height: ((bits >>> 14) & 0x3fff) + 1 };
    }
    case 'VP8X':
      return { mimeType, width: bytes.readUIntLE(24, 3) + 1, height: bytes.readUIntLE(27, 3) + 1 };
    default:
      return null;
  }
}
