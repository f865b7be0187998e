import { createHash } from 'node:crypto';
import { Body, Controller, HttpCode, Post, Req, Res } from '@nestjs/common';
import { ApiBody, ApiHeader, ApiOperation, ApiProduces, ApiSecurity, ApiTags } from '@nestjs/swagger';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { AppError, badInput, ERRORS, type ErrorCode, type MessageId, type Principal } from '../common';
import { Caller, idempotencyKeyOf, Scopes, toAppError, whileHeld } from '../common/http';
import type { BranchMessage } from '../messages';
import { Config } from '../config';
import { mergedFields, ToolCalls, type ChatMessage, type Flow, type TextSink } from '../model-services';
import { type SseStream, SseStreams, type StreamBatch, type StreamCursor, type StreamEnd } from '../realtime';
import { Completions, ReplyEngine, toolsOf } from '../replies';
import { answerRecord, ChunkFormat, DONE, replyChunks } from './chat-format';
import { parseChatRequest, type ChatRequest } from './chat-request';
import { openAiError, TURN_KEPT } from './errors';
import { asWritten, EventQueue } from './event-queue';
import { Models, type ChatModel } from './models';

/** What a client gets from the wire and what the engines are told of it. */
interface Call {
  readonly principal: Principal;
  readonly request: ChatRequest;
  readonly model: ChatModel;
  readonly http: FastifyRequest;
  readonly reply: FastifyReply;
}

type Fields = Readonly<Record<string, unknown>>;

const PIECES_A_TAKE = 256;
/** Of a kept conversation, as on the other wires. */
const MAX_TURN_CHARS = 32_000;

/** `POST /v1/chat/completions` (protocols/openai.md), with and without `/api`. */
@ApiTags('openai')
@ApiSecurity('bearer')
@Scopes('dialogue', 'models')
@Controller(['v1/chat', 'api/v1/chat'])
export class ChatController {
  constructor(
    private readonly models: Models,
    private readonly completions: Completions,
    private readonly replies: ReplyEngine,
    private readonly streams: SseStreams,
    private readonly config: Config,
  ) {}

  @Post('completions')
  @HttpCode(200)
  @ApiOperation({ summary: 'Chat completion of a model service, or of an agent' })
  @ApiHeader({ name: 'tenant-id', required: false })
  @ApiProduces('application/json', 'text/event-stream')
  @ApiBody({ schema: REQUEST_SCHEMA() })
  async create(
    @Caller() caller: Principal,
    @Body() body: unknown,
    @Req() http: FastifyRequest,
    @Res() reply: FastifyReply,
  ): Promise<void> {
    const request = parseChatRequest(body);
    const named = http.headers['user-id'] !== undefined;
    const principal = named || !request.user ? caller : { ...caller, userId: request.user };
    const model = await this.models.chat(principal, request.model);
    const call = { principal, request, model, http, reply };
    if (request.sessionId !== undefined) await this.converse(call, request.sessionId);
    else await this.complete(call);
  }

  // — nothing is kept —

  private async complete(call: Call): Promise<void> {
    const { principal, request, reply } = call;
    const { version, service } = call.model;
    const gone = new AbortController();
    reply.raw.once('close', () => gone.abort(new Error('the client left')));
    whileHeld(reply, (error) => gone.abort(error));
    const run = (id: MessageId, sink: TextSink, flow?: Flow) =>
      this.completions.run(
        {
          principal,
          id,
          service,
          assistantId: version?.assistantId ?? null,
          messages: version?.prompt
            ? [{ role: 'system', content: version.prompt }, ...request.messages]
            : request.messages,
          parameters: { ...service.parameters, ...version?.parameters, ...request.parameters },
          signal: gone.signal,
          ...(flow && { flow }),
          // A client that brings tools of its own runs its own loop.
          tools: version && !request.parameters.tools ? toolsOf(version) : null,
        },
        sink,
      );
    try {
      await (request.stream ? this.streamed(call, run, gone) : this.whole(call, run));
    } catch (error) {
      const left = gone.signal.aborted && error === gone.signal.reason && !(error instanceof AppError);
      if (!left) throw error;
    }
  }

  private async whole(
    { request, reply }: Call,
    run: (id: MessageId, sink: TextSink) => ReturnType<Completions['run']>,
  ): Promise<void> {
    const id = this.completions.newId();
    const calls = new ToolCalls();
    let text = '';
    let reasoning = '';
    let fields: Fields = {};
    const { finishReason, usage } = await run(id, {
      pieces: (pieces) => void (text += pieces.join('')),
      reasoning: (pieces) => void (reasoning += pieces.join('')),
      toolCalls: (deltas) => calls.add(deltas),
      fields: (more) => (fields = mergedFields(fields, more)),
    });
    const told = { text, reasoning, toolCalls: calls.all, fields, finishReason, usage };
    void reply.send(answerRecord({ ...identity(id, request), ...told }));
  }

