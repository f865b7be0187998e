import { excessIn, excessInFields, type JsonBounds } from './json-bounds';

const WIDE: JsonBounds = { members: 1_000, membersOfOne: 1_000, elements: 1_000, levels: 1_000 };
/** So that the look at a text's length alone never decides. */
const padded = (text: string): string => `${text.slice(0, -1)}${' '.repeat(6_000)}${text.at(-1)}`;

const object = (members: number): string =>
  `{${Array.from({ length: members }, (_, i) => `"k${i}":${i}`).join(',')}}`;
const array = (elements: number): string => `[${Array.from({ length: elements }, () => '7').join(',')}]`;
const nested = (levels: number): string => `${'['.repeat(levels)}${']'.repeat(levels)}`;
const nestedObjects = (levels: number): string => `${'{"a":'.repeat(levels)}1${'}'.repeat(levels)}`;

describe.each([
  ['short', (text: string) => text],
  ['long', padded],
])('what a %s text has too much of', (_, sized) => {
  it.each<[string, Partial<JsonBounds>, string, string, string]>([
    ['members', { members: 3 }, object(3), object(4), 'has more than 3 members'],
    [
      'members of several objects',
      { members: 3 },
      '[{"a":1},{"b":1,"c":[{}]}]',
      '[{"a":1},{"b":1,"c":{"d":1}}]',
      'has more than 3 members',
    ],
    [
      'members of one object',
      { membersOfOne: 2 },
      '{"a":{"b":1,"c":1},"d":{"e":1}}',
      '{"a":{"b":1,"c":{},"d":1}}',
      'has an object of more than 2 members',
    ],
    [
      'members of the outer one, after an inner one',
      { membersOfOne: 2 },
      '{"a":{"x":1,"y":1},"b":{}}',
      '{"a":{"x":1,"y":1},"b":{},"c":1}',
      'has an object of more than 2 members',
    ],
    [
      'the same member again',
      { members: 2 },
      '{"a":1,"a":2}',
      '{"a":1,"a":2,"a":3}',
      'has more than 2 members',
    ],
    ['elements', { elements: 3 }, array(3), array(4), 'has more than 3 array elements'],
    [
      'elements of several arrays',
      { elements: 4 },
      '{"a":[ 1 ],"b":[[],"x",{"c":[\n]}]}',
      '{"a":[ 1 ],"b":[[],"x",{"c":[ 1]}]}',
      'has more than 4 array elements',
    ],
    ['arrays in arrays', { levels: 4 }, nested(4), nested(5), 'is nested deeper than 4 levels'],
    [
      'objects in objects',
      { levels: 4 },
      nestedObjects(4),
      nestedObjects(5),
      'is nested deeper than 4 levels',
    ],
    ['both', { levels: 2 }, '[{},[],{"a":1}]', '[{},[],{"a":[]}]', 'is nested deeper than 2 levels'],
  ])('%s', (__, bound, within, past, said) => {
    const bounds = { ...WIDE, ...bound };
    expect(JSON.parse(within)).toBeDefined();
    expect(JSON.parse(past)).toBeDefined();
    expect(excessIn(sized(within), bounds)).toBeNull();
    expect(excessIn(sized(past), bounds)).toBe(said);
  });

  it.each([
    ['brackets, colons and commas', '{"a":"[[[{{{:::,,,"}'],
    ['an escaped quote', '{"a":"\\"[[[[::::,,,,"}'],
    ['an escaped backslash at its end', '{"a":"\\\\","b":"[[[["}'],
    ['escaped backslashes and a quote', '{"a":"\\\\\\"[[[[::::,,,,"}'],
    ['a long one with escapes', `{"a":"${'x'.repeat(100)}\\\\\\"${'['.repeat(100)}\\\\","b":"]]]]"}`],
    ['an escape at every place there is', `{"a":"${'\\\\'.repeat(50)}\\"${'[,:'.repeat(30)}"}`],
  ])('not what stands in a string: %s', (__, text) => {
    expect(JSON.parse(text)).toBeDefined();
    expect(excessIn(sized(text), { members: 2, membersOfOne: 2, elements: 0, levels: 1 })).toBeNull();
  });

  it.each([['"'], ['{"a'], ['{"a\\'], [']'], ['}{'], [''], ['[1,'], ['nonsense']])(
    'nothing of what is no JSON: %j',
    (text) => {
      expect(excessIn(text === '' ? text : sized(text), WIDE)).toBeNull();
    },
  );
});

it('counts the fields of a form', () => {
  const bounds = { ...WIDE, membersOfOne: 3 };
  expect(excessInFields('a=1&b=2&c=3', bounds)).toBeNull();
  expect(excessInFields('a=1&b=2&c=3&d=4', bounds)).toBe('has more than 3 fields');
  expect(excessInFields('', bounds)).toBeNull();
});
