import { Injectable } from '@nestjs/common';
import type { AssistantId, ConversationId, MessageId, TenantId } from '../common';
import {
  Database,
  NODE_LEASE_MS,
  NodeRegistry,
  platformScope,
  tenantScope,
  type Statement,
} from '../database';

/** A message of a conversation that waits for an assistant's answer; stored with the message itself. */
export interface ReplyRequest {
  readonly messageId: MessageId;
  readonly tenantId: TenantId;
  readonly conversationId: ConversationId;
  readonly assistantId: AssistantId;
  readonly sender: string;
  /** The message's frame; of a turn on another wire its text. */
  readonly frame: string;
  /** The reply to a turn that was begun on another wire: it is told here, not asked for. */
  readonly replyId: MessageId | null;
  /** 1 for the first try. */
  readonly attempts: number;
}

/** The queue of what assistants are to answer: one after the other in a conversation, survivors of a dead node included. */
@Injectable()
export class ReplyRequestsRepository {
  constructor(
    private readonly database: Database,
    private readonly nodes: NodeRegistry,
  ) {}

  /** The oldest of each conversation that nobody works on. */
  claim(limit: number): Promise<ReplyRequest[]> {
    return this.database.one(platformScope(), claim(this.nodes.incarnation, limit));
  }

  async finish({ tenantId, messageId }: ReplyRequest): Promise<void> {
    await this.database.one(tenantScope(tenantId), {
      name: 'reply-request-finish',
      text: 'delete from reply_requests where tenant_id = $1 and message_id = $2',
      values: [tenantId, messageId],
      map: () => undefined,
    });
  }

  /** Gives it back, to be taken up again after `delayMs`. */
  async release({ tenantId, messageId }: ReplyRequest, delayMs: number): Promise<void> {
    await this.database.one(tenantScope(tenantId), {
      name: 'reply-request-release',
      text: `update reply_requests set incarnation = null, next_at = now() + make_interval(secs => $3 / 1000.0)
             where tenant_id = $1 and message_id = $2`,
      values: [tenantId, messageId, delayMs],
      map: () => undefined,
    });
  }
}

const claim = (incarnation: bigint, limit: number): Statement<ReplyRequest[]> => ({
  name: 'reply-request-claim',
  text: `with due as (
      select r.message_id from reply_requests r
      where r.next_at <= now()
        and (r.incarnation is null or not exists (
          select 1 from nodes n where n.incarnation = r.incarnation
            and n.heartbeat_at > now() - interval '${NODE_LEASE_MS} milliseconds'))
        and not exists (select 1 from reply_requests e
          where e.conversation_id = r.conversation_id and e.message_id < r.message_id)
      order by r.message_id limit $2 for update skip locked)
    update reply_requests r set incarnation = $1, attempts = r.attempts + 1 from due
    where r.message_id = due.message_id
    returning r.message_id, r.tenant_id, r.conversation_id, r.assistant_id, r.sender, r.frame, r.attempts, r.reply_id`,
  values: [incarnation.toString(), limit],
  map: (rows) =>
    rows.map((row) => ({
      messageId: row.message_id as MessageId,
      tenantId: row.tenant_id as TenantId,
      conversationId: row.conversation_id as ConversationId,
      assistantId: row.assistant_id as AssistantId,
      sender: row.sender as string,
      frame: row.frame as string,
      attempts: row.attempts as number,
      replyId: row.reply_id as MessageId | null,
    })),
});
