import { Body, Controller, Delete, Get, HttpCode, Param, Post, Query, UsePipes } from '@nestjs/common';
import { RouteConfig } from '@nestjs/platform-fastify';
import { ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import {
  AppError,
  asId,
  badInput,
  timeOfId,
  type ConversationId,
  type Principal,
  type TenantId,
} from '../common';
import { Caller, ExactBody, Scopes, validation } from '../common/http';
import {
  ConversationsRepository,
  MessageLog,
  peerOf,
  placeOf,
  placeText,
  UserConversations,
  type Conversation,
} from '../messages';
import { idText, type MessageFrame } from './frames';
import { frameOf } from './packets';
import { Publisher } from './publisher';
import { Messenger, SYSTEM, type Sender } from './messenger';
import { conversationRecord, messageRecord, tombstone } from './records';
import { ConversationsQuery, HistoryQuery, SendMessageRequest } from './requests';

/** What a tenant's server does in conversations: sends as anybody, reads the history, recalls. */
@ApiTags('im')
@ApiSecurity('x-api-key')
@Scopes('im')
@UsePipes(validation('ignored'))
@Controller('api/v1/im')
export class MessagesController {
  constructor(
    private readonly messenger: Messenger,
    private readonly log: MessageLog,
    private readonly conversations: ConversationsRepository,
    private readonly users: UserConversations,
    private readonly publisher: Publisher,
  ) {}

  @Post('messages')
  @HttpCode(200)
  @ApiOperation({
    summary: 'Send as any user, or as `system`; safe to repeat with the same msgId and timestamp',
  })
  @RouteConfig({ exactNumbers: true })
  async send(
    @Caller() { tenantId }: Principal,
    @Body() _checked: SendMessageRequest,
    @ExactBody() { type, target, ...packet }: Record<string, unknown>,
  ) {
    return this.store(tenantId, frameOf({ type, target, ...packet }));
  }

  @Get('conversations')
  @ApiOperation({ summary: "A user's conversations, the most recent first" })
  async list(@Caller() { tenantId }: Principal, @Query() { userId, limit, cursor = '' }: ConversationsQuery) {
    const before = placeOf(cursor);
    if (!before && cursor !== '') throw badInput('cursor', 'must be the nextCursor of a page');
    const standings = await this.users.recent(tenantId, userId, before, limit + 1);
    const page = standings.slice(0, limit);
    return {
      data: page.map((standing) => conversationRecord(standing, userId)),
      nextCursor: standings.length > limit ? placeText(page.at(-1)!) : null,
    };
  }

  @Get('conversations/:id/messages')
  @ApiOperation({
    summary: 'History, oldest first; without `before` and `after` from the beginning. Some 256 KiB a page',
  })
  async history(@Caller() { tenantId }: Principal, @Param('id') id: string, @Query() query: HistoryQuery) {
    const conversation = await this.find(tenantId, id);
    const { before, after, limit } = query;
    const range = { ...(before !== undefined && { before }), ...(after !== undefined && { after }) };
    const { entries, hasMore } = await this.log.page(tenantId, conversation.id, { ...range, limit });
    return { data: entries.map(messageRecord), hasMore };
  }

  @Delete('conversations/:id/messages/:seq')
  @ApiOperation({ summary: 'Recall a message, however old: it becomes a tombstone, its `seq` stays' })
  async recall(@Caller() { tenantId }: Principal, @Param('id') id: string, @Param('seq') seq: string) {
    const { id: conversationId, kind, key } = await this.find(tenantId, id);
    if (!/^[1-9]\d{0,14}$/.test(seq)) throw new AppError('NOT_FOUND');
    const entry = await this.conversations.recall(tenantId, conversationId, Number(seq), null, 0, tombstone);
    const frame = { type: 'recall', conversationId, seq: entry.seq, source: SYSTEM };
    const to = kind === 'group' ? { group: conversationId } : { users: sidesOf(key) };
    this.publisher.publishEvent(tenantId, to, { frame, droppable: false });
    return messageRecord(entry);
  }

  private async store(tenantId: TenantId, frame: MessageFrame) {
    const sender: Sender = { tenantId, userId: idText(frame.source), client: '', origin: '', server: true };
    const { conversationId, result } = await this.messenger.store(sender, frame);
    if (result.outcome === 'conflict') {
      const message = 'msg.msgId: was used with this timestamp for another message of this conversation';
      throw new AppError('CONFLICT', { message });
    }
    if (result.outcome === 'refused') throw new AppError('NOT_FOUND', { message: 'target: no such group' });
    const { id, seq, outcome } = result;
    return { id, seq, conversationId, timestamp: timeOfId(id), repeated: outcome === 'repeated' };
  }

  private async find(tenantId: TenantId, id: string): Promise<Conversation> {
    const conversationId = asId<ConversationId>(id);
    const found = conversationId && (await this.conversations.find(tenantId, conversationId));
    if (!found) throw new AppError('NOT_FOUND');
    return found;
  }
}

function sidesOf(key: string): string[] {
  const [first] = JSON.parse(key) as [string, string];
  return [first, peerOf(key, first)];
}
