import type { EntityManager } from 'typeorm';
import type { MessageId } from '../common';
import { idArray, textArray, type Row } from '../database';
import type { Conversation, Gap, LogEntry, MemberRole } from './conversation-records';

/** Somebody who comes into a group. */
export interface Join {
  readonly userId: string;
  /** The device kind it was asked for from; empty for a server's. */
  readonly client: string;
  /** JSON text, as for messages. */
  readonly frame: string;
  readonly role: MemberRole;
}

export interface Joined {
  readonly entry: LogEntry;
  /** Of one who comes back: what was said meanwhile. */
  readonly gap?: Gap;
}

/**
 * Under the group's lock: each join an entry of the log and a member's row, all in one statement, however many they
 * are. Nobody twice, and nobody who is in. In the order of the joins. Of who comes back the membership that had ended
 * is kept: their devices may not have all of it yet.
 */
export async function enterAll(
  tx: EntityManager,
  group: Conversation,
  groupId: string,
  joins: readonly Join[],
  nextId: () => MessageId,
): Promise<Joined[]> {
  if (joins.length === 0) return [];
  const entries = joins.map(({ userId, client, frame }, index): LogEntry => ({
    id: nextId(),
    seq: group.lastSeq + 1 + index,
    conversationId: group.id,
    sender: userId,
    client,
    frame,
    recalled: false,
  }));
  const { id: lastId, seq: lastSeq } = entries.at(-1)!;
  const payloads = entries.map(({ sender: userId, seq }) =>
    JSON.stringify({ groupId, change: 'joined', userId, seq }),
  );
  const past = await tx.query<Row[]>(
    `with joins as materialized (
       select * from unnest($3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[])
         as i(id, seq, user_id, client, frame, role, payload)),
     stored as (
       insert into messages (id, tenant_id, conversation_id, seq, sender, client, frame)
       select id, $1, $2, seq, user_id, client, frame from joins),
     counted as (
       insert into conversation_senders as s (conversation_id, sender, tenant_id, sent)
       select $2, user_id, $1, 1 from joins
       on conflict (conversation_id, sender) do update set sent = s.sent + 1 returning sender, sent),
     past as (
       insert into past_memberships (conversation_id, user_id, tenant_id, from_seq, until_seq)
       select $2, i.user_id, $1, m.from_seq, m.until_seq from joins i
       cross join lateral (
         select from_seq, until_seq from conversation_members
         where conversation_id = $2 and user_id = i.user_id and tenant_id = $1 limit 1) m
       returning user_id, until_seq),
     entered as (
       insert into conversation_members (conversation_id, user_id, tenant_id, role, from_seq, read_seq, read_own)
       select $2, i.user_id, $1, i.role, i.seq - 1, i.seq, c.sent from joins i join counted c on c.sender = i.user_id
       on conflict (conversation_id, user_id) do update set role = excluded.role, from_seq = excluded.from_seq,
         until_seq = null, read_seq = excluded.read_seq, read_own = excluded.read_own, joined_at = now(),
         rejoined = true),
     told as (
       insert into webhook_deliveries (webhook_id, tenant_id, event, event_id, payload)
       select w.id, $1, 'group.changed', i.id::text, i.payload from joins i, webhooks w
       where w.tenant_id = $1 and w.enabled and 'group.changed' = any(w.events) order by i.seq),
     moved as (
       update conversations set last_seq = $10, last_id = greatest(last_id, $11), member_count = member_count + $12
       where id = $2 and tenant_id = $1)
     select user_id, until_seq from past`,
    [
      group.tenantId,
      group.id,
      idArray(entries.map(({ id }) => id)),
      idArray(entries.map(({ seq }) => seq)),
      textArray(entries.map(({ sender }) => sender)),
      textArray(entries.map(({ client }) => client)),
      textArray(entries.map(({ frame }) => frame)),
      textArray(joins.map(({ role }) => role)),
      textArray(payloads),
      lastSeq,
      lastId,
      joins.length,
    ],
  );
  const endOf = new Map(past.map((row) => [row.user_id as string, Number(row.until_seq)]));
  return entries.map((entry) => {
    const after = endOf.get(entry.sender);
    return after === undefined ? { entry } : { entry, gap: { after, until: entry.seq - 1 } };
  });
}
