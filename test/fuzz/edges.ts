/** Of JSON Schema (and OpenAPI's), what the ring reads. */
export interface Schema {
  readonly type?: string | readonly string[];
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly items?: Schema;
  readonly enum?: readonly unknown[];
  readonly oneOf?: readonly Schema[];
  readonly anyOf?: readonly Schema[];
  readonly $ref?: string;
  readonly example?: unknown;
  readonly default?: unknown;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly maxItems?: number;
  readonly format?: string;
}

export type Path = readonly (string | number)[];

/** A valid body with one of its places at an edge. */
export interface Mutation {
  readonly label: string;
  readonly body: unknown;
}

/** Past every limit of nesting that a wire has, and far from what troubles a parser. */
const DEEP = 200;
const LONG = 70_000;
const ABSENT = Symbol('absent');

function nested(levels: number, leaf: unknown, wrap: (inner: unknown) => unknown): unknown {
  let value = leaf;
  for (let level = 0; level < levels; level += 1) value = wrap(value);
  return value;
}

/** What any place may be given instead of what it wants. */
const ANYWHERE: readonly (readonly [string, unknown])[] = [
  ['absent', ABSENT],
  ['null', null],
  ['empty text', ''],
  ['blanks', '   '],
  ['a text', 'x'],
  ['NUL', 'a\0b'],
  ['half a surrogate pair', 'a\ud800b'],
  ['the other half', '\udc00'],
  ['a control character', 'a\u0001b'],
  ['a long text', 'x'.repeat(LONG)],
  ['zero', 0],
  ['a negative number', -1],
  ['a fraction', 1.5],
  ['more than 2^53', 2 ** 53 + 2],
  ['more than 2^63', 1e19],
  ['the largest number', Number.MAX_VALUE],
  ['a boolean', true],
  ['an empty list', []],
  ['a list of null', [null]],
  ['a list of lists', [[[]]]],
  ['a list of NUL', ['a\0b']],
  ['a list of half a surrogate pair', ['\ud800']],
  ['the same twice', ['x', 'x']],
  ['an empty object', {}],
  ['an object of null', { a: null }],
  ['an object with a name of NUL', { 'a\0b': 'c\0d' }],
  ['an object with a name of half a surrogate pair', { '\ud800': '\udfff' }],
  ['deep objects', nested(DEEP, 1, (inner) => ({ a: inner }))],
  ['deep lists', nested(DEEP, 1, (inner) => [inner])],
];

const WHERE = '127.0.0.1:9';
/** Addresses on which checks of them and `new URL` are of different minds, and what an address may hold besides. */
const URLS: readonly (readonly [string, unknown])[] = [
  ['a zone id', 'http://[fe80::1%eth0]/'],
  ['no such port', 'http://127.0.0.1:99999/'],
  ['a host with half a surrogate pair', 'http://127.0.0.1\ud800/'],
  ['a path with half a surrogate pair', `http://${WHERE}/\udc00`],
  ['userinfo', `http://ann:secret@${WHERE}/`],
  ['a user alone', `http://ann@${WHERE}/`],
  ['no host', 'http://'],
  ['half a bracket', 'http://[::1'],
  ['no slashes', `http:${WHERE}`],
  ['backslashes', `http:\\\\${WHERE}\\`],
  ['blanks around it', ` http://${WHERE}/ `],
  ['a line break in it', `http://${WHERE}/\na`],
  ['percent signs of nothing', `http://${WHERE}/%zz?%`],
  ['a name that can be none', 'http://a..b/'],
  ['a fragment', `http://${WHERE}/#a`],
  ['a path', `http://${WHERE}/a`],
  ['an address as one number', 'http://2130706433:9/'],
  ['capitals', `HTTP://${WHERE}/`],
  ['its usual port', 'http://127.0.0.1:80'],
  ['another scheme', `ftp://${WHERE}/`],
];
const WEB = /^https?:\/\//;

/** What depends on what the place holds in the valid body. */
function ofValue(value: unknown): (readonly [string, unknown])[] {
  if (typeof value === 'string' && WEB.test(value)) return [...URLS];
  if (!Array.isArray(value) || value.length === 0) return [];
  const list = value as unknown[];
  return [
    ['a list of itself', [list]],
    ['itself beside a list of it', [...list, list]],
    ['a list of a list of itself', [[list]]],
    ['itself beside an empty list', [...list, []]],
    ['a list of an empty list', [[]]],
  ];
}

/** At the limits that its schema tells, and just past them. */
function atLimits({ maxLength, minLength, minimum, maximum, maxItems, items }: Schema): [string, unknown][] {
  const edges: [string, unknown][] = [];
  if (maxLength !== undefined) {
    edges.push(['longest', 'x'.repeat(maxLength)], ['one too long', 'x'.repeat(maxLength + 1)]);
    edges.push(['longest, in pairs', '😀'.repeat(Math.floor(maxLength / 2))]);
  }
  if (minLength) edges.push(['one too short', 'x'.repeat(minLength - 1)]);
  if (minimum !== undefined) edges.push(['least', minimum], ['under the least', minimum - 1]);
  if (maximum !== undefined) edges.push(['most', maximum], ['over the most', maximum + 1]);
  if (maxItems !== undefined && items)
    edges.push(['one too many', Array.from({ length: maxItems + 1 }, () => 'x')]);
  return edges;
}

/** The schema of a place, references followed. */
export type Resolve = (schema: Schema) => Schema;

interface Place {
  readonly path: Path;
  readonly schema: Schema;
  /** What is there in the valid body. */
  readonly value: unknown;
}

const edgesOf = ({ schema, value }: Place): (readonly [string, unknown])[] => [
  ...ANYWHERE,
  ...ofValue(value),
  ...atLimits(schema),
];

