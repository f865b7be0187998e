import { Body, Controller, Delete, Get, HttpCode, Param, Post, Query, UsePipes } from '@nestjs/common';
import { ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import { AppError, asId, timeOfId, type ConversationId, type Principal, type TenantId } from '../common';
import { Caller, Scopes, validation } from '../common/http';
import {
  ConversationsRepository,
  DevicesRepository,
  MessageLog,
  peerOf,
  type Conversation,
} from '../messages';
import { BadFrame, clientTime, parseFrame, type MessageFrame } from './frames';
import { FrameError } from './errors';
import { Publisher } from './publisher';
import { Messenger, SYSTEM, type Sender } from './messenger';
import { conversationRecord, messageRecord, tombstone } from './records';
import { BroadcastRequest, ConversationsQuery, HistoryQuery, SendMessageRequest } from './requests';

const BROADCAST_PAGE = 500;

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
    private readonly devices: DevicesRepository,
    private readonly publisher: Publisher,
  ) {}

  @Post('messages')
  @HttpCode(200)
  @ApiOperation({
    summary: 'Send as any user, or as `system`; safe to repeat with the same msgId and timestamp',
  })
  async send(@Caller() { tenantId }: Principal, @Body() { source = SYSTEM, ...input }: SendMessageRequest) {
    return this.store(tenantId, frameOf({ ...input, source }));
  }

  @Post('broadcasts')
  @HttpCode(200)
  @ApiOperation({
    summary: 'Send one message to many users, one-to-one; with a msgId it is safe to repeat after a failure',
  })
  async broadcast(@Caller() { tenantId }: Principal, @Body() input: BroadcastRequest) {
    const { users, source = SYSTEM, ...packet } = input;
    const counts = { stored: 0, repeated: 0 };
    // `1` and `"1"` are one user, who gets one copy.
    const named = users && [...new Map(users.map((user) => [String(user), user])).values()];
    for await (const targets of named ? pages(named) : this.everybody(tenantId)) {
      const results = await Promise.all(
        targets.map((target) => this.store(tenantId, frameOf({ type: 'single', source, target, ...packet }))),
      );
      for (const { repeated } of results) counts[repeated ? 'repeated' : 'stored'] += 1;
    }
    return { recipients: counts.stored + counts.repeated, ...counts };
  }

  @Get('conversations')
  @ApiOperation({ summary: "A user's conversations, the most recent first, at most 500" })
  async list(@Caller() { tenantId }: Principal, @Query() { userId }: ConversationsQuery) {
    const standings = await this.devices.recent(tenantId, userId);
    return { data: standings.map((standing) => conversationRecord(standing, userId)) };
  }

  @Get('conversations/:id/messages')
  @ApiOperation({ summary: 'History, oldest first; without `before` and `after` from the beginning' })
  async history(@Caller() { tenantId }: Principal, @Param('id') id: string, @Query() query: HistoryQuery) {
    const conversation = await this.find(tenantId, id);
    const { before, after, limit } = query;
    const range = { ...(before !== undefined && { before }), ...(after !== undefined && { after }) };
    const entries = await this.log.page(tenantId, conversation.id, { ...range, limit: limit + 1 });
    const hasMore = entries.length > limit;
    // Read backwards, what is too much is the oldest.
    const backwards = before !== undefined && after === undefined;
    const page = backwards ? entries.slice(-limit) : entries.slice(0, limit);
    return { data: page.map(messageRecord), hasMore };
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
    const sender: Sender = { tenantId, userId: String(frame.source), client: '', origin: '', server: true };
    try {
      const { conversationId, result } = await this.messenger.store(sender, frame);
      if (result.outcome === 'conflict') {
        const message = 'msg.msgId: was used with this timestamp for another message of this conversation';
        throw new AppError('CONFLICT', { message });
      }
      if (result.outcome === 'refused') throw new AppError('NOT_FOUND', { message: 'target: no such group' });
      const { id, seq, outcome } = result;
      return { id, seq, conversationId, timestamp: timeOfId(id), repeated: outcome === 'repeated' };
    } catch (error) {
      if (error instanceof BadFrame) throw new AppError('BAD_INPUT', { message: error.message });
      if (error instanceof FrameError) throw new AppError('NOT_FOUND', { message: error.message });
      throw error;
    }
  }

  private async find(tenantId: TenantId, id: string): Promise<Conversation> {
    const conversationId = asId<ConversationId>(id);
    const found = conversationId && (await this.conversations.find(tenantId, conversationId));
    if (!found) throw new AppError('NOT_FOUND');
    return found;
  }

  private async *everybody(tenantId: TenantId): AsyncGenerator<string[]> {
    for (let after = ''; ;) {
      const page = await this.devices.users(tenantId, after, BROADCAST_PAGE);
      if (page.length > 0) yield page;
      if (page.length < BROADCAST_PAGE) return;
      after = page.at(-1)!;
    }
  }
}

function* pages<T>(all: readonly T[]): Generator<T[]> {
  for (let from = 0; from < all.length; from += BROADCAST_PAGE) yield all.slice(from, from + BROADCAST_PAGE);
}

function sidesOf(key: string): string[] {
  const [first] = JSON.parse(key) as [string, string];
  return [first, peerOf(key, first)];
}

/** Under the same rules as a frame that comes over the socket. Throws BAD_INPUT. */
function frameOf(frame: object): MessageFrame {
  try {
    const parsed = parseFrame(JSON.stringify(frame), false).frame as MessageFrame;
    clientTime(parsed.msg, Date.now());
    return parsed;
  } catch (error) {
    if (error instanceof BadFrame) throw new AppError('BAD_INPUT', { message: error.message });
    throw error;
  }
}
