import type { ToolCall } from './text-driver';
import { CallNumbering, mergedFields, ToolCalls, withValidArguments } from './tool-calls';

type Raw = Record<string, unknown>;
const piece = (raw: Raw, name?: string, args?: unknown): Raw => ({
  ...raw,
  function: { ...(name !== undefined && { name }), ...(args !== undefined && { arguments: args }) },
});
const A = '{"q":"Arm"}';
const B = '{"q":"Nvidia"}';

/** What the events, each a list of calls or pieces of calls, come to. */
function calls(
  events: readonly (readonly unknown[])[],
  { whole = false, taken = [] as string[] } = {},
): ToolCall[] {
  const numbering = new CallNumbering(() => taken);
  const together = new ToolCalls();
  for (const event of events) together.add(numbering.read(event, whole));
  return together.all;
}
const said = (events: readonly (readonly unknown[])[], options = {}): [string, string][] =>
  calls(events, options).map(({ function: { name, arguments: args } }) => [name, args]);

const TWO = [
  ['find', A],
  ['find', B],
];

describe('calls that come bit by bit', () => {
  it.each<[string, unknown[][]]>([
    [
      'as OpenAI sends them',
      [
        [piece({ index: 0, id: 'a' }, 'find', '')],
        [piece({ index: 0 }, undefined, A)],
        [piece({ index: 1, id: 'b' }, 'find', '')],
        [piece({ index: 1 }, undefined, B)],
      ],
    ],
    ['with ids and no numbers', [[piece({ id: 'a' }, 'find', A)], [piece({ id: 'b' }, 'find', B)]]],
    [
      'all with number 0',
      [[piece({ index: 0, id: 'a' }, 'find', A)], [piece({ index: 0, id: 'b' }, 'find', B)]],
    ],
    [
      'all with number 0, in pieces',
      [
        [piece({ index: 0, id: 'a' }, 'find', '{"q":')],
        [piece({ index: 0 }, undefined, '"Arm"}')],
        [piece({ index: 0, id: 'b' }, 'find', '')],
        [piece({ index: 0 }, undefined, B)],
      ],
    ],
    [
      'numbered from 1',
      [[piece({ index: 1, id: 'a' }, 'find', A)], [piece({ index: 2, id: 'b' }, 'find', B)]],
    ],
    [
      'numbered from -1',
      [[piece({ index: -1, id: 'a' }, 'find', A)], [piece({ index: 0, id: 'b' }, 'find', B)]],
    ],
    [
      'numbered by text',
      [
        [piece({ index: '0', id: 'a' }, 'find', '')],
        [piece({ index: '1', id: 'b' }, 'find', B)],
        [piece({ index: '0' }, undefined, A)],
      ],
    ],
    ['numbered without ids', [[piece({ index: 0 }, 'find', A)], [piece({ index: 1 }, 'find', B)]]],
    ['without numbers and ids', [[piece({}, 'find', A)], [piece({}, 'find', B)]]],
    [
      'without numbers and ids, in pieces',
      [
        [piece({}, 'find', '')],
        [piece({}, undefined, A)],
        [piece({}, 'find', '')],
        [piece({}, undefined, B)],
      ],
    ],
    ['all with number 0 and no ids', [[piece({ index: 0 }, 'find', A)], [piece({ index: 0 }, 'find', B)]]],
    [
      'all with the same id',
      [[piece({ index: 0, id: 'x' }, 'find', A)], [piece({ index: 1, id: 'x' }, 'find', B)]],
    ],
    ['with empty ids', [[piece({ index: 0, id: '' }, 'find', A)], [piece({ index: 1, id: '' }, 'find', B)]]],
    [
      'interleaved by number',
      [
        [piece({ index: 0, id: 'a' }, 'find', '{"q":'), piece({ index: 1, id: 'b' }, 'find', '{"q":')],
        [piece({ index: 1 }, undefined, '"Nvidia"}'), piece({ index: 0 }, undefined, '"Arm"}')],
      ],
    ],
    [
      'interleaved by id',
      [
        [piece({ id: 'a' }, 'find', '{"q":')],
        [piece({ id: 'b' }, 'find', '{"q":')],
        [piece({ id: 'a' }, undefined, '"Arm"}')],
        [piece({ id: 'b' }, undefined, '"Nvidia"}')],
      ],
    ],
    [
      'with name and id in every piece',
      [
        [piece({ index: 0, id: 'a' }, 'find', '{"q":')],
        [piece({ index: 0, id: 'a' }, 'find', '"Arm"}')],
        [piece({ index: 1, id: 'b' }, 'find', '{"q":')],
        [piece({ index: 1, id: 'b' }, 'find', '"Nvidia"}')],
      ],
    ],
    [
      'with the name in every piece and no id',
      [
        [piece({ index: 0 }, 'find', '{"q":')],
        [piece({ index: 0 }, 'find', '"Arm"}')],
        [piece({ index: 1 }, 'find', B)],
      ],
    ],
    [
      'with the id after the number',
      [
        [piece({ index: 0 }, 'find', '')],
        [piece({ index: 0, id: 'a' }, undefined, A)],
        [piece({ index: 1, id: 'b' }, 'find', B)],
      ],
    ],
    ['all in one event', [[piece({}, 'find', A), piece({}, 'find', B)]]],
    [
      'with arguments as objects',
      [
        [piece({ index: 0, id: 'a' }, 'find', { q: 'Arm' })],
        [piece({ index: 1, id: 'b' }, 'find', { q: 'Nvidia' })],
      ],
    ],
    [
      'with null where there is nothing',
      [
        [piece({ index: 0, id: 'a', type: null }, 'find', null)],
        [piece({ index: 0, id: null }, undefined, A), null],
        [piece({ index: 1, id: 'b' }, 'find', B)],
      ],
    ],
  ])('%s', (_, events) => {
    expect(said(events)).toEqual(TWO);
    const ids = calls(events).map(({ id }) => id);
    expect(new Set(ids).size).toBe(2);
    for (const id of ids) expect(id).toMatch(/^[\w.:-]{1,64}$/);
  });

  it('keeps two calls without arguments apart', () => {
    expect(
      said([[piece({ index: 0, id: 'a' }, 'now', '')], [piece({ index: 0, id: 'b' }, 'today', '')]]),
    ).toEqual([
      ['now', ''],
      ['today', ''],
    ]);
  });

  it('takes what was cut off as it is', () => {
    expect(said([[piece({ index: 0, id: 'a' }, 'find', '{"q":"Ar')]])).toEqual([['find', '{"q":"Ar']]);
  });

  it('passes over arguments of no call, and what is no call', () => {
    expect(calls([[piece({}, undefined, '{}')], [7, 'x', null, []]])).toEqual([]);
  });

  it('numbers from 0 without gaps, in the order of their beginnings', () => {
    const numbering = new CallNumbering();
    const deltas = [
      [piece({ index: 7, id: 'a' }, 'x')],
      [piece({ index: 3, id: 'b' }, 'y')],
      [piece({ index: 7 }, undefined, '{}')],
    ];
    expect(deltas.flatMap((event) => numbering.read(event)).map(({ index }) => index)).toEqual([0, 1, 0]);
  });

  it('tells id and name once', () => {
    const numbering = new CallNumbering();
    const raw = piece({ index: 0, id: 'a' }, 'find', '{');
    expect(numbering.read([raw])).toEqual([{ index: 0, id: 'a', name: 'find', arguments: '{' }]);
    expect(numbering.read([raw])).toEqual([{ index: 0, arguments: '{' }]);
  });
});

