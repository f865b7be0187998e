import { randomInt } from 'node:crypto';
import type { ChatMessage, ToolCall, ToolCallDelta } from './text-driver';

type Fields = Readonly<Record<string, unknown>>;

/** A call, or a piece of one, as loosely as providers send it. */
export interface RawToolCall {
  readonly index?: unknown;
  readonly id?: unknown;
  readonly type?: unknown;
  readonly function?: { readonly name?: unknown; readonly arguments?: unknown } | null;
}

/** What every provider takes as an id: Mistral asks for exactly nine letters and digits. */
const ID_CHARS = 9;
const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789';
/** OpenAI takes no longer ones. */
const MAX_ID_CHARS = 64;
const USABLE_ID = /^[\w.:-]+$/;
/** The fields of a call that are understood here; the others are carried. */
const KNOWN: ReadonlySet<string> = new Set(['index', 'id', 'type', 'function']);

interface Call {
  readonly index: number;
  readonly id: string;
  /** As the provider has it; empty until it says one. */
  rawId: string;
  name: string;
  args: string;
}

/**
 * Numbers the calls of one answer 0, 1, 2 … and names each once, whatever the provider's own numbers and ids are:
 * missing, all the same, from 1 or -1, as text, or beginning anew with every answer. A new id begins a call, and so does
 * a name after arguments that are complete. A provider's own id is kept where it is usable and unlike every other.
 */
export class CallNumbering {
  private readonly calls: Call[] = [];
  private readonly byRawIndex = new Map<number, Call>();
  private ids: Set<string> | undefined;

  /** `taken`: ids that the conversation already has; asked for when there is a call. */
  constructor(private readonly taken: () => Iterable<string> = () => []) {}

  /** The calls, or pieces of calls, of one event. `whole`: each of them is a call of its own. */
  read(raws: readonly unknown[], whole = false): ToolCallDelta[] {
    const seen = new Set<Call>();
    return raws.flatMap((raw) => {
      const delta = typeof raw === 'object' && raw !== null ? this.one(raw as Fields, seen, whole) : null;
      return delta ? [delta] : [];
    });
  }

  private one(raw: RawToolCall & Fields, seen: Set<Call>, whole: boolean): ToolCallDelta | null {
    const rawIndex = numberOf(raw.index);
    const rawId = textOf(raw.id);
    const name = textOf(raw.function?.name);
    const args = argumentsOf(raw.function?.arguments);
    const found = whole ? undefined : this.find(rawIndex, rawId, name, args, seen);
    // Arguments that belong to no call, as some send before or after all of them.
    if (!found && name === '' && rawId === '') return null;
    const call = found ?? this.begin(rawId);
    if (rawIndex !== undefined) this.byRawIndex.set(rawIndex, call);
    seen.add(call);
    const named = name !== '' && call.name === '';
    if (call.rawId === '') call.rawId = rawId;
    if (named) call.name = name;
    call.args += args;
    const extra = Object.entries(raw).filter(([field, value]) => !KNOWN.has(field) && value !== null);
    return {
      index: call.index,
      ...(!found && { id: call.id }),
      ...(named && { name }),
      arguments: args,
      ...(extra.length > 0 && { extra: Object.fromEntries(extra) }),
    };
  }

  /** The call that a piece goes on with; undefined: it begins one. */
  private find(
    rawIndex: number | undefined,
    rawId: string,
    name: string,
    args: string,
    seen: ReadonlySet<Call>,
  ): Call | undefined {
    const numbered = rawIndex === undefined ? undefined : this.byRawIndex.get(rawIndex);
    if (rawId !== '') {
      // An id that comes again with another number is another call: some give all of them the same.
      const same = this.calls.findLast(
        (call) =>
          call.rawId === rawId && (rawIndex === undefined || numbered === undefined || numbered === call),
      );
      if (same && !(rawIndex !== undefined && numbered === undefined)) return goesOn(same, name, args !== '');
      // It says its id later than its number or name.
      return numbered?.rawId === '' ? goesOn(numbered, name, true) : undefined;
    }
    if (rawIndex !== undefined) return numbered && goesOn(numbered, name, true);
    const last = this.calls.at(-1);
    // Two in one event, neither with a number nor with an id: the event is the list of them.
    if (name !== '' && last && seen.has(last)) return undefined;
    return last && goesOn(last, name, true);
  }