  /** The head goes out with the first piece: until then a failure is an HTTP status. */
  private async streamed(
    { request, reply }: Call,
    run: (id: MessageId, sink: TextSink, flow: Flow) => ReturnType<Completions['run']>,
    gone: AbortController,
  ): Promise<void> {
    const id = this.completions.newId();
    const format = formatOf(id, request);
    const queue = new EventQueue(this.config.env.STREAM_MAX_BUFFERED_BYTES);
    const givenUp = (): string => {
      gone.abort(new Error('the client reads nothing'));
      return tooSlow();
    };
    let open = false;
    let stream: SseStream | undefined;
    whileHeld(reply, (error) => stream?.cutOff(failure(error)));
    const push = (events: string): void => {
      if (!open) {
        open = true;
        queue.push(format.first() + events);
        stream = this.streams.begin(reply, asWritten, givenUp);
        queue.wake = stream.pump;
        stream.attach(queue);
      } else queue.push(events);
    };
    try {
      const sink: TextSink = {
        pieces: (pieces) => push(format.pieces(pieces)),
        reasoning: (pieces) => push(format.reasoning(pieces)),
        toolCalls: (deltas) => push(format.toolCalls(deltas)),
        // Told already, as every provider's reasoning is.
        fields: ({ reasoning_content: _, ...fields }) => {
          if (Object.keys(fields).length > 0) push(format.fields(fields));
        },
      };
      const { finishReason, usage } = await run(id, sink, queue);
      push('');
      queue.end(format.end(finishReason, usage));
    } catch (error) {
      if (!open) throw error;
      queue.end(failure(toAppError(error)));
    }
  }

  // — a conversation that the server keeps —

  private async converse(call: Call, session: string): Promise<void> {
    const { principal, request, model, http } = call;
    const { version } = model;
    if (!version) throw badInput('sessionId', 'is for agents: a model service keeps no conversation');
    if (request.parameters.tools)
      throw badInput('tools', "can't be given with sessionId: an agent has its own");
    const { turn, history } = turnOf(request.messages);
    const { replyId } = await this.replies.start({
      principal,
      wire: 'openai',
      versionId: version.id,
      modelServiceId: null,
      dialogueId: null,
      parentId: null,
      content: turn,
      name: null,
      session,
      history,
      parameters: request.parameters,
      idempotency: idempotencyOf(http, principal, request, turn),
    });
    const reader = new Reader();
    const cursor = await this.replies.read(principal.tenantId, replyId, 0, reader.wake);
    if (!cursor) throw erased();
    if (request.stream) await this.streamReply(call, replyId, cursor, reader);
    else await this.wholeReply(call, replyId, cursor, reader);
  }

  private async wholeReply(
    { request, reply }: Call,
    id: MessageId,
    cursor: StreamCursor,
    reader: Reader,
  ): Promise<void> {
    let text = '';
    const left = leaving(reply);
    for (;;) {
      const batch = await Promise.race([reader.next(cursor), left]).catch((error: unknown) => {
        cursor.close();
        throw error;
      });
      if (batch === null) throw erased();
      // The reply goes on without its reader: it belongs to the conversation.
      if (!batch) break;
      text += batch.pieces.join('');
      if (!batch.end) continue;
      refuseFailed(batch.end);
      const answer = {
        text,
        reasoning: '',
        toolCalls: [],
        finishReason: batch.end.finishReason ?? 'stop',
        usage: batch.end,
      };
      void reply.send(answerRecord({ ...identity(id, request), ...answer }));
      break;
    }
    cursor.close();
  }

  private async streamReply(
    { request, reply }: Call,
    id: MessageId,
    cursor: StreamCursor,
    reader: Reader,
  ): Promise<void> {
    const chunks = formatOf(id, request);
    const format = replyChunks(chunks, (end) => {
      const failed = failureOf(end);
      return failed && failure(failed);
    });
    const left = leaving(reply);
    const first = await Promise.race([reader.next(cursor), left]).catch((error: unknown) => {
      cursor.close();
      throw error;
    });
    if (first === null) throw erased();
    if (!first) {
      cursor.close();
      return;
    }
    if (first.end && first.pieces.length === 0) refuseFailed(first.end);
    const stream = this.streams.begin(reply, format, tooSlow);
    reader.forward = stream.pump;
    whileHeld(reply, (error) => stream.cutOff(failure(error)));
    stream.event(chunks.first() + format(first));
    if (first.end) stream.finish();
    else stream.attach(cursor);
  }
}

/** Waits for what a cursor has next, until somebody else takes over its waking. */
class Reader {
  forward: (() => void) | undefined;
  private resolve: (() => void) | undefined;

