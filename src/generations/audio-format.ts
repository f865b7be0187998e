import type { AudioFormat } from '../model-services';

const FORMATS = {
  wav: 'audio/wav',
  mp3: 'audio/mpeg',
  mp4: 'audio/mp4',
  webm: 'audio/webm',
  ogg: 'audio/ogg',
  flac: 'audio/flac',
} as const satisfies Record<AudioFormat['extension'], string>;

/** By its first bytes, whatever it is called; null for anything that is not one of the formats we pass on. */
export function audioFormatOf(bytes: Buffer): AudioFormat | null {
  const extension = extensionOf(bytes);
  return extension && { extension, contentType: FORMATS[extension] };
}

function extensionOf(bytes: Buffer): AudioFormat['extension'] | null {
  const text = bytes.toString('latin1', 0, 12);
  if (text.startsWith('RIFF') && text.endsWith('WAVE')) return 'wav';
  if (text.startsWith('fLaC')) return 'flac';
  if (text.startsWith('OggS')) return 'ogg';
  if (text.slice(4, 8) === 'ftyp') return 'mp4';
  // EBML, which is Matroska's and so WebM's
  if (text.startsWith('\x1a\x45\xdf\xa3')) return 'webm';
  return text.startsWith('ID3') || isMp3Frame(bytes) ? 'mp3' : null;
}

/** Eleven bits of sync, then an MPEG version, a layer and a bit rate that exist; AAC has layer 0 and is none. */
function isMp3Frame(bytes: Buffer): boolean {
  if (bytes.length < 4) return false;
  const [first = 0, second = 0, third = 0] = bytes;
  const sync = first === 0xff && second >> 5 === 0b111;
  const version = (second >> 3) & 0b11;
  const layer = (second >> 1) & 0b11;
  const bitRate = third >> 4;
  return sync && version !== 0b01 && layer !== 0 && bitRate !== 0b1111;
}