  private begin(rawId: string): Call {
    this.ids ??= new Set(this.taken());
    const usable = rawId !== '' && rawId.length <= MAX_ID_CHARS && USABLE_ID.test(rawId);
    let id = usable && !this.ids.has(rawId) ? rawId : newId();
    while (this.ids.has(id)) id = newId();
    this.ids.add(id);
    const call: Call = { index: this.calls.length, id, rawId, name: '', args: '' };
    this.calls.push(call);
    return call;
  }
}

/**
 * A name after complete arguments, or another name, is another call's. A call's own id may come with every piece, the
 * last one empty: under the same id only further arguments begin another one.
 */
function goesOn(call: Call, name: string, mayBegin: boolean): Call | undefined {
  if (name === '' || call.name === '') return call;
  if (name !== call.name) return undefined;
  return mayBegin && isComplete(call.args) ? undefined : call;
}

/** Whether no more of these arguments can come. */
function isComplete(args: string): boolean {
  if (!args.trimEnd().endsWith('}')) return false;
  try {
    JSON.parse(args);
    return true;
  } catch {
    return false;
  }
}

const newId = (): string =>
  Array.from({ length: ID_CHARS }, () => ALPHABET[randomInt(ALPHABET.length)]).join('');

const textOf = (value: unknown): string => (typeof value === 'string' ? value : '');

function numberOf(value: unknown): number | undefined {
  const number = typeof value === 'string' && value.trim() !== '' ? Number(value) : value;
  return Number.isSafeInteger(number) ? (number as number) : undefined;
}

/** Some send the arguments as an object. */
function argumentsOf(value: unknown): string {
  return typeof value === 'object' && value !== null ? JSON.stringify(value) : textOf(value);
}

/** The ids of all calls in a conversation. */
export function* callIdsOf(messages: readonly ChatMessage[]): Iterable<string> {
  for (const { tool_calls: calls } of messages) for (const { id } of calls ?? []) yield id;
}

/** Calls of tools that come bit by bit, put together. */
export class ToolCalls {
  private readonly calls = new Map<number, { id: string; name: string; text: string; extra: Fields }>();

  add(deltas: readonly ToolCallDelta[]): void {
    for (const { index, id, name, arguments: text, extra } of deltas) {
      const call = this.calls.get(index) ?? { id: '', name: '', text: '', extra: {} };
      this.calls.set(index, call);
      if (id) call.id = id;
      if (name) call.name = name;
      if (text) call.text += text;
      if (extra) call.extra = mergedFields(call.extra, extra);
    }
  }

  /** In the order of their index. */
  get all(): ToolCall[] {
    return [...this.calls.entries()]
      .sort(([a], [b]) => a - b)
      .map(([, { id, name, text, extra }]) => ({
        ...extra,
        id,
        type: 'function',
        function: { name, arguments: text },
      }));
  }
}

/** Fields that came bit by bit: texts and lists grow, of anything else the last one counts. */
export function mergedFields(before: Fields, more: Fields): Fields {
  const merged: Record<string, unknown> = { ...before };
  for (const [name, value] of Object.entries(more)) {
    const known = merged[name];
    if (typeof known === 'string' && typeof value === 'string') merged[name] = known + value;
    else if (Array.isArray(known) && Array.isArray(value))
      merged[name] = [...(known as unknown[]), ...(value as unknown[])];
    else merged[name] = value;
  }
  return merged;
}

/** A call as any provider takes it back: its arguments are a JSON object, whatever the model wrote. */
export function withValidArguments(call: ToolCall): ToolCall {
  const { name, arguments: text } = call.function;
  let value: unknown;
  try {
    value = text.trim() === '' ? {} : JSON.parse(text);
  } catch {
    value = undefined;
  }
  const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
  if (isObject && text.trim() !== '') return call;
  return { ...call, function: { name, arguments: isObject ? '{}' : JSON.stringify({ invalid: text }) } };
}
