import { badInput } from '../common';
import type { ChatMessage, ContentPart, ToolCall } from '../model-services';

/** The body of `POST /v1/chat/completions`, checked. */
export interface ChatRequest {
  readonly model: string;
  readonly messages: readonly ChatMessage[];
  readonly stream: boolean;
  readonly includeUsage: boolean;
  readonly user: string | undefined;
  /** **Parley**: the conversation with an agent is kept and remembered under this name. */
  readonly sessionId: string | undefined;
  /** Everything else that is passed on to the provider. */
  readonly parameters: Readonly<Record<string, unknown>>;
}

type Json = Readonly<Record<string, unknown>>;

const MAX_MESSAGES = 2_048;
const MAX_PARTS = 256;
const MAX_TOOLS = 128;
const MAX_TOOL_CALLS = 128;
const MAX_STOPS = 4;
const MAX_NAME_CHARS = 256;
const MAX_USER_CHARS = 128;
const MAX_SESSION_CHARS = 128;
const MAX_TEXT_CHARS = 4_194_304;
/** Of a name, at the end of what is wrong of it. */
const WHOLE = ', without NUL or half of a surrogate pair';
const ROLES = ['system', 'developer', 'user', 'assistant', 'tool'] as const;

/** A number in a range, or absent; `null` counts as absent everywhere, as some clients send it. */
const number =
  (min: number, max: number, whole = false) =>
  (value: unknown): string | null =>
    typeof value === 'number' && value >= min && value <= max && (!whole || Number.isInteger(value))
      ? null
      : `must be a ${whole ? 'whole ' : ''}number from ${min} to ${max}`;
const choice =
  (...values: string[]) =>
  (value: unknown): string | null =>
    values.includes(value as string) ? null : `must be one of ${values.join(', ')}`;
const object = (value: unknown): string | null => (isObject(value) ? null : 'must be an object');

/** Passed on as they are. */
const PARAMETERS: Readonly<Record<string, (value: unknown) => string | null>> = {
  temperature: number(0, 2),
  top_p: number(0, 1),
  presence_penalty: number(-2, 2),
  frequency_penalty: number(-2, 2),
  max_tokens: number(1, 10_000_000, true),
  max_completion_tokens: number(1, 10_000_000, true),
  seed: number(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER, true),
  stop: (value) => {
    const stops = Array.isArray(value) ? (value as unknown[]) : [value];
    return stops.length <= MAX_STOPS && stops.every((stop) => isText(stop, 1, 1_000))
      ? null
      : `must be a text or a list of at most ${MAX_STOPS}`;
  },
  tools: (value) =>
    Array.isArray(value) && value.length <= MAX_TOOLS && value.every(isTool)
      ? null
      : `must be a list of at most ${MAX_TOOLS} functions with a name`,
  tool_choice: (value) => (isObject(value) ? null : choice('none', 'auto', 'required')(value)),
  parallel_tool_calls: (value) => (typeof value === 'boolean' ? null : 'must be true or false'),
  response_format: (value) =>
    isObject(value) && isText(value.type, 1, 64) ? null : 'must be an object with a type',
  reasoning_effort: (value) => (isText(value, 1, 32) ? null : 'must be a text'),
  verbosity: choice('low', 'medium', 'high'),
  logit_bias: object,
};

/** Throws BAD_INPUT with the field that is wrong. Fields it does not know are ignored. */
export function parseChatRequest(body: unknown): ChatRequest {
  if (!isObject(body)) throw badInput('body', 'must be a JSON object');
  const { model, messages, stream, stream_options: options, user, sessionId, n } = body;
  if (!isName(model, 1, MAX_NAME_CHARS))
    throw badInput('model', `must be a text of 1 to ${MAX_NAME_CHARS} characters${WHOLE}`);
  if (!Array.isArray(messages) || messages.length === 0 || messages.length > MAX_MESSAGES) {
    throw badInput('messages', `must be a list of 1 to ${MAX_MESSAGES} messages`);
  }
  if (given(stream) && typeof stream !== 'boolean') throw badInput('stream', 'must be true or false');
  if (given(options) && !isObject(options)) throw badInput('stream_options', 'must be an object');
  if (given(n) && n !== 1) throw badInput('n', 'must be 1: one answer a request');
  if (given(user) && !isName(user, 0, MAX_USER_CHARS)) {
    throw badInput('user', `must be a text of at most ${MAX_USER_CHARS} characters${WHOLE}`);
  }
  if (given(sessionId) && !isName(sessionId, 1, MAX_SESSION_CHARS)) {
    throw badInput('sessionId', `must be a text of 1 to ${MAX_SESSION_CHARS} characters${WHOLE}`);
  }
  const parameters: Record<string, unknown> = {};
  for (const [name, check] of Object.entries(PARAMETERS)) {
    const value = body[name];
    if (!given(value)) continue;
    const wrong = check(value);
    if (wrong) throw badInput(name, wrong);
    parameters[name] = value;
  }
  // An empty list is none; some providers refuse it, and `parallel_tool_calls` without tools.
  if (isEmpty(parameters.tools)) delete parameters.tools;
  return {
    model,
    messages: messages.map((message, i) => parseMessage(message, `messages.${i}`)),
    stream: stream === true,
    includeUsage: isObject(options) && options.include_usage === true,
    user: (user as string | null | undefined) || undefined,
    sessionId: (sessionId as string | null | undefined) ?? undefined,
    parameters,
  };
}