it('takes each of a whole list for a call, whatever numbers and ids they have', () => {
  const same = piece({ index: 0, id: 'x' }, 'find', A);
  expect(said([[same, same]], { whole: true })).toEqual([
    ['find', A],
    ['find', A],
  ]);
  expect(new Set(calls([[same, same]], { whole: true }).map(({ id }) => id)).size).toBe(2);
});

it.each([
  ['begins anew with every answer', 'call_0'],
  ['is too long', 'x'.repeat(65)],
  ['has characters that some refuse', 'a b'],
  ['is missing', undefined],
])('gives an id of its own where the provider’s %s', (_, id) => {
  const [call] = calls([[piece({ index: 0, ...(id && { id }) }, 'find', A)]], { taken: ['call_0'] });
  expect(call!.id).toMatch(/^[A-Za-z0-9]{9}$/);
});

it('carries the fields it does not know', () => {
  const extra_content = { google: { thought_signature: 'sig' } };
  const [call] = calls([[{ ...piece({ index: 0, id: 'a' }, 'find', A), extra_content }]]);
  expect(call).toEqual({
    id: 'a',
    type: 'function',
    function: { name: 'find', arguments: A },
    extra_content,
  });
});

it('lets texts and lists of fields grow', () => {
  expect(mergedFields({ a: 'x', b: [1], c: 1 }, { a: 'y', b: [2], c: 2, d: null })).toEqual({
    a: 'xy',
    b: [1, 2],
    c: 2,
    d: null,
  });
});

it.each([
  ['', '{}'],
  ['  ', '{}'],
  [A, A],
  ['{"q":"Ar', '{"invalid":"{\\"q\\":\\"Ar"}'],
  ['[1]', '{"invalid":"[1]"}'],
  ['null', '{"invalid":"null"}'],
])('sends arguments %j back as an object', (given, sent) => {
  const call: ToolCall = { id: 'a', type: 'function', function: { name: 'find', arguments: given } };
  expect(withValidArguments(call).function.arguments).toBe(sent);
});
