import { Config } from '../../config';
import { Outbound } from '../../outbound';
import { crc32, inflateSync } from 'node:zlib';
import { demoEmbedding, demoImage, demoTranscript } from './builtin-media';
import { MediaDriver, type MediaService } from './media.driver';

describe('the built-in demo', () => {
  it('embeds the same text as the same unit vector', () => {
    const vector = demoEmbedding('中国');
    expect(vector).toHaveLength(64);
    expect(Math.hypot(...vector)).toBeCloseTo(1, 12);
    expect(demoEmbedding('中国')).toEqual(vector);
    expect(demoEmbedding('中國')).not.toEqual(vector);
    expect(demoEmbedding('', 3)).toHaveLength(3);
  });

  it('draws a PNG in one colour, which the prompt decides', () => {
    const png = demoImage('a cat', 0);
    const length = png.readUInt32BE(33);
    expect(png.toString('latin1', 37, 41)).toBe('IDAT');
    expect(png.readUInt32BE(41 + length)).toBe(crc32(png.subarray(37, 41 + length)));
    const rows = inflateSync(png.subarray(41, 41 + length));
    expect(rows).toHaveLength(64 * 193);
    expect([...rows.subarray(1, 4)]).toEqual([...rows.subarray(-3)]);
    expect(demoImage('a cat', 0).equals(png)).toBe(true);
    expect(demoImage('a cat', 1).equals(png)).toBe(false);
  });

  it.each([
    [undefined, 1],
    ['7', 1],
    [0, 1],
    [-3, 1],
    [NaN, 1],
    [2.5, 2],
    [10, 10],
    [11, 10],
    [1_000, 10],
  ])('draws %p images as %p', async (n, count) => {
    const service = { kind: 'builtin', model: 'demo', parameters: {} } as unknown as MediaService;
    const { signal } = new AbortController();
    const outbound = new Outbound(Config.load({}));
    const { json } = await new MediaDriver(outbound).images({ service, prompt: 'x', options: { n }, signal });
    expect(json.data).toHaveLength(count);
  });

  it('says that it did not listen', () => {
    expect(demoTranscript('wav', 5)).toMatch(/demo model.* 5 bytes of wav/);
  });
});
