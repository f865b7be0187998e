import fc from 'fast-check';
import { BadFrame, parseFrame } from './frames';

const parsed = (frame: unknown) => parseFrame(typeof frame === 'string' ? frame : JSON.stringify(frame));
function refused(frame: unknown): BadFrame {
  try {
    parsed(frame);
  } catch (error) {
    if (error instanceof BadFrame) return error;
    throw error;
  }
  throw new Error('it was accepted');
}

it.each([
  { type: 'ping' },
  { type: 'ping', requestId: '' },
  { type: 'chat', message: 'x' },
  {
    type: 'chat',
    agentId: 'main',
    sessionId: 's',
    message: '你好',
    stream: false,
    requestId: 'r',
    modelServiceId: '1',
  },
  { type: 'chat', message: 'x'.repeat(32_000), modelServiceId: 7 },
  { type: 'chat', message: '🎉'.repeat(16_000) },
  { type: 'subscribe' },
  { type: 'cancel', sessionId: 'x'.repeat(128) },
  { type: 'resume', messageId: 1 },
  { type: 'resume', sessionId: 's', messageId: '9223372036854775807', offset: 9_007_199_254_740_991 },
])('accepts it as it is: frame %#', (frame) => {
  expect(parsed(frame)).toEqual(frame);
});

it('takes null for absent, and ignores what it does not know', () => {
  const nulls = { agentId: null, sessionId: null, requestId: null, modelServiceId: null };
  expect(parsed({ type: 'chat', message: 'x', ...nulls })).toEqual({ type: 'chat', message: 'x' });
  expect(parsed({ type: 'ping', message: 1, extra: { a: [] } })).toMatchObject({ type: 'ping' });
});

it.each([
  ['{', 'the frame is not valid JSON'],
  ['[1]', 'the frame is not a JSON object'],
  ['null', 'the frame is not a JSON object'],
  [{ type: 'shout' }, 'type: must be one of chat, ping, subscribe, cancel, resume'],
  [{ type: 'toString' }, 'type: must be one of'],
  [{ type: 'chat' }, 'message: is required'],
  [{ type: 'chat', message: '' }, 'message: must have 1 to 32000 characters'],
  [{ type: 'chat', message: 'x'.repeat(32_001) }, 'message: must have 1 to 32000 characters'],
  [{ type: 'chat', message: '🎉'.repeat(16_001) }, 'message: must have 1 to 32000 characters'],
  [{ type: 'chat', message: 'x', sessionId: 'x'.repeat(129) }, 'sessionId: must have 1 to 128 characters'],
  [{ type: 'chat', message: 'x', modelServiceId: '1x' }, 'modelServiceId: '],
  [{ type: 'chat', message: 'x', modelServiceId: 1.5 }, 'modelServiceId: '],
  [{ type: 'chat', message: '\0' }, 'message: must not contain NUL'],
  [{ type: 'cancel', sessionId: 'a\0' }, 'sessionId: must not contain NUL'],
  [
    { type: 'chat', message: 'x', sessionId: '\ud800' },
    'sessionId: must not contain half of a surrogate pair',
  ],
  [{ type: 'subscribe', sessionId: 'a\udc00b' }, 'sessionId: must not contain half of a surrogate pair'],
  [
    { type: 'resume', messageId: '1', agentId: '\ud801' },
    'agentId: must not contain half of a surrogate pair',
  ],
  [{ type: 'ping', requestId: '\udfff' }, 'requestId: must not contain half of a surrogate pair'],
  [{ type: 'resume' }, 'messageId: is required'],
  [{ type: 'resume', messageId: '1', offset: -1 }, 'offset: '],
])('names what is wrong: frame %#', (frame, told) => {
  expect(refused(frame).message).toContain(told);
});

it('tells of which request it speaks, where that can be read', () => {
  expect(refused({ type: 'chat', requestId: 'r' }).requestId).toBe('r');
  expect(refused({ type: 'x', requestId: 'r' }).requestId).toBe('r');
  expect(refused({ type: 'chat', requestId: 1 }).requestId).toBeUndefined();
  expect(refused({ type: 'chat', requestId: 'x'.repeat(129) }).requestId).toBeUndefined();
});

it('whatever comes is a frame or a BadFrame', () => {
  const values = fc.dictionary(
    fc.constantFrom(
      'type',
      'message',
      'agentId',
      'sessionId',
      'requestId',
      'messageId',
      'offset',
      'stream',
      '__proto__',
    ),
    fc.oneof(fc.constantFrom('chat', 'ping', 'resume', 'cancel'), fc.jsonValue()),
  );
  const check = (text: string): void => {
    try {
      expect(typeof parseFrame(text).type).toBe('string');
    } catch (error) {
      expect(error).toBeInstanceOf(BadFrame);
      expect((error as BadFrame).message).toMatch(/\w/);
    }
  };
  fc.assert(fc.property(values, (frame) => check(JSON.stringify(frame))));
  fc.assert(fc.property(fc.string(), check));
});

it('what nobody knows has the bounds of every body', () => {
  const bounds = { members: 8, membersOfOne: 5, elements: 3, levels: 3 };
  const said = (more: object): string => {
    try {
      parseFrame(JSON.stringify({ type: 'ping', requestId: 'r', ...more }), bounds);
    } catch (error) {
      expect((error as BadFrame).requestId).toBe('r');
      return (error as BadFrame).message;
    }
    return 'accepted';
  };
  expect(said({ x: [1, 2, 3], y: { z: {} } })).toBe('accepted');
  expect(said({ a: 1, b: 2, c: 3, d: 4 })).toBe('the frame has an object of more than 5 members');
  expect(said({ a: { a: 1, b: 2, c: 3 }, b: { a: 1, b: 2 } })).toBe('the frame has more than 8 members');
  expect(said({ x: [1, 2, 3, 4] })).toBe('the frame has more than 3 array elements');
  expect(said({ x: [[[]]] })).toBe('the frame is nested deeper than 3 levels');
});
