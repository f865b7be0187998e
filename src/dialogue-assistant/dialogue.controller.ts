import { createHash } from 'node:crypto';
import { Body, Get, Headers, HttpCode, Param, Post, Query, Req, Res, UsePipes } from '@nestjs/common';
import { ApiHeader, ApiOperation, ApiProduces } from '@nestjs/swagger';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { AssistantsRepository } from '../assistants';
import {
  AppError,
  badInput,
  truncate,
  type AssistantId,
  type AssistantVersionId,
  type DialogueId,
  type MessageId,
  type ModelServiceId,
  type Principal,
} from '../common';
import { Caller, idempotencyKeyOf, validation, whileHeld } from '../common/http';
import { DialoguesRepository, type StoredReply } from '../messages';
import { SseStreams } from '../realtime';
import { ReplyEngine, type StartedReply } from '../replies';
import { list, success } from './envelope';
import { pageOf } from './paging';
import { dialogueRecord, dialogueRow, messageRow, replyRecord, sceneRecord } from './records';
import { firstEvent, lostEvent, replyFormat } from './reply-events';
import { known, PROVIDER_RATE_RETRY_SECONDS, PlatformController } from './request-parts';
import { DialogueListQuery, ListQuery, MAX_CONTENT_CHARS, SendMessage } from './requests';

const DIALOGUES = {
  pageSize: 10,
  columns: { updateTime: 'updatedAt', createTime: 'createdAt', name: 'name' },
  orderBy: 'updatedAt',
  descending: true,
} as const;
const MAX_NAME_CHARS = 200;
const MESSAGES = {
  pageSize: 200,
  columns: { id: 'id', createTime: 'createdAt' },
  orderBy: 'id',
  descending: false,
} as const;

/** The dialogue endpoints of protocols/assistant-platform.md, with and without `/api`. */
@UsePipes(validation('ignored'))
@PlatformController()
export class DialogueController {
  constructor(
    private readonly replies: ReplyEngine,
    private readonly dialogues: DialoguesRepository,
    private readonly assistants: AssistantsRepository,
    private readonly streams: SseStreams,
  ) {}

  @Post('dialogue/sse/send-message')
  @HttpCode(200)
  @ApiOperation({ summary: 'Stream a dialogue without an assistant' })
  @ApiHeader({ name: 'Idempotency-Key', required: false })
  @ApiProduces('text/event-stream', 'application/json')
  sendWithoutAssistant(
    @Caller() principal: Principal,
    @Body() body: SendMessage,
    @Req() request: FastifyRequest,
    @Res() reply: FastifyReply,
  ): Promise<void> {
    return this.send(principal, null, body, request, reply);
  }

  @Post('dialogue/sse/send-message/:id')
  @HttpCode(200)
  @ApiOperation({ summary: 'Stream a dialogue with an assistant; id is an assistant version' })
  @ApiHeader({ name: 'Idempotency-Key', required: false })
  @ApiProduces('text/event-stream', 'application/json')
  sendToAssistant(
    @Caller() principal: Principal,
    @Param('id') id: string,
    @Body() body: SendMessage,
    @Req() request: FastifyRequest,
    @Res() reply: FastifyReply,
  ): Promise<void> {
    return this.send(principal, known<AssistantVersionId>(id), body, request, reply);
  }

  @Get('dialogue/sse/resume/:messageId')
  @ApiOperation({ summary: 'Re-attach to a reply, after the event named by Last-Event-ID' })
  @ApiHeader({ name: 'Last-Event-ID', required: false })
  @ApiProduces('text/event-stream')
  async resume(
    @Caller() { tenantId }: Principal,
    @Param('messageId') id: string,
    @Headers('last-event-id') lastEventId: string | undefined,
    @Res() reply: FastifyReply,
  ): Promise<void> {
    const replyId = known<MessageId>(id);
    const after = lastEventId ? placeOf(lastEventId, replyId) : null;
    const stored = await this.dialogues.findReply(tenantId, replyId);
    if (!stored) throw new AppError('NOT_FOUND');
    await this.stream(stored.dialogue, stored.message, replyId, after, reply);
  }

  @Get('dialogue/sse/close/:userDialogueId')
  @ApiOperation({ summary: 'Close a dialogue; a reply in progress ends as stopped' })
  async close(@Caller() principal: Principal, @Param('userDialogueId') id: string) {
    const dialogueId = known<DialogueId>(id);
    if (!(await this.replies.close(principal, dialogueId))) throw new AppError('NOT_FOUND');
    const dialogue = await this.dialogues.findDialogue(principal.tenantId, dialogueId);
    if (!dialogue) throw new AppError('NOT_FOUND');
    return success(dialogueRow(dialogue));
  }

  @Get('dialogue/list')
  @ApiOperation({ summary: 'Dialogues held with an assistant' })
  async listDialogues(@Caller() { tenantId, userId }: Principal, @Query() query: DialogueListQuery) {
    const { total, rows } = await this.dialogues.listDialogues(tenantId, {
      ...pageOf(query, DIALOGUES),
      ...(query.manageId && { assistantId: query.manageId as AssistantId }),
      ...(query.isUser === 'true' && { userId }),
    });
    return list(total, rows.map(dialogueRow));
  }

  @Get('message/list/:userDialogueId')
  @ApiOperation({ summary: 'Messages of a dialogue, every branch of it' })
  async listMessages(
    @Caller() { tenantId }: Principal,
    @Param('userDialogueId') id: string,
    @Query() query: ListQuery,
  ) {
    const page = await this.dialogues.listMessages(tenantId, known(id), pageOf(query, MESSAGES));
    if (!page) throw new AppError('NOT_FOUND');
    return list(page.total, page.rows.map(messageRow));
  }

