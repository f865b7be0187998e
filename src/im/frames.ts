import { Ajv, type ErrorObject, type ValidateFunction } from 'ajv';
import {
  AppError,
  excessIn,
  hasUnusualNumbers,
  integerDigits,
  JSON_BOUNDS,
  parseExact,
  type JsonBounds,
} from '../common';
import { MAX_CLOCK_AHEAD_MS } from '../messages';

/** What a client may send (protocols/im.md, "Frames" and "The richer dialect"). */
export const MESSAGE_TYPES = ['single', 'group'] as const;
export const MEMBERSHIP_TYPES = ['join', 'leave'] as const;

type Id = string | number;

export interface MessageFrame {
  readonly type: 'single' | 'group';
  readonly source: Id;
  readonly target: Id;
  readonly msgType?: string;
  readonly msg: Readonly<Record<string, unknown>> & { readonly msgId?: Id; readonly timestamp?: Id };
  readonly extra?: unknown;
}
export interface MembershipFrame {
  readonly type: 'join' | 'leave';
  readonly source: Id;
  readonly target: Id;
  readonly msgType?: string;
  readonly msg?: Readonly<Record<string, unknown>>;
  readonly extra?: unknown;
}
export type RichFrame =
  | { readonly type: 'read' | 'recall'; readonly conversationId: string; readonly seq: number }
  | { readonly type: 'typing'; readonly target: Id; readonly kind: 'single' | 'group' }
  | { readonly type: 'sync'; readonly cursors: Readonly<Record<string, number>> }
  | { readonly type: 'watch'; readonly users: readonly Id[] };
export interface AckFrame {
  readonly type: 'ack';
  readonly conversationId: string;
  readonly seq: number;
}
export type ClientFrame = MessageFrame | MembershipFrame | RichFrame | AckFrame | { readonly type: 'ping' };

/** A frame that is not one: code 4000, the field named. */
export class BadFrame extends AppError {
  constructor(
    message: string,
    /** As far as it could be read, so that the client knows which of its messages is meant. */
    readonly msgId?: Id,
  ) {
    super('BAD_INPUT', { message });
  }
}

export const MAX_ID_CHARS = 128;
const MAX_SYNC = 500;
const MAX_WATCH = 200;

/** Longer ones would be longer ids than there are. */
const MAX_NUMERIC_ID = 1e127;

// What bounds strings says nothing of numbers. As alternatives (`oneOf`) the one that does not match would cost the
// error that nobody reads.
const id = {
  type: ['string', 'number'],
  minLength: 1,
  maxLength: MAX_ID_CHARS,
  pattern: '^[^\\u0000-\\u001f\\u007f\\ud800-\\udfff]+$',
} as const;
/** Of a user or a group: a number is an integer, and the same as its digits as a string. */
const party = {
  ...id,
  type: ['string', 'integer'],
  exclusiveMinimum: -MAX_NUMERIC_ID,
  exclusiveMaximum: MAX_NUMERIC_ID,
} as const;
const msgType = { type: 'string', minLength: 1, maxLength: 64 } as const;
const conversationId = { type: 'string', pattern: '^[1-9][0-9]{0,18}$' } as const;
const seq = { type: 'integer', minimum: 0, maximum: Number.MAX_SAFE_INTEGER } as const;
const timestamp = {
  type: ['string', 'integer'],
  pattern: '^[0-9]{1,15}$',
  minimum: 0,
  maximum: 999_999_999_999_999,
} as const;
const object = (properties: object, required: readonly string[]) => ({
  type: 'object',
  properties,
  required,
});

const packet = object({ msgId: id, timestamp }, []);

const message = object(
  {
    source: party,
    target: party,
    msgType,
    msg: packet,
  },
  ['source', 'target', 'msg'],
);
const membership = object({ source: party, target: party, msgType, msg: packet }, ['source', 'target']);
const place = object({ conversationId, seq }, ['conversationId', 'seq']);