/** Every place of a value: the fields its schema knows, whether the value has them or not, and what it holds itself. */
function places(schema: Schema, value: unknown, resolve: Resolve, path: Path = []): Place[] {
  const known = resolve(schema);
  const found: Place[] = path.length > 0 ? [{ path, schema: known, value }] : [];
  if (Array.isArray(value)) {
    const [first] = value as unknown[];
    if (first !== undefined) found.push(...places(known.items ?? {}, first, resolve, [...path, 0]));
    return found;
  }
  const held = typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  for (const name of new Set([...Object.keys(known.properties ?? {}), ...Object.keys(held)]))
    found.push(...places(known.properties?.[name] ?? {}, held[name], resolve, [...path, name]));
  return found;
}

function changed(value: unknown, [step, ...rest]: Path, to: unknown): unknown {
  if (step === undefined) return to;
  if (Array.isArray(value)) {
    const copy = [...(value as unknown[])];
    if (to === ABSENT && rest.length === 0) copy.splice(Number(step), 1);
    else copy[Number(step)] = changed(copy[Number(step)], rest, to);
    return copy;
  }
  const copy: Record<string, unknown> = { ...(value as Record<string, unknown> | undefined) };
  if (to === ABSENT && rest.length === 0) delete copy[step];
  else copy[step] = changed(copy[step], rest, to);
  return copy;
}

/** Each place of a valid body at each of its edges, one at a time. */
export function mutations(schema: Schema, valid: unknown, resolve: Resolve): Mutation[] {
  return places(schema, valid, resolve).flatMap((place) =>
    edgesOf(place).map(([edge, to]) => ({
      label: `${place.path.join('.')}: ${edge}`,
      body: changed(valid, place.path, to),
    })),
  );
}

/** A few places of a valid body at edges together, chosen by `random`. */
export function mixture(schema: Schema, valid: unknown, resolve: Resolve, random: () => number): Mutation {
  const all = places(schema, valid, resolve);
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)]!;
  const labels: string[] = [];
  let body = valid;
  for (let count = 2 + Math.floor(random() * 3); count > 0 && all.length > 0; count -= 1) {
    const place = pick(all);
    const [edge, to] = pick(edgesOf(place));
    try {
      body = changed(body, place.path, to);
      labels.push(`${place.path.join('.')}: ${edge}`);
    } catch {
      // An earlier edge left no such place.
    }
  }
  return { label: labels.join(' + '), body };
}

/** A body that its schema allows, with every field it knows; `given` where the schema can't tell what is valid. */
export function validOf(schema: Schema, resolve: Resolve): unknown {
  const { example, default: usual, enum: choices, type, properties, oneOf, items, ...more } = resolve(schema);
  if (example !== undefined) return example;
  if (choices) return choices[0];
  if (usual !== undefined) return usual;
  if (properties) {
    return Object.fromEntries(
      Object.entries(properties).map(([name, property]) => [name, validOf(property, resolve)]),
    );
  }
  if (oneOf) return validOf(oneOf[0]!, resolve);
  switch (type) {
    case 'array':
      return items && Object.keys(items).length > 0 ? [validOf(items, resolve)] : [];
    case 'string':
      return more.format === 'date-time' ? '2099-01-01T00:00:00.000Z' : 'x'.repeat(more.minLength ?? 1);
    case 'number':
    case 'integer':
      return more.minimum ?? 1;
    case 'boolean':
      return false;
    default:
      return {};
  }
}

/** Bodies that are none, of any request. */
export const NO_BODIES: readonly (readonly [label: string, text: string])[] = [
  ['null', 'null'],
  ['a text', '"x"'],
  ['a number', '7'],
  ['a list', '[]'],
  ['a list of an object', '[{}]'],
  ['nothing of JSON', '{'],
  ['NUL', '\0'],
  ['an empty object', '{}'],
  ['__proto__', '{"__proto__":{"a":1}}'],
  ['constructor', '{"constructor":{"prototype":{"a":1}}}'],
  ['deep', `${'[{"a":'.repeat(DEEP)}1${'}]'.repeat(DEEP)}`],
  ['bytes that are not UTF-8', '"\ufffd"'],
];

/** What a part of a path may be. Each is as it travels. */
export const PATH_EDGES: readonly string[] = [
  '%00',
  'a%00b',
  '%ED%A0%80',
  '%FF',
  '%F0%9F%98%80',
  '%20',
  '%2e%2e',
  '%2F',
  '%25',
  '%',
  '%zz',
  '0',
  '-1',
  '1.5',
  '9223372036854775807',
  '9223372036854775808',
  '9'.repeat(40),
  'x',
  'x'.repeat(300),
  'x'.repeat(600),
  'null',
  'undefined',
  '__proto__',
  '%7B%7D',
];

/** What a parameter of a query may be, as it travels after its name. */
export const QUERY_EDGES: readonly string[] = [
  '',
  '=',
  '=%00',
  '=%ED%A0%80',
  '=%FF',
  '=%20',
  '=0',
  '=-1',
  '=1.5',
  '=1e3',
  '=1e400',
  '=9223372036854775808',
  `=${'9'.repeat(40)}`,
  '=null',
  '=true',
  '=x',
  `=${'x'.repeat(2_000)}`,
  '[]=1',
  '[a]=1',
  '[__proto__]=1',
  '=2024-13-45',
  '=%7B%22a%22%3A1%7D',
];

/** What a header may be: bytes as Node sends them, Latin-1. */
export const HEADER_EDGES: readonly string[] = [
  '',
  ' ',
  '0',
  'x',
  '\xff\xfe',
  '\xed\xa0\x80',
  'x'.repeat(129),
  'x'.repeat(5_000),
];