  @Get('scene/user/:id')
  @ApiOperation({ summary: 'An assistant by its version id' })
  async scene(@Caller() { tenantId }: Principal, @Param('id') id: string) {
    const version = await this.assistants.findVersion(tenantId, known(id));
    if (!version) throw new AppError('NOT_FOUND');
    return success(sceneRecord(version));
  }

  private async send(
    principal: Principal,
    versionId: AssistantVersionId | null,
    body: SendMessage,
    request: FastifyRequest,
    reply: FastifyReply,
  ): Promise<void> {
    const { content, parentId } = body.speechUserDialogueMessage;
    if (content.length < 1 || content.length > MAX_CONTENT_CHARS) {
      throw badInput(
        'speechUserDialogueMessage.content',
        `must be 1 to ${MAX_CONTENT_CHARS} characters long`,
      );
    }
    const started = await this.replies
      .start({
        principal,
        versionId,
        content,
        modelServiceId: (body.modelServiceId as ModelServiceId | undefined) ?? null,
        dialogueId: (body.id as DialogueId | undefined) ?? null,
        parentId: (parentId as MessageId | undefined) ?? null,
        // Clients send the whole message as the name.
        name: body.name === undefined ? null : truncate(body.name, MAX_NAME_CHARS),
        idempotency: idempotencyOf(request, principal, versionId, body),
      })
      .catch(nameParent);
    if (wantsJson(request.headers.accept)) await this.answer(principal, started, reply);
    else await this.stream(started.dialogue, started.message, started.replyId, null, reply);
  }

  /** SSE from after event number `after`; null: from the dialogue record on. */
  private async stream(
    dialogue: StoredReply['dialogue'],
    message: StoredReply['message'],
    replyId: MessageId,
    after: number | null,
    reply: FastifyReply,
  ): Promise<void> {
    let pump = (): void => undefined;
    const cursor = await this.replies.read(dialogue.tenantId, replyId, after ?? 0, () => pump());
    if (!cursor) throw new AppError('NOT_FOUND');
    const stream = this.streams.begin(reply, replyFormat(dialogue.id, replyId));
    ({ pump } = stream);
    whileHeld(reply, (error) =>
      stream.cutOff(lostEvent({ userDialogueId: dialogue.id, messageId: replyId }, error)),
    );
    if (after === null) stream.event(firstEvent(replyId, dialogue, message));
    stream.attach(cursor);
  }

  /** Waits for the end and answers once. A client that leaves meanwhile does not stop the reply. */
  private async answer({ tenantId }: Principal, started: StartedReply, reply: FastifyReply): Promise<void> {
    await this.ended(started, tenantId, reply);
    if (reply.raw.destroyed) return;
    const stored = await this.dialogues.findReply(tenantId, started.replyId);
    if (!stored) throw new AppError('NOT_FOUND');
    const { error } = stored.reply;
    const data = {
      dialogue: dialogueRecord(stored.dialogue, stored.message),
      message: replyRecord(stored.reply),
    };
    if (!error) void reply.send(success(data));
    else {
      if (error.code === 429) void reply.header('retry-after', PROVIDER_RATE_RETRY_SECONDS);
      void reply.status(error.code).send({ code: error.code, msg: error.message, data });
    }
  }

  private async ended(
    { replyId }: StartedReply,
    tenantId: Principal['tenantId'],
    reply: FastifyReply,
  ): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    let read = (): void => undefined;
    const cursor = await this.replies.read(tenantId, replyId, 0, () => read());
    if (!cursor) throw new AppError('NOT_FOUND');
    read = () => {
      for (let batch = cursor.take(Infinity); batch; batch = cursor.take(Infinity)) if (batch.end) resolve();
      if (cursor.exhausted) resolve();
    };
    read();
    reply.raw.once('close', resolve);
    whileHeld(reply, reject);
    await promise.finally(() => cursor.close());
  }
}

/** Only a client that asks for JSON and neither for events nor for anything gets one answer. */
function wantsJson(accept: string | undefined): boolean {
  return (
    accept !== undefined && /application\/json/i.test(accept) && !/text\/event-stream|\*\/\*/i.test(accept)
  );
}

/** The event number in `<messageId>:<n>`. BAD_INPUT for anything else, another reply's id included. */
function placeOf(lastEventId: string, replyId: MessageId): number {
  const match = /^(\d{1,19}):(\d{1,10})$/.exec(lastEventId.trim());
  if (!match || match[1] !== replyId)
    throw badInput('Last-Event-ID', 'must be the id of an event of this reply');
  return Number(match[2]);
}

/** What makes two requests with one Idempotency-Key the same: caller, path and body, whatever the order of its fields. */
function idempotencyOf(
  request: FastifyRequest,
  { userId }: Principal,
  versionId: AssistantVersionId | null,
  { speechUserDialogueMessage: { content, parentId }, modelServiceId, name, id }: SendMessage,
) {
  const key = idempotencyKeyOf(request);
  if (key === null) return null;
  const same = [userId, versionId, content, parentId, modelServiceId, name, id];
  return { key, requestHash: createHash('sha256').update(JSON.stringify(same)).digest('hex') };
}

/** The engine calls it `parentId`; on this wire it has a longer name. */
function nameParent(error: unknown): never {
  const [first] = error instanceof AppError ? error.errors : [];
  throw first?.field === 'parentId' ? badInput('speechUserDialogueMessage.parentId', first.message) : error;
}