const ajv = new Ajv({ strict: false, allErrors: false });
/** JSON Schema of what a client may send, by its `type`. */
export const FRAME_SCHEMAS: Readonly<Record<ClientFrame['type'], object>> = {
  single: message,
  group: message,
  join: membership,
  leave: membership,
  ping: { type: 'object' },
  ack: place,
  read: place,
  recall: place,
  typing: object({ target: party, kind: { enum: ['single', 'group'] } }, ['target', 'kind']),
  sync: object({ cursors: { type: 'object', maxProperties: MAX_SYNC, additionalProperties: seq } }, [
    'cursors',
  ]),
  watch: object({ users: { type: 'array', maxItems: MAX_WATCH, items: party } }, ['users']),
};
const VALIDATORS = Object.fromEntries(
  Object.entries(FRAME_SCHEMAS).map(([type, schema]) => [type, ajv.compile(schema)]),
) as Readonly<Record<ClientFrame['type'], ValidateFunction>>;
const LOGGED_TYPES: ReadonlySet<string> = new Set([...MESSAGE_TYPES, ...MEMBERSHIP_TYPES]);
const PLAIN_TYPES: ReadonlySet<string> = new Set([...LOGGED_TYPES, 'ping']);

/** An escaped NUL; an escaped backslash before the `u` is just text. */
const NUL = /(?<!\\)(?:\\\\)*\\u0000/;

export interface ParsedFrame {
  readonly frame: ClientFrame;
  /** The stored form of what goes into a log (see {@link canonical}), else empty. */
  readonly text: string;
}

/** A checked frame; numbers that would lose digits are kept as they were written. Throws BadFrame. */
export function parseFrame(text: string, rich: boolean, bounds: JsonBounds = JSON_BOUNDS): ParsedFrame {
  let frame: Record<string, unknown>;
  try {
    frame = JSON.parse(text) as Record<string, unknown>;
  } catch {
    throw new BadFrame('The frame is not valid JSON.');
  }
  if (typeof frame !== 'object' || frame === null || Array.isArray(frame)) {
    throw new BadFrame('The frame is not a JSON object.');
  }
  const { type } = frame;
  const schema =
    typeof type === 'string' && Object.hasOwn(VALIDATORS, type) && (rich || PLAIN_TYPES.has(type))
      ? VALIDATORS[type as ClientFrame['type']]
      : undefined;
  const said = msgIdOf(frame);
  if (!schema) {
    const known = rich ? Object.keys(VALIDATORS) : [...PLAIN_TYPES];
    throw new BadFrame(`type: must be one of ${known.join(', ')}`, said);
  }
  if (!schema(frame)) throw new BadFrame(explain(schema.errors?.[0]), said);
  if (text.includes('\\u0000') && NUL.test(text)) throw new BadFrame('The frame must not contain NUL.', said);
  // Before anything walks through what the schema lets through as it is.
  const excess = excessIn(text, bounds);
  if (excess !== null) throw new BadFrame(`The frame ${excess}.`, said);
  if (!LOGGED_TYPES.has(type as string)) {
    const ids = (type === 'typing' || type === 'watch') && hasUnusualNumbers(text);
    if (!ids) return { frame: frame as unknown as ClientFrame, text: '' };
    const exact = parseExact(text) as unknown as Extract<RichFrame, { type: 'typing' | 'watch' }>;
    checkParties(exact.type === 'typing' ? { target: exact.target } : exact.users, said);
    return { frame: exact, text: '' };
  }
  const logged = frame as unknown as MessageFrame;
  const plain = canonical(logged);
  // What comes out as it came in has lost nothing, and most frames do: they are not searched for unusual numbers.
  if (plain === text || !hasUnusualNumbers(text)) return { frame: logged, text: plain };
  const exact = parseExact(text) as unknown as MessageFrame;
  checkParties({ source: exact.source, target: exact.target }, said);
  return { frame: exact, text: canonical(exact) };
}

