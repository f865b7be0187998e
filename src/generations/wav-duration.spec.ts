import { wav } from '../../test/support/media-upstream';
import { wavSeconds } from './wav-duration';

describe('wavSeconds', () => {
  it.each([
    [0.5, 8_000],
    [2, 44_100],
  ])('reads %p s at %p Hz', (seconds, rate) => expect(wavSeconds(wav(seconds, rate))).toBeCloseTo(seconds));

  it('passes over other chunks, padded ones too', () => {
    const plain = wav(1);
    const list = Buffer.from('LIST\x03\0\0\0abc\0', 'latin1');
    expect(wavSeconds(Buffer.concat([plain.subarray(0, 36), list, plain.subarray(36)]))).toBeCloseTo(1);
  });

  it('counts what is there when the length says more', () => {
    const streamed = wav(1);
    streamed.writeUInt32LE(0xffff_ffff, 40);
    expect(wavSeconds(streamed)).toBeCloseTo(1);
  });

  it('gives up on a file of millions of empty chunks', () => {
    const plain = wav(1);
    const empty = (count: number) =>
      Buffer.concat([
        plain.subarray(0, 36),
        Buffer.alloc(count * 8, 'JUNK\0\0\0\0', 'latin1'),
        plain.subarray(36),
      ]);
    expect(wavSeconds(empty(900))).toBeCloseTo(1);
    expect(wavSeconds(empty(3_200_000))).toBeNull();
  });

  it.each([
    ['nothing', Buffer.alloc(0)],
    ['a head alone', wav(1).subarray(0, 20)],
    ['no byte rate', Buffer.from(wav(1).fill(0, 28, 32))],
  ])('does not know of %s', (_, bytes) => expect(wavSeconds(bytes)).toBeNull());
});
