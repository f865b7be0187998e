import { audioFormatOf } from './audio-format';

const of = (hex: string) => audioFormatOf(Buffer.from(hex.replaceAll(' ', ''), 'hex'))?.extension ?? null;

describe('audioFormatOf', () => {
  it.each([
    ['wav', '52494646 24000000 57415645'],
    ['mp3', '49443304 00000000 00000000'],
    ['mp3', 'fffb9064 00000000 00000000'],
    ['mp3', 'fff38464 00000000 00000000'],
    ['mp4', '00000020 66747970 4d344120'],
    ['webm', '1a45dfa3 9f428681 01000000'],
    ['ogg', '4f676753 00020000 00000000'],
    ['flac', '664c6143 00000022 12001200'],
  ])('knows %s', (extension, hex) => expect(of(hex)).toBe(extension));

  it.each([
    ['nothing', ''],
    ['another RIFF', '52494646 24000000 57454250'],
    ['AAC', 'fff15080 00000000 00000000'],
    ['two bytes of sync', 'fffb'],
    ['a PNG', '89504e47 0d0a1a0a 00000000'],
    ['text', '68656c6c 6f207468 65726521'],
  ])('does not take %s', (_, hex) => expect(of(hex)).toBeNull());
});