/** By all their digits: rounded, `9007199254740992.5` looks like an integer. */
function checkParties(parties: Readonly<Record<string, Id>> | readonly Id[], said: Id | undefined): void {
  for (const [field, value] of Object.entries<Id>(parties as Record<string, Id>)) {
    if (!isPartyId(value))
      throw new BadFrame(`${Array.isArray(parties) ? `users.${field}` : field}: ${PARTY}`, said);
  }
}

/** Of what has passed the schema. */
export function isPartyId(id: Id | object): boolean {
  return typeof id === 'string' || integerDigits(numberText(id), MAX_ID_CHARS) !== null;
}

function msgIdOf(frame: Record<string, unknown>): Id | undefined {
  const { msg } = frame;
  if (typeof msg !== 'object' || msg === null) return undefined;
  const { msgId } = msg as Record<string, unknown>;
  return typeof msgId === 'number' || (typeof msgId === 'string' && msgId.length <= MAX_ID_CHARS)
    ? msgId
    : undefined;
}

const ID_TEXT = `a string of 1 to ${MAX_ID_CHARS} characters, none of them a control character or half a surrogate pair`;
const PARTY = `must be an integer of at most ${MAX_ID_CHARS - 1} digits or ${ID_TEXT}`;

function explain(error: ErrorObject | undefined): string {
  if (!error) return 'The frame is not valid.';
  const path = error.instancePath.slice(1).replaceAll('/', '.');
  if (error.keyword === 'required') {
    const { missingProperty } = error.params as { missingProperty: string };
    return `${path ? `${path}.` : ''}${missingProperty}: is missing`;
  }
  // Of an id's two alternatives the last one's failure would be told: say what both are.
  const field = path || 'The frame';
  if (/(^|\.)(source|target|users\.\d+)$/.test(path)) return `${field}: ${PARTY}`;
  if (/(^|\.)msgId$/.test(path)) return `${field}: must be a number or ${ID_TEXT}`;
  if (path.endsWith('timestamp')) return `${field}: must be an integer or a string of up to 15 digits`;
  return `${field}: ${error.message ?? 'is not valid'}`;
}

/** An id as text: `1`, `1.0` and `"1"` are the same. */
export function idText(id: Id | object): string {
  if (typeof id === 'string') return id;
  if (typeof id === 'number' && Number.isSafeInteger(id)) return String(id);
  const text = numberText(id);
  return integerDigits(text, MAX_ID_CHARS) ?? text;
}

/** A raw number (see `keepSource`) is its text as it was written. */
function numberText(number: number | object): string {
  return typeof number === 'number' ? String(number) : JSON.stringify(number);
}

/** The stored form: what the protocol knows of a frame, in a fixed order. */
export function canonical({
  type,
  source,
  target,
  msgType,
  msg,
  extra,
}: MessageFrame | MembershipFrame): string {
  return JSON.stringify({ type, source, target, msgType, msg, extra });
}

/** The key under which the same message, sent again, is known; null when the sender gave it no `msgId`. */
export function dedupeKey(sender: string, { msgId, timestamp }: MessageFrame['msg']): string | null {
  if (msgId === undefined) return null;
  return `${sender}\n${idText(msgId)}\n${timestamp === undefined ? '' : digits(timestamp)}`;
}

const MS_FROM = 100_000_000_000;

/** The sender's clock in epoch ms; null when it said none. Throws BadFrame when it is more than 30 days ahead. */
export function clientTime({ timestamp, msgId }: MessageFrame['msg'], now: number): number | null {
  if (timestamp === undefined) return null;
  const value = Number(idText(timestamp));
  // Seconds until the year 5138, milliseconds since 1973.
  const ms = value < MS_FROM ? value * 1_000 : value;
  if (ms > now + MAX_CLOCK_AHEAD_MS) {
    throw new BadFrame('msg.timestamp: is more than 30 days ahead of the server’s clock', msgId);
  }
  return ms;
}

function digits(timestamp: Id): string {
  const text = idText(timestamp);
  return text.startsWith('0') ? text.replace(/^0+(?=\d)/, '') : text;
}
