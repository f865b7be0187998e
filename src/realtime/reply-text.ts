/** A block is sealed at so many pieces, or so many UTF-16 units. */
const BLOCK_PIECES = 512;
const BLOCK_CHARS = 16_384;

/** Sealed: one text and where its pieces end in it. */
interface Block {
  /** Pieces and units before it. */
  readonly first: number;
  readonly offset: number;
  readonly text: string;
  readonly ends: Uint16Array | Uint32Array;
}

/**
 * A text that grows piece by piece, read piece by piece from any place. What it costs is the text and two bytes a
 * piece: a string of its own for each, as models write them, would be ten times the text.
 */
export class ReplyText {
  private readonly blocks: Block[] = [];
  /** Pieces since the last block. */
  private tail: string[] = [];
  private tailFirst = 0;
  private tailOffset = 0;

  /** UTF-16 units in all. */
  length = 0;

  /** Pieces in all. */
  get count(): number {
    return this.tailFirst + this.tail.length;
  }

  /** Beside the text itself, in bytes. */
  get overheadBytes(): number {
    return this.blocks.reduce((sum, { ends }) => sum + ends.byteLength, 0);
  }

  push(piece: string): void {
    this.tail.push(piece);
    this.length += piece.length;
    if (this.tail.length >= BLOCK_PIECES || this.length - this.tailOffset >= BLOCK_CHARS) this.seal();
  }

  /** Nothing more comes for now: all of it in blocks. */
  seal(): void {
    const { tail, tailFirst: first, tailOffset: offset } = this;
    if (tail.length === 0) return;
    const chars = this.length - offset;
    const ends = chars < 65_536 ? new Uint16Array(tail.length) : new Uint32Array(tail.length);
    let at = 0;
    for (let i = 0; i < ends.length; i += 1) ends[i] = at += tail[i]!.length;
    this.blocks.push({ first, offset, text: tail.join(''), ends });
    this.tailFirst += tail.length;
    this.tailOffset = this.length;
    this.tail = [];
  }

  /** Pieces after the first `from`: at most `maxPieces`, and no more once they have `maxChars`. */
  pieces(from: number, maxPieces: number, maxChars: number): readonly string[] {
    const found: string[] = [];
    let chars = 0;
    let at = from;
    const wanted = (): boolean => found.length < maxPieces && chars < maxChars;
    while (at < this.tailFirst && wanted()) {
      const { first, text, ends } = this.blockOf(at);
      let begin = at === first ? 0 : ends[at - first - 1]!;
      for (; at < first + ends.length && wanted(); at += 1) {
        const end = ends[at - first]!;
        found.push(text.slice(begin, end));
        chars += end - begin;
        begin = end;
      }
    }
    for (; at < this.count && wanted(); at += 1) {
      const piece = this.tail[at - this.tailFirst]!;
      found.push(piece);
      chars += piece.length;
    }
    return found;
  }

  /** Units before the piece at `position`, counting from 0. */
  offsetOf(position: number): number {
    if (position >= this.count) return this.length;
    if (position < this.tailFirst) {
      const { first, offset, ends } = this.blockOf(position);
      return position === first ? offset : offset + ends[position - first - 1]!;
    }
    let offset = this.tailOffset;
    for (let i = 0; i < position - this.tailFirst; i += 1) offset += this.tail[i]!.length;
    return offset;
  }

  /** What comes after so many units. */
  textFrom(offset: number): string {
    let text = '';
    for (let i = this.blockAfter(offset); i < this.blocks.length; i += 1) {
      const block = this.blocks[i]!;
      text += block.text.slice(Math.max(0, offset - block.offset));
    }
    const rest = this.tail.join('');
    return text + rest.slice(Math.max(0, offset - this.tailOffset));
  }

  private blockOf(position: number): Block {
    let low = 0;
    let high = this.blocks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.blocks[middle]!.first <= position) low = middle;
      else high = middle - 1;
    }
    return this.blocks[low]!;
  }

  /** The first block that has something after so many units. */
  private blockAfter(offset: number): number {
    let i = this.blocks.length;
    while (i > 0 && this.blocks[i - 1]!.offset + this.blocks[i - 1]!.text.length > offset) i -= 1;
    return i;
  }
}
