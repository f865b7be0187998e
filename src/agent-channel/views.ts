import { randomUUID } from 'node:crypto';
import { inPieces, type MessageId } from '../common';
import type { PlacedAside, StreamBatch, StreamEnd } from '../realtime';
import { failureCode, type ChannelCode } from './errors';

export const EVENT_PROTOCOL = 'agent.events.v1';

/** A reply as its watchers are told of it. */
export interface ShownReply {
  readonly agentId: string;
  readonly sessionId: string;
  readonly messageId: MessageId;
  readonly requestId?: string;
  /** False: one whole `message` instead of pieces. */
  readonly stream: boolean;
  /** The piece after which something last happened beside the text, and how often it did: what its events are called. */
  readonly aside: { after: number; count: number };
}

export interface ChannelFailure {
  readonly agentId: string;
  readonly code: ChannelCode;
  readonly message: string;
  readonly sessionId?: string;
  readonly messageId?: MessageId;
  readonly requestId?: string;
}

/** How one dialect of the channel says what happens: texts of frames, in order. */
export interface View {
  /** True: wants to be told what happens beside the text. */
  readonly asides: boolean;
  begin(reply: ShownReply): string[];
  pieces(reply: ShownReply, batch: StreamBatch): string[];
  /** `text` is the whole reply, for those that get it as one. */
  end(reply: ShownReply, end: StreamEnd, offset: number, text: string): string[];
  greeting(agentId: string, sessionId: string, content: string): string;
  error(failure: ChannelFailure): string;
  status(status: string, about: { agentId: string; sessionId?: string; requestId?: string }): string | null;
  pong(requestId: string | undefined): string;
}

const usageOf = ({ promptTokens, completionTokens, totalTokens, credits }: StreamEnd) => ({
  promptTokens,
  completionTokens,
  totalTokens,
  credits,
});

/** `stream`, `message`, `error`, `pong`. */
export const plainView: View = {
  asides: false,
  begin: () => [],
  pieces: (reply, { offset, pieces }) => {
    if (!reply.stream) return [];
    // The parts that never change are made once a batch, not once a piece.
    const head = `{"type":"stream","agentId":${JSON.stringify(reply.agentId)},"content":`;
    const tail = `,${JSON.stringify(named(reply)).slice(1, -1)},"offset":`;
    let at = offset;
    return pieces.flatMap(inPieces).map((piece) => {
      const frame = `${head}${JSON.stringify(piece)},"done":false${tail}${at}}`;
      at += piece.length;
      return frame;
    });
  },
  end: (reply, end, offset, text) => {
    if (end.error) return [plainView.error(failureOf(reply, end.error))];
    const { agentId, stream } = reply;
    const type = stream ? 'stream' : 'message';
    const ending = { offset: stream ? offset : 0, status: end.status, usage: usageOf(end) };
    return [
      JSON.stringify({ type, agentId, content: stream ? '' : text, done: true, ...named(reply), ...ending }),
    ];
  },
  greeting: (agentId, sessionId, content) =>
    JSON.stringify({ type: 'message', agentId, content, done: true, sessionId }),
  error: (failure) => JSON.stringify({ type: 'error', ...failure }),
  status: () => null,
  pong: (requestId) => JSON.stringify({ type: 'pong', ...(requestId !== undefined && { requestId }) }),
};

/** `{"id","type","agentId","taskId","timestamp","payload"}`. */
function event(
  type: string,
  payload: object,
  about: { id?: string; agentId: string; taskId?: string; sessionId?: string; requestId?: string },
): string {
  const { id, agentId, taskId = null, ...rest } = about;
  return JSON.stringify({
    id: id ?? randomUUID(),
    type,
    agentId,
    taskId,
    timestamp: Date.now(),
    payload,
    ...rest,
  });
}

/** The same happenings as events, with thoughts and tools. A reply is a task. */
export const eventView: View = {
  asides: true,
  begin: (reply) => [event('status', { status: 'started' }, about(reply, 0))],
  pieces: (reply, { first, pieces, asides = [] }) => {
    const frames: string[] = [];
    let next = 0;
    const upTo = (place: number): void => {
      for (; next < asides.length && asides[next]!.after <= place; next += 1)
        frames.push(asideEvent(reply, asides[next]!));
    };
    upTo(first - 1);
    pieces.forEach((piece, i) => {
      if (reply.stream) {
        inPieces(piece).forEach((content, part) => {
          const number = part === 0 ? first + i : `${first + i}+${part}`;
          frames.push(event('text', { content }, about(reply, number)));
        });
      }
      upTo(first + i);
    });
    return frames;
  },
  end: (reply, end, _offset, text) => {
    if (end.error) {
      const { code, message } = failureOf(reply, end.error);
      return [event('error', { message, code }, about(reply, 'end'))];
    }
    return [
      ...(reply.stream ? [] : [event('text', { content: text }, about(reply, 1))]),
      event('done', { status: end.status, usage: usageOf(end) }, about(reply, 'end')),
    ];
  },
  greeting: (agentId, sessionId, content) => event('text', { content }, { agentId, sessionId }),
  error: ({ agentId, code, message, sessionId, requestId }) =>
    event(
      'error',
      { message, code },
      { agentId, ...(sessionId && { sessionId }), ...(requestId && { requestId }) },
    ),
  status: (status, told) => event('status', { status }, told),
  pong: (requestId) =>
    event('status', { status: 'pong' }, { agentId: '', ...(requestId !== undefined && { requestId }) }),
};

function asideEvent(reply: ShownReply, { after, aside }: PlacedAside): string {
  const last = reply.aside;
  if (last.after !== after) Object.assign(last, { after, count: 0 });
  last.count += 1;
  const told = about(reply, `${after}.${last.count}`);
  if (aside.type === 'think') return event('think', { content: aside.content }, told);
  if (aside.type === 'tool')
    return event('tool', { tool: aside.tool, args: aside.args, callId: aside.id }, told);
  const { tool, content, isError, id } = aside;
  return event('tool_result', { tool, content, isError, callId: id }, told);
}

function about({ agentId, sessionId, messageId, requestId }: ShownReply, number: number | string) {
  return {
    id: `${messageId}:${number}`,
    agentId,
    taskId: messageId,
    sessionId,
    ...(requestId !== undefined && { requestId }),
  };
}

function named({ sessionId, messageId, requestId }: ShownReply) {
  return { sessionId, messageId, ...(requestId !== undefined && { requestId }) };
}

function failureOf(reply: ShownReply, { code, message }: { code: number; message: string }) {
  return { agentId: reply.agentId, code: failureCode(code), message, ...named(reply) };
}
