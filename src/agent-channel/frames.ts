import { Ajv } from 'ajv';
import { excessIn, JSON_BOUNDS, type JsonBounds } from '../common';

/** What a client sends (protocols/agent-channel.md, "Client → server"). Fields it does not know are ignored. */
export type ClientFrame = ChatFrame | PingFrame | SubscribeFrame | CancelFrame | ResumeFrame;

interface Common {
  readonly requestId?: string;
}
export interface ChatFrame extends Common {
  readonly type: 'chat';
  readonly agentId?: string;
  readonly sessionId?: string;
  readonly message: string;
  readonly stream?: boolean;
  readonly modelServiceId?: string | number;
}
export interface PingFrame extends Common {
  readonly type: 'ping';
}
export interface SubscribeFrame extends Common {
  readonly type: 'subscribe';
  readonly agentId?: string;
  readonly sessionId?: string;
}
export interface CancelFrame extends Common {
  readonly type: 'cancel';
  readonly agentId?: string;
  readonly sessionId?: string;
}
export interface ResumeFrame extends Common {
  readonly type: 'resume';
  readonly agentId?: string;
  readonly sessionId?: string;
  readonly messageId: string | number;
  readonly offset?: number;
}

export const MAX_MESSAGE_CHARS = 32_000;
const MAX_SESSION_CHARS = 128;

const text = (...units: [min: number, max: number]) => ({ type: 'string', units });
/** Half of a surrogate pair would be stored as U+FFFD: two names would be one. */
const name = (...units: [min: number, max: number]) => ({ ...text(...units), wellFormed: true });
const id = {
  anyOf: [
    { type: 'string', pattern: '^\\d{1,19}$' },
    { type: 'integer', minimum: 0 },
  ],
};
const session = { agentId: name(1, 128), sessionId: name(1, MAX_SESSION_CHARS), requestId: name(0, 128) };
/** JSON Schema of what a client may send, by its `type`. */
export const FRAME_SCHEMAS: Readonly<Record<ClientFrame['type'], object>> = {
  chat: {
    type: 'object',
    required: ['message'],
    properties: {
      ...session,
      message: text(1, MAX_MESSAGE_CHARS),
      stream: { type: 'boolean' },
      modelServiceId: id,
    },
  },
  ping: { type: 'object', properties: { requestId: session.requestId } },
  subscribe: { type: 'object', properties: session },
  cancel: { type: 'object', properties: session },
  resume: {
    type: 'object',
    required: ['messageId'],
    properties: { ...session, messageId: id, offset: { type: 'integer', minimum: 0 } },
  },
};

/** JSON Schema's own lengths count whole characters; text is measured in UTF-16 units, as on every wire. */
const ajv = new Ajv()
  .addKeyword({
    keyword: 'wellFormed',
    type: 'string',
    schemaType: 'boolean',
    validate: function wellFormed(_: boolean, value: string) {
      return value.isWellFormed();
    },
    error: { message: 'must not contain half of a surrogate pair' },
  })
  .addKeyword({
    keyword: 'units',
    type: 'string',
    validate: function units([min, max]: [number, number], value: string) {
      return value.length >= min && value.length <= max;
    },
    error: { message: ({ schema }) => `must have ${(schema as number[]).join(' to ')} characters` },
  });
const validators = new Map(
  Object.entries(FRAME_SCHEMAS).map(([type, schema]) => [type, ajv.compile(schema)]),
);

/** A frame that is not one of these; `requestId` where it could be read. */
export class BadFrame extends Error {
  constructor(
    message: string,
    readonly requestId?: string,
  ) {
    super(message);
  }
}

/** Throws BadFrame, whose message names the field. */
export function parseFrame(data: string, bounds: JsonBounds = JSON_BOUNDS): ClientFrame {
  let frame: unknown;
  try {
    frame = JSON.parse(data);
  } catch {
    throw new BadFrame('the frame is not valid JSON');
  }
  if (typeof frame !== 'object' || frame === null || Array.isArray(frame)) {
    throw new BadFrame('the frame is not a JSON object');
  }
  const given = frame as Record<string, unknown>;
  const requestId =
    typeof given.requestId === 'string' && given.requestId.length <= 128 ? given.requestId : undefined;
  const excess = excessIn(data, bounds);
  if (excess !== null) throw new BadFrame(`the frame ${excess}`, requestId);
  const validate = validators.get(given.type as string);
  if (!validate) throw new BadFrame(`type: must be one of ${[...validators.keys()].join(', ')}`, requestId);
  for (const key of ['agentId', 'sessionId', 'requestId', 'modelServiceId'])
    if (given[key] === null) delete given[key];
  if (!validate(frame)) {
    const [error] = validate.errors ?? [];
    const field =
      error?.instancePath.slice(1) || (error?.params as { missingProperty?: string }).missingProperty;
    throw new BadFrame(
      `${field}: ${error?.keyword === 'required' ? 'is required' : error?.message}`,
      requestId,
    );
  }
  const nul = Object.entries(given).find(([, value]) => typeof value === 'string' && value.includes('\0'));
  if (nul) throw new BadFrame(`${nul[0]}: must not contain NUL`, requestId);
  return frame as ClientFrame;
}
