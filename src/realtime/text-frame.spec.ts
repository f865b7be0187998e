import type { Writable } from 'node:stream';
import * as ws from 'ws';
import { textFrame } from './text-frame';

// In ws, not in its types.
const { Receiver } = ws as unknown as { Receiver: new (options: object) => Writable };

it.each([0, 1, 125, 126, 65_535, 65_536, 200_000])(
  'is a frame that ws reads, of %i bytes',
  async (length) => {
    const text = 'x'.repeat(length);
    const receiver = new Receiver({ isServer: false });
    const read = new Promise<string>((resolve) =>
      receiver.once('message', (data: Buffer) => resolve(data.toString())),
    );
    receiver.write(textFrame(text));
    expect(await read).toBe(text);
  },
);

it('counts bytes, not characters', async () => {
  const text = '中国必胜 🎉'.repeat(20);
  const receiver = new Receiver({ isServer: false });
  const read = new Promise<string>((resolve) =>
    receiver.once('message', (data: Buffer) => resolve(data.toString())),
  );
  receiver.write(textFrame(text));
  expect(await read).toBe(text);
});
