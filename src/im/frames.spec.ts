import fc from 'fast-check';
import type { JsonBounds } from '../common';
import { BadFrame, canonical, clientTime, dedupeKey, idText, parseFrame, type MessageFrame } from './frames';

const message = (msg: object, more: object = {}) => ({
  type: 'single',
  source: 1,
  target: 'b',
  msg,
  ...more,
});
const parsed = (frame: unknown, rich = false, bounds?: JsonBounds) =>
  parseFrame(typeof frame === 'string' ? frame : JSON.stringify(frame), rich, bounds).frame as MessageFrame;
const refusal = (frame: unknown, rich = false, bounds?: JsonBounds): string => {
  try {
    parsed(frame, rich, bounds);
  } catch (error) {
    if (error instanceof BadFrame) return error.message;
    throw error;
  }
  return 'accepted';
};

describe('parseFrame', () => {
  it.each([
    ['{', 'The frame is not valid JSON.'],
    ['[]', 'The frame is not a JSON object.'],
    ['null', 'The frame is not a JSON object.'],
    [{ type: 'shout' }, 'type: must be one of'],
    [{ type: 'toString' }, 'type: must be one of'],
    [{ type: 'single', source: 1, msg: {} }, 'target: is missing'],
    [{ type: 'single', source: 1, target: 2 }, 'msg: is missing'],
    [message({}, { source: true }), 'source: must be an integer of at most 127 digits or a string'],
    [
      message({}, { target: 'x'.repeat(129) }),
      'target: must be an integer of at most 127 digits or a string',
    ],
    [message([]), 'msg: must be object'],
    [message({ msgId: {} }), 'msg.msgId: must be a number or a string'],
    [message({ timestamp: 'soon' }), 'msg.timestamp: must be an integer or a string'],
    [message({ timestamp: 1.5 }), 'msg.timestamp: must be an integer or a string'],
    [message({}, { msgType: '' }), 'msgType:'],
    ['{"type":"single","source":1,"target":2,"msg":{"a":"\\u0000"}}', 'The frame must not contain NUL.'],
    [{ type: 'ack', conversationId: '1', seq: 1 }, 'type: must be one of'],
  ])('refuses %j', (frame, told) => {
    expect(refusal(frame)).toContain(told);
  });

  it('takes the richer dialect where it is spoken', () => {
    expect(refusal({ type: 'ack', conversationId: '1', seq: 1 }, true)).toBe('accepted');
    expect(refusal({ type: 'ack', conversationId: 'x', seq: 1 }, true)).toContain('conversationId:');
    expect(refusal({ type: 'sync', cursors: { 1: -1 } }, true)).toContain('cursors');
  });

  it('tells of which message it speaks', () => {
    expect(() => parsed({ type: 'single', source: 1, msg: { msgId: 'm7' } })).toThrow(
      expect.objectContaining({ msgId: 'm7' }),
    );
  });

  it('an escaped backslash before u0000 is just text', () => {
    const frame = '{"type":"single","source":1,"target":2,"msg":{"a":"\\\\u0000"}}';
    expect(canonical(parsed(frame))).toBe(frame);
  });
});

describe('canonical', () => {
  it('keeps every number as it was written', () => {
    const frame =
      '{"type":"single","source":12345678901234567890,"target":1.0,"msg":{"msgId":9007199254740993,"x":[1e3,-0,0.10]},"extra":{"n":1.50}}';
    expect(canonical(parsed(frame))).toBe(frame);
  });

  it('keeps what the protocol knows and drops the rest; id and seq are the server’s', () => {
    expect(canonical(parsed(message({ a: 1 }, { id: 'forged', seq: 99, junk: true })))).toBe(
      '{"type":"single","source":1,"target":"b","msg":{"a":1}}',
    );
  });

  it('gives back any JSON that goes into msg and extra', () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string(), fc.jsonValue()), fc.jsonValue(), (extraMsg, extra) => {
        const text = JSON.stringify(message({ ...extraMsg, msgId: 1, timestamp: 1 }, { extra }));
        fc.pre(!/\\u0000/.test(text));
        const kept = JSON.parse(canonical(parsed(text))) as object;
        expect(kept).toEqual(JSON.parse(text));
      }),
    );
  });
});

