import { demoImage } from '../model-services/drivers/builtin-media';
import { imageFileOf } from './image-file';

const hex = (text: string, length = 0) =>
  Buffer.concat([Buffer.from(text.replaceAll(' ', ''), 'hex'), Buffer.alloc(length)]);

describe('imageFileOf', () => {
  it.each([
    ['PNG', demoImage('red', 0), { mimeType: 'image/png', width: 64, height: 64 }],
    ['GIF', hex('474946383961 0a00 1400'), { mimeType: 'image/gif', width: 10, height: 20 }],
    [
      'JPEG, its frame after other segments',
      hex('ffd8 ffe0 0010 4a464946000101000001000100 00 ff ffc2 0011 08 0168 0280', 8),
      { mimeType: 'image/jpeg', width: 640, height: 360 },
    ],
    [
      'lossy WebP',
      hex('52494646 00000000 57454250 56503820 00000000 000000 9d012a 8002 6801'),
      { mimeType: 'image/webp', width: 640, height: 360 },
    ],
    [
      'lossless WebP',
      hex('52494646 00000000 57454250 5650384c 00000000 2f 7fc25900', 8),
      { mimeType: 'image/webp', width: 640, height: 360 },
    ],
    [
      'extended WebP',
      hex('52494646 00000000 57454250 56503858 0a000000 00000000 7f0200 670100'),
      { mimeType: 'image/webp', width: 640, height: 360 },
    ],
  ])('knows a %s and its size', (_, bytes, file) => expect(imageFileOf(bytes)).toEqual(file));

  it.each([
    ['nothing', hex('')],
    ['text', Buffer.from('<svg xmlns="http://www.w3.org/2000/svg"/>')],
    ['a page', Buffer.from('<!doctype html><script>alert(1)</script>')],
    ['a PNG of no size', hex('89504e470d0a1a0a 0000000d 49484452 00000000 00000040')],
    ['a PNG cut off', hex('89504e470d0a1a0a 00000000')],
    ['a GIF cut off', hex('474946383961 0a00')],
    ['a JPEG without a frame', hex('ffd8 ffda 0000', 20)],
    ['a JPEG whose segments lead nowhere', hex('ffd8 ffe0 0000', 20)],
    ['a WebP of another kind', hex('52494646 00000000 57454250 58585858', 30)],
    ['another RIFF', hex('52494646 00000000 57415645', 30)],
  ])('does not take %s', (_, bytes) => expect(imageFileOf(bytes)).toBeNull());

  it('reads no byte beyond the end, wherever a file is cut', () => {
    for (const whole of [
      demoImage('x', 1),
      hex('ffd8 ffe0 0010 4a46494600010100000100010000 ffc0 0011 08 0168 0280', 8),
    ])
      for (let length = 0; length < 60; length += 1)
        expect(() => imageFileOf(whole.subarray(0, length))).not.toThrow();
  });
});
