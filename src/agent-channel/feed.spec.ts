import fc from 'fast-check';
import type { PlacedAside, StreamBatch } from '../realtime';
import { after } from './feed';

/** Whole characters of one and of two UTF-16 units, alone and joined. */
const character = fc.constantFrom('a', 'é', '中', '😀', '👩‍🚀', '\n', '\u{10ffff}');
const piece = fc.string({ unit: character, minLength: 1, maxLength: 6 });
const pieces = fc.array(piece, { maxLength: 20 });

/** What a cursor would bring, a take ending where the cuts say. */
function batchesOf(
  all: readonly string[],
  cuts: readonly number[],
  asides: readonly PlacedAside[] = [],
): StreamBatch[] {
  const ends = [...new Set(cuts.map((cut) => cut % (all.length + 1)))].sort((a, b) => a - b);
  const batches: StreamBatch[] = [];
  let begin = 0;
  let reached = -1;
  for (const end of [...ends, all.length]) {
    const told = asides.filter((one) => one.after > reached && one.after <= end);
    const taken = all.slice(begin, end);
    reached = end;
    if (taken.length > 0 || told.length > 0)
      batches.push({
        first: begin + 1,
        offset: all.slice(0, begin).join('').length,
        pieces: taken,
        ...(told.length > 0 && { asides: told }),
      });
    begin = end;
  }
  return batches;
}

/** A place inside a pair counts as before it. */
const before = (text: string, at: number): number => (/[\udc00-\udfff]/.test(text[at] ?? '') ? at - 1 : at);

describe('after()', () => {
  it('leaves exactly the text from there on, at any place of any pieces in any batches', () => {
    fc.assert(
      fc.property(pieces, fc.array(fc.nat(), { maxLength: 5 }), fc.nat({ max: 130 }), (all, cuts, from) => {
        const text = all.join('');
        const batches = batchesOf(all, cuts).map((batch) => after(batch, from));
        const rest = batches.flatMap((batch) => batch.pieces);
        expect(rest.join('')).toBe(text.slice(before(text, from)));
        for (const one of rest) expect(one.isWellFormed()).toBe(true);
        // What it says of itself is so: the offset of its first piece, and its number.
        for (const batch of batches) {
          if (batch.pieces.length === 0) continue;
          expect(text.startsWith(batch.pieces.join(''), batch.offset)).toBe(true);
          expect(all[batch.first - 1]!.endsWith(batch.pieces[0]!)).toBe(true);
        }
      }),
    );
  });

  it('tells what happened beside the text from there on, once, and nothing from before', () => {
    const placed = fc.array(fc.nat({ max: 20 }), { maxLength: 8 });
    fc.assert(
      fc.property(
        pieces,
        fc.array(fc.nat(), { maxLength: 5 }),
        fc.nat({ max: 130 }),
        placed,
        (all, cuts, from, at) => {
          const text = all.join('');
          // A reader has whole characters.
          const place = before(text, from);
          const asides = at
            .map((place) => place % (all.length + 1))
            .sort((a, b) => a - b)
            .map((place, n): PlacedAside => ({ after: place, aside: { type: 'think', content: `${n}` } }));
          const told = batchesOf(all, cuts, asides).flatMap((batch) => after(batch, place).asides ?? []);
          const placeOf = (one: PlacedAside): number => all.slice(0, one.after).join('').length;
          expect(told).toEqual(asides.filter((one) => placeOf(one) >= place));
        },
      ),
    );
  });

  it('passes on how the reply ended', () => {
    const end = {
      status: 'finished',
      promptTokens: 1,
      completionTokens: 1,
      totalTokens: 2,
      credits: 0,
    } as const;
    const batch = { first: 1, offset: 0, pieces: ['ab', 'cd'], end };
    expect(after(batch, 0)).toBe(batch);
    expect(after(batch, 3)).toEqual({ first: 2, offset: 3, pieces: ['d'], end });
    expect(after(batch, 4)).toEqual({ first: 3, offset: 4, pieces: [], end });
    expect(after(batch, 99)).toEqual({ first: 3, offset: 4, pieces: [], end });
  });
});
