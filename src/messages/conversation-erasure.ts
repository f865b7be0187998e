import { Injectable } from '@nestjs/common';
import type { EntityManager } from 'typeorm';
import type { ConversationId, TenantId } from '../common';
import type { Row } from '../database';
import { tombstone } from './tombstone';

const PAGE = 500;
/** Not who came and went: that is the group's. */
const SAID = `(frame like '{"type":"single"%' or frame like '{"type":"group"%')`;

/** Whose messages of a conversation become tombstones; sender null: everybody's. */
export interface ErasedVoice {
  readonly conversationId: ConversationId;
  readonly sender: string | null;
}

/**
 * Takes what was said out of conversations. A user's message becomes a tombstone, as if recalled: its number stays, so
 * the log keeps no gaps. What is merely too old is deleted, from the oldest end.
 */
@Injectable()
export class ConversationErasure {
  /** The conversations in which the user speaks; those with an assistant are the user's alone, answers included. */
  async voicesOf(tx: EntityManager, tenantId: TenantId, userId: string): Promise<ErasedVoice[]> {
    const rows = await tx.query<Row[]>(
      `select c.id, c.kind = 'single' and c.assistant_id is not null as own
       from conversation_members m join conversations c on c.id = m.conversation_id and c.tenant_id = $1
       where m.tenant_id = $1 and m.user_id = $2
       union
       select conversation_id, false from conversation_senders where tenant_id = $1 and sender = $2`,
      [tenantId, userId],
    );
    const voices = new Map<ConversationId, ErasedVoice>();
    for (const { id, own } of rows) {
      const conversationId = id as ConversationId;
      if (own || !voices.has(conversationId))
        voices.set(conversationId, { conversationId, sender: own ? null : userId });
    }
    return [...voices.values()];
  }

  /** How many messages became tombstones. */
  async silence(
    tx: EntityManager,
    tenantId: TenantId,
    { conversationId, sender }: ErasedVoice,
  ): Promise<number> {
    let count = 0;
    for (let after = '0'; ;) {
      const page = await tx.query<Row[]>(
        `select id, seq, frame from messages where tenant_id = $1 and conversation_id = $2 and seq > $3
           and ($4::text is null or sender = $4) and recalled_at is null and ${SAID}
         order by seq limit ${PAGE} for update`,
        [tenantId, conversationId, after, sender],
      );
      if (page.length === 0) return count;
      await tx.query(
        `update messages m set recalled_at = now(), frame = t.frame
         from unnest($3::bigint[], $4::bigint[], $5::text[]) as t(id, seq, frame)
         where m.tenant_id = $1 and m.conversation_id = $2 and m.id = t.id and m.seq = t.seq`,
        [
          tenantId,
          conversationId,
          page.map((row) => row.id),
          page.map((row) => row.seq),
          page.map((row) => tombstone(row.frame as string)),
        ],
      );
      // Events that were not delivered yet hold the message, too.
      await tx.query(
        `delete from webhook_deliveries where tenant_id = $1 and event = 'message.created' and event_id = any($2::text[])`,
        [tenantId, page.map((row) => row.id)],
      );
      count += page.length;
      after = page.at(-1)!.seq as string;
    }
  }

  /** What the user's devices are and know, requests of the user that nobody has answered, undelivered events about the user, and broadcasts. */
  async forget(tx: EntityManager, tenantId: TenantId, userId: string): Promise<number> {
    let count = 0;
    for (const [table, column] of [
      ['device_marks', 'user_id'],
      ['devices', 'user_id'],
      ['im_sessions', 'user_id'],
      ['reply_requests', 'sender'],
    ] as const) {
      const [row] = await tx.query<Row[]>(
        `with gone as (delete from ${table} where tenant_id = $1 and ${column} = $2 returning 1) select count(*) as n from gone`,
        [tenantId, userId],
      );
      count += Number(row!.n);
    }
    // Broadcasts in the user's name, the user among recipients that wait, and among those that were not reached.
    const named = JSON.stringify(userId);
    await tx.query('delete from broadcasts where tenant_id = $1 and sender = $2', [tenantId, userId]);
    await tx.query(
      `with waiting as (
         update broadcast_pages set targets = array_remove(array_remove(targets, $2), $3)
         where tenant_id = $1 and targets && array[$2, $3] returning broadcast_id)
       update broadcasts b set recipients = recipients - 1 from waiting
       where b.tenant_id = $1 and b.id = waiting.broadcast_id`,
      [tenantId, userId, named],
    );
    await tx.query('delete from broadcast_failures where tenant_id = $1 and user_id = $2', [
      tenantId,
      userId,
    ]);
    await tx.query(`delete from webhook_deliveries where tenant_id = $1 and position($2 in payload) > 0`, [
      tenantId,
      named,
    ]);
    return count;
  }

  /** Deletes messages older than `before`, of conversations after `from`, some of them; where to go on, null at the end. */
  async deleteOld(
    tx: EntityManager,
    tenantId: TenantId,
    before: Date,
    { from, conversations, messages }: { from: ConversationId; conversations: number; messages: number },
  ): Promise<{ next: ConversationId | null; deleted: number }> {
    const page = await tx.query<Row[]>(
      'select id from conversations where tenant_id = $1 and id > $2 order by id limit $3',
      [tenantId, from, conversations],
    );
    let deleted = 0;
    let next: ConversationId | null = from;
    for (const { id } of page) {
      const [row] = await tx.query<Row[]>(
        `with gone as (
           delete from messages where tenant_id = $1 and conversation_id = $2 and id < message_id_at($3)
             and seq in (select seq from messages where tenant_id = $1 and conversation_id = $2 and id < message_id_at($3)
                         order by seq limit $4) returning 1)
         select count(*) as n from gone`,
        [tenantId, id, before, messages - deleted],
      );
      deleted += Number(row!.n);
      // This one may have more.
      if (deleted >= messages) return { next, deleted };
      next = id as ConversationId;
    }
    return { next: page.length < conversations ? null : next, deleted };
  }
}