/** Understood here, and not carried with a message or a call: `refusal` and `audio` are answers' own. */
const OF_MESSAGE: ReadonlySet<string> = new Set([
  ...['role', 'content', 'name', 'tool_calls', 'tool_call_id', 'refusal', 'audio', 'annotations'],
]);
const OF_CALL: ReadonlySet<string> = new Set(['id', 'type', 'function', 'index']);
const MAX_CARRIED = 32;

/** What only the provider understands and may want back. */
function carried(value: Json, known: ReadonlySet<string>, field: string): Json {
  const fields = Object.entries(value).filter(([name, one]) => !known.has(name) && given(one));
  if (fields.length > MAX_CARRIED)
    throw badInput(field, `must have at most ${MAX_CARRIED} fields of its own`);
  for (const [name, one] of fields) if (typeof one === 'string') checked(one, `${field}.${name}`);
  return Object.fromEntries(fields);
}

const isEmpty = (value: unknown): boolean => Array.isArray(value) && value.length === 0;

function parseMessage(value: unknown, field: string): ChatMessage {
  if (!isObject(value)) throw badInput(field, 'must be an object');
  const { role, content, name, tool_calls: calls, tool_call_id: callId } = value;
  if (!isRole(role)) throw badInput(`${field}.role`, `must be one of ${ROLES.join(', ')}`);
  const mayBeEmpty = role === 'assistant' && Array.isArray(calls) && !isEmpty(calls);
  if (!given(content) && !mayBeEmpty) throw badInput(`${field}.content`, 'is required');
  if (given(name) && !isText(name, 1, MAX_NAME_CHARS)) throw badInput(`${field}.name`, 'must be a text');
  if (role === 'tool' && !isText(callId, 1, MAX_NAME_CHARS)) {
    throw badInput(`${field}.tool_call_id`, 'is required: the id of the call that this answers');
  }
  return {
    ...carried(value, OF_MESSAGE, field),
    role,
    ...(given(content) ? { content: parseContent(content, `${field}.content`) } : { content: null }),
    ...(given(name) && { name: name as string }),
    ...(role === 'tool' && { tool_call_id: callId as string }),
    ...(mayBeEmpty && { tool_calls: parseCalls(calls as unknown[], `${field}.tool_calls`) }),
  };
}

function parseContent(content: unknown, field: string): string | ContentPart[] {
  if (typeof content === 'string') return checked(content, field);
  if (!Array.isArray(content) || content.length === 0 || content.length > MAX_PARTS) {
    throw badInput(field, `must be a text or a list of 1 to ${MAX_PARTS} parts`);
  }
  return content.map((part: unknown, i) => {
    const at = `${field}.${i}`;
    if (!isObject(part) || !isText(part.type, 1, 64)) throw badInput(at, 'must be an object with a type');
    if (part.type === 'text') {
      if (typeof part.text !== 'string') throw badInput(`${at}.text`, 'must be a text');
      return { type: 'text', text: checked(part.text, `${at}.text`) };
    }
    if (
      part.type === 'image_url' &&
      !(isObject(part.image_url) && isText(part.image_url.url, 1, MAX_TEXT_CHARS))
    ) {
      throw badInput(`${at}.image_url.url`, 'must be a text');
    }
    return part as ContentPart;
  });
}

function parseCalls(calls: unknown[], field: string): ToolCall[] {
  if (calls.length > MAX_TOOL_CALLS) throw badInput(field, `must be at most ${MAX_TOOL_CALLS}`);
  return calls.map((call, i) => {
    const called = isObject(call) && isObject(call.function) ? call.function : null;
    if (!called || !isText((call as Json).id, 1, MAX_NAME_CHARS) || !isText(called.name, 1, MAX_NAME_CHARS)) {
      throw badInput(`${field}.${i}`, 'must have an id and a function with a name');
    }
    if (!isText(called.arguments, 0, MAX_TEXT_CHARS))
      throw badInput(`${field}.${i}.function.arguments`, 'must be a text');
    return {
      ...carried(call as Json, OF_CALL, `${field}.${i}`),
      id: (call as Json).id as string,
      type: 'function',
      function: { name: called.name, arguments: called.arguments },
    };
  });
}

/** What a provider or Postgres could not take as it is. */
function checked(text: string, field: string): string {
  if (text.includes('\0')) throw badInput(field, 'must not contain NUL');
  return text.isWellFormed() ? text : text.toWellFormed();
}

function isTool(tool: unknown): boolean {
  return (
    isObject(tool) && tool.type === 'function' && isObject(tool.function) && isText(tool.function.name, 1, 64)
  );
}

function isRole(role: unknown): role is ChatMessage['role'] {
  return (ROLES as readonly unknown[]).includes(role);
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isText(value: unknown, min: number, max: number): value is string {
  return typeof value === 'string' && value.length >= min && value.length <= max && !value.includes('\0');
}

/** A text that is stored or looked for under itself: half of a surrogate pair would become U+FFFD, and two names one. */
function isName(value: unknown, min: number, max: number): value is string {
  return isText(value, min, max) && value.isWellFormed();
}

function given(value: unknown): boolean {
  return value !== undefined && value !== null;
}
