import { Config } from './config';

const load = (frame: number, buffered: number) =>
  Config.load({ IM_MAX_FRAME_BYTES: String(frame), IM_MAX_BUFFERED_BYTES: String(buffered) });

describe('variables that must fit together', () => {
  it('a frame that is accepted can be given to its receivers, with what the server adds', () => {
    expect(load(1_000_000, 1_001_024).env.IM_MAX_FRAME_BYTES).toBe(1_000_000);
    expect(() => load(1_000_000, 1_001_023)).toThrow(
      'IM_MAX_BUFFERED_BYTES must be IM_MAX_FRAME_BYTES and 1024 more at least',
    );
  });
});
