/** The first `max` UTF-16 code units, never cut inside a surrogate pair. */
export function truncate(text: string, max: number): string {
  if (text.length <= max) return text;
  const last = text.charCodeAt(max - 1);
  return text.slice(0, last >= 0xd800 && last <= 0xdbff ? max - 1 : max);
}

/** A lone surrogate can't be stored as UTF-8: it becomes U+FFFD, what every decoder would make of it. */
export function wellFormed(text: string): string {
  return text.isWellFormed() ? text : text.toWellFormed();
}

/** A piece of a text on its way to its readers, at most, in UTF-16 units: as JSON at most 96 KiB. */
export const MAX_PIECE_CHARS = 16_384;

/** A place in a text that is in no surrogate pair: this one, or the one before it. */
export function pairStart(text: string, at: number): number {
  const low = text.charCodeAt(at);
  const high = text.charCodeAt(at - 1);
  return low >= 0xdc00 && low <= 0xdfff && high >= 0xd800 && high <= 0xdbff ? at - 1 : at;
}

/** A text in pieces of at most {@link MAX_PIECE_CHARS}, cut inside no surrogate pair: always the same ones of one text. */
export function inPieces(text: string): string[] {
  if (text.length <= MAX_PIECE_CHARS) return [text];
  const parts: string[] = [];
  for (let at = 0; at < text.length;) {
    const end = pairStart(text, at + MAX_PIECE_CHARS);
    parts.push(text.slice(at, end));
    at = end;
  }
  return parts;
}