  readonly wake = (): void => {
    this.resolve?.();
    this.forward?.();
  };

  /** Null: nothing will ever come. */
  async next(cursor: StreamCursor): Promise<StreamBatch | null> {
    for (;;) {
      const woken = new Promise<void>((resolve) => (this.resolve = resolve));
      const batch = cursor.take(PIECES_A_TAKE);
      if (batch || cursor.exhausted) return batch;
      await woken;
    }
  }
}

/** Resolves when the client leaves, rejects when its access ends. */
function leaving(reply: FastifyReply): Promise<void> {
  const left = new Promise<void>((resolve, reject) => {
    reply.raw.once('close', resolve);
    whileHeld(reply, reject);
  });
  // Nobody may be waiting for it any more.
  left.catch(() => undefined);
  return left;
}

const identity = (id: MessageId, { model }: ChatRequest) => ({
  id: `chatcmpl-${id}`,
  model,
  created: Math.floor(Date.now() / 1_000),
});

function formatOf(replyId: MessageId, request: ChatRequest): ChunkFormat {
  const { id, model, created } = identity(replyId, request);
  return new ChunkFormat(id, model, created, request.includeUsage);
}

/** An error in the middle of a stream; the SDKs raise it. */
function failure(error: AppError): string {
  return `data: ${JSON.stringify({ error: openAiError(error) })}\n\n${DONE}`;
}

/** What a client that reads nothing is told, in case it reads once more. */
const tooSlow = (): string => failure(new AppError('READ_TOO_SLOWLY'));

function refuseFailed(end: StreamEnd): void {
  const failed = failureOf(end);
  if (failed) throw failed;
}

/** What a client is told of a kept reply that came to no regular end; null: it did. */
function failureOf({ status, error }: StreamEnd): AppError | null {
  if (error) return statusError(error.code, error.message);
  return status === 'interrupted' ? statusError(503, 'The reply was interrupted.') : null;
}

function statusError(status: number, message: string): AppError {
  const [code] = (Object.entries(ERRORS) as [ErrorCode, { status: number }][]).find(
    ([, known]) => known.status === status,
  ) ?? ['INTERNAL'];
  return new AppError(code, {
    message,
    cause: TURN_KEPT,
    ...(status === 429 && { retryAfterSeconds: 5 }),
  });
}

function erased(): AppError {
  return new AppError('NOT_FOUND', { message: 'The reply has been erased.' });
}

/** The last message of the user is the turn; those before it are the history. */
function turnOf(messages: readonly ChatMessage[]): { turn: string; history: BranchMessage[] } {
  const last = messages.findLastIndex(({ role }) => role === 'user');
  if (last < 0) throw badInput('messages', 'must hold a message of the user');
  const turn = textOf(messages[last]!, `messages.${last}`);
  if (turn === '' || turn.length > MAX_TURN_CHARS) {
    throw badInput(`messages.${last}.content`, `must be 1 to ${MAX_TURN_CHARS} characters long`);
  }
  const history = messages.slice(0, last).flatMap((message, i): BranchMessage[] => {
    const { role } = message;
    // What tools did belongs to the client's own loop.
    if (role === 'tool' || (role === 'assistant' && message.content === null)) return [];
    return [{ role: role === 'developer' ? 'system' : role, content: textOf(message, `messages.${i}`) }];
  });
  return { turn, history };
}

function textOf({ content }: ChatMessage, field: string): string {
  if (typeof content === 'string') return content;
  return (content ?? [])
    .map(({ type, text }, i) => {
      if (type !== 'text')
        throw badInput(`${field}.content.${i}`, 'must be a text: a kept conversation holds no other parts');
      return text as string;
    })
    .join('\n');
}

function idempotencyOf(
  http: FastifyRequest,
  { userId }: Principal,
  { model, sessionId }: ChatRequest,
  turn: string,
) {
  const key = idempotencyKeyOf(http);
  if (key === null) return null;
  const same = JSON.stringify([userId, model, sessionId, turn]);
  return { key, requestHash: createHash('sha256').update(same).digest('hex') };
}

function REQUEST_SCHEMA() {
  return {
    type: 'object',
    required: ['model', 'messages'],
    properties: {
      model: { type: 'string', example: 'agent:main' },
      messages: {
        type: 'array',
        items: { type: 'object' },
        example: [{ role: 'user', content: 'Hello' }],
      },
      stream: { type: 'boolean' },
      stream_options: { type: 'object', properties: { include_usage: { type: 'boolean' } } },
      sessionId: {
        type: 'string',
        maxLength: 128,
        description: 'With an agent: the conversation is kept and remembered by the server.',
      },
      user: { type: 'string', maxLength: 128 },
    },
    additionalProperties: true,
  };
}