it('refuses what is nested too deeply, and is not misled by brackets in strings', () => {
  const nested = (levels: number) => `${'['.repeat(levels)}${']'.repeat(levels)}`;
  const frame = (x: string) => `{"type":"single","source":1,"target":2,"msg":{"msgId":7,"a":${x}}}`;
  expect(refusal(frame(nested(90)))).toBe('accepted');
  expect(refusal(frame(nested(30_000)))).toContain('nested deeper than 100 levels');
  expect(refusal(frame(JSON.stringify(`\\"${'['.repeat(300)}`)))).toBe('accepted');
  expect(refusal(frame(nested(98)))).toBe('accepted');
  expect(refusal(frame(nested(99)))).toContain('nested deeper than 100 levels');
});

describe('what a frame may hold', () => {
  const of = (count: number) => Array.from({ length: count }, (_, i) => i);
  const cursors = (count: number) => Object.fromEntries(of(count).map((i) => [i, 1]));

  it.each([
    ['users of `watch`', { type: 'watch', users: of(200) }, { type: 'watch', users: of(201) }],
    ['cursors of `sync`', { type: 'sync', cursors: cursors(500) }, { type: 'sync', cursors: cursors(501) }],
  ])('%s: by its schema', (_, within, past) => {
    expect(refusal(JSON.stringify(within), true)).toBe('accepted');
    expect(refusal(JSON.stringify(past), true)).toMatch(/must NOT have more than \d+ (items|properties)/);
  });

  const bounds = { members: 12, membersOfOne: 6, elements: 3, levels: 4 };
  it.each([
    [
      'members of `msg`',
      { msg: { a: 1, b: 2, c: 3, d: 4, e: 5, f: 6, g: 7 } },
      'an object of more than 6 members',
    ],
    [
      'members in all',
      { msg: { a: of(0), b: { a: 1, b: 2, c: 3, d: 4 }, c: { e: 5 } }, extra: { a: 1 } },
      'more than 12 members',
    ],
    ['elements', { msg: {}, extra: of(4) }, 'more than 3 array elements'],
    ['levels', { msg: { a: { b: { c: {} } } } }, 'deeper than 4 levels'],
    ['what nobody knows', { msg: {}, other: of(4) }, 'more than 3 array elements'],
  ])('%s: by the bounds of every body', (_, more, said) => {
    const frame = (free: object) => JSON.stringify({ type: 'single', source: 1, target: 2, ...free });
    expect(refusal(frame({ msg: { a: 1 }, extra: [1, 2, 3] }), false, bounds)).toBe('accepted');
    expect(refusal(frame(more), false, bounds)).toContain(said);
  });
});

it('gives the stored form with the frame', () => {
  const spaced = '{ "type": "single", "source": 1.0, "target": 2, "msg": {} }';
  expect(parseFrame(spaced, false).text).toBe('{"type":"single","source":1.0,"target":2,"msg":{}}');
  expect(parseFrame('{"type":"ping"}', false).text).toBe('');
});

describe('dedupeKey', () => {
  it('is the same for a number and its text, in any spelling of the time', () => {
    const keys = [
      { msgId: 1, timestamp: '1611065986' },
      { msgId: '1', timestamp: 1611065986 },
      { msgId: 1, timestamp: '01611065986' },
    ].map((msg) => dedupeKey('a', msg));
    expect(new Set(keys).size).toBe(1);
  });

  it('holds the sender, the id and the time; without an id there is none', () => {
    const keys = [
      dedupeKey('a', { msgId: 1, timestamp: 1 }),
      dedupeKey('b', { msgId: 1, timestamp: 1 }),
      dedupeKey('a', { msgId: 2, timestamp: 1 }),
      dedupeKey('a', { msgId: 1, timestamp: 2 }),
      dedupeKey('a', { msgId: 1 }),
    ];
    expect(new Set(keys).size).toBe(5);
    expect(dedupeKey('a', { timestamp: 1 })).toBeNull();
  });
});

it('reads seconds and milliseconds, and refuses clocks that are a month ahead', () => {
  const now = Date.UTC(2026, 0, 1);
  expect(clientTime({ timestamp: '1611065986' }, now)).toBe(1_611_065_986_000);
  expect(clientTime({ timestamp: 1_611_065_986_123 }, now)).toBe(1_611_065_986_123);
  expect(clientTime({}, now)).toBeNull();
  expect(() => clientTime({ timestamp: now + 31 * 86_400_000 }, now)).toThrow(BadFrame);
});

it('compares ids as text', () => {
  expect([idText(1), idText('1'), idText('agent:main')]).toEqual(['1', '1', 'agent:main']);
});
