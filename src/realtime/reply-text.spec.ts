import fc from 'fast-check';
import { ReplyText } from './reply-text';

const filled = (pieces: readonly string[]): ReplyText => {
  const text = new ReplyText();
  for (const piece of pieces) text.push(piece);
  return text;
};

describe('a text that grows', () => {
  it('gives back every piece, offset and rest as they were, across blocks and in the open end', () => {
    const short = fc.string({ maxLength: 3 });
    const long = fc.string({ minLength: 9_000, maxLength: 9_010 });
    const pieces = fc.array(fc.oneof({ weight: 9, arbitrary: short }, { weight: 1, arbitrary: long }), {
      maxLength: 1_500,
      size: 'max',
    });
    fc.assert(
      fc.property(pieces, fc.nat(), fc.boolean(), (all, place, sealed) => {
        const text = filled(all);
        if (sealed) text.seal();
        const at = place % (all.length + 1);
        const offset = all.slice(0, at).join('').length;
        expect([text.count, text.length]).toEqual([all.length, all.join('').length]);
        expect(text.pieces(at, Infinity, Infinity)).toEqual(all.slice(at));
        expect(text.offsetOf(at)).toBe(offset);
        expect(text.textFrom(offset)).toBe(all.slice(at).join(''));
        expect(text.textFrom(Math.floor(offset / 2))).toBe(all.join('').slice(Math.floor(offset / 2)));
      }),
      { numRuns: 40 },
    );
  });

  it('gives at most so many pieces, and no more once they have so many characters, but one at least', () => {
    const text = filled(Array.from({ length: 1_000 }, (_, n) => `${n % 10}xx`));
    expect(text.pieces(10, 4, Infinity)).toEqual(['0xx', '1xx', '2xx', '3xx']);
    expect(text.pieces(10, 100, 4)).toEqual(['0xx', '1xx']);
    expect(text.pieces(998, 100, 1)).toEqual(['8xx']);
    expect(text.pieces(1_000, 100, 100)).toEqual([]);
  });

  it('costs two bytes a piece beside the text, however small they are', () => {
    const text = filled(Array.from({ length: 10_000 }, () => 'x'));
    text.seal();
    expect(text.overheadBytes).toBe(20_000);
  });
});
