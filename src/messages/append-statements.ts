import { idAtTime, type AssistantId, type ConversationId, type MessageId, type TenantId } from '../common';
import type { Statement } from '../database';

/** A message on its way into the log. */
export interface MessageDraft {
  readonly id: MessageId;
  readonly tenantId: TenantId;
  readonly conversationId: ConversationId;
  readonly sender: string;
  readonly client: string;
  /** What makes it the same message when it is sent again; null: nothing does. */
  readonly dedupe: string | null;
  /** The sender's clock in epoch ms where `dedupe` holds one; the first copy can't be much older. */
  readonly clientTime: number | null;
  readonly frame: string;
  /** Refused unless the sender is a member who may speak; `group`: unless the group is still there. */
  readonly only: 'member' | 'group' | null;
  /** Who is to answer it, decided before: stored as a request in the same transaction. */
  readonly assistantId: AssistantId | null;
}

export interface KnownMessage {
  readonly id: MessageId;
  readonly seq: number;
  readonly frame: string;
  readonly recalled: boolean;
}

export interface BatchResult {
  /** `seq`s in the order of the batch, 0 where the tenant has no such conversation; what is in the other two is not among them. */
  readonly stored: readonly number[];
  readonly known: ReadonlyMap<number, KnownMessage>;
  readonly refused: ReadonlySet<number>;
}

/**
 * First statement of a batch: nobody else appends to these conversations until it is committed. Always in the order
 * of ids, so that two processes can't wait for each other; a statement of its own, so that the next one sees what
 * the process that held them before has stored.
 */
export const lockConversations = (ids: readonly ConversationId[]): Statement<void> => ({
  name: 'log-lock',
  text: 'select 1 from conversations where id = any($1::bigint[]) order by id for update',
  values: [ids],
  map: () => undefined,
});

/**
 * The whole batch in one statement: who has been stored before, who may not speak, numbers without gaps for the rest,
 * the messages, their senders' counts, the requests to assistants and the webhooks' outbox.
 * `oldest` bounds the search for first copies to the partitions that can hold one.
 */
export const appendBatch = (drafts: readonly MessageDraft[], oldest: string): Statement<BatchResult> => ({
  name: 'log-append',
  text: `with input as materialized (
      select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[],
        $8::text[], $9::bigint[]) with ordinality
        as i(id, tenant_id, conversation_id, sender, client, dedupe, frame, audience, assistant_id, ord)),
    known as materialized (
      select i.ord, m.* from input i
      cross join lateral (
        select id, seq, frame, recalled_at is not null as recalled from messages
        where tenant_id = i.tenant_id and conversation_id = i.conversation_id and dedupe = i.dedupe and id >= $10
        limit 1) m
      where i.dedupe is not null),
    refused as materialized (
      select i.ord from input i where i.audience = 'member' and not exists (
        select 1 from conversation_members p join conversations c on c.id = p.conversation_id
        where p.tenant_id = i.tenant_id and p.conversation_id = i.conversation_id and p.user_id = i.sender and p.until_seq is null
          and (p.role <> 'member' or (not c.muted and (p.muted_until is null or p.muted_until < now()))))
      or i.audience = 'group' and not exists (
        select 1 from conversations c where c.id = i.conversation_id and c.deleted_at is null)),
    fresh as materialized (
      select i.*, row_number() over (partition by i.conversation_id, i.tenant_id order by i.ord) as n from input i
      where not exists (select 1 from known k where k.ord = i.ord)
        and not exists (select 1 from refused r where r.ord = i.ord)),
    bumped as (
      update conversations c set last_seq = c.last_seq + f.n, last_id = greatest(c.last_id, f.id, $11)
      from (select conversation_id, tenant_id, max(n) as n, max(id) as id from fresh group by 1, 2) f
      where c.id = f.conversation_id and c.tenant_id = f.tenant_id
      returning c.id, c.tenant_id, c.last_seq - f.n as base),
    numbered as materialized (
      select f.*, b.base + f.n as seq from fresh f
      left join bumped b on b.id = f.conversation_id and b.tenant_id = f.tenant_id),
    stored as (
      insert into messages (id, tenant_id, conversation_id, seq, sender, client, dedupe, frame)
      select id, tenant_id, conversation_id, seq, sender, client, dedupe, frame from numbered
      where seq is not null),
    counted as (
      insert into conversation_senders as s (conversation_id, sender, tenant_id, sent)
      select conversation_id, sender, tenant_id, count(*) from numbered where seq is not null group by 1, 2, 3
      on conflict (conversation_id, sender) do update set sent = s.sent + excluded.sent),
    asked as (
      insert into reply_requests (message_id, tenant_id, conversation_id, assistant_id, sender, frame)
      select id, tenant_id, conversation_id, assistant_id, sender, frame from numbered
      where seq is not null and assistant_id is not null),
    told as (
      insert into webhook_deliveries (webhook_id, tenant_id, event, event_id, payload)
      select w.id, n.tenant_id, 'message.created', n.id::text,
        json_build_object('conversationId', n.conversation_id::text, 'id', n.id::text, 'seq', n.seq, 'frame', n.frame::json)::text
      from webhooks w join numbered n on n.tenant_id = w.tenant_id
      where n.seq is not null and w.enabled and 'message.created' = any(w.events))
    select (select string_agg(coalesce(seq, 0)::text, ',' order by ord) from numbered) as stored,
      (select json_agg(json_build_array(ord, id::text, seq, frame, recalled)) from known) as known,
      (select array_agg(ord) from refused) as refused`,
  values: [
    drafts.map(({ id }) => id),
    drafts.map(({ tenantId }) => tenantId),
    drafts.map(({ conversationId }) => conversationId),
    drafts.map(({ sender }) => sender),
    drafts.map(({ client }) => client),
    drafts.map(({ dedupe }) => dedupe),
    drafts.map(({ frame }) => frame),
    drafts.map(({ only }) => only),
    drafts.map(({ assistantId }) => assistantId),
    oldest,
    // A long reply's message bears the id of its beginning: who looks for what has moved goes by the time it came.
    idAtTime(Date.now()),
  ],
  map: ([row]) => ({
    stored: row!.stored === null ? [] : (row!.stored as string).split(',').map(Number),
    known: new Map(
      ((row!.known ?? []) as [number, MessageId, number, string, boolean][]).map(
        ([ord, id, seq, frame, recalled]) => [ord - 1, { id, seq, frame, recalled }],
      ),
    ),
    refused: new Set(((row!.refused ?? []) as string[]).map((ord) => Number(ord) - 1)),
  }),
});

/** How far back a batch whose commit is in doubt can have been pushed by what others wrote meanwhile. */
const DOUBT_WINDOW = 100_000;

/** After `lockConversations`, for a batch whose commit is in doubt: which of its messages are there, by id. */
export const findAppended = (drafts: readonly MessageDraft[]): Statement<ReadonlyMap<MessageId, number>> => ({
  name: 'log-find-appended',
  text: `select m.id, m.seq from conversations c
         join messages m on m.conversation_id = c.id and m.seq > c.last_seq - ${DOUBT_WINDOW}
         where c.id = any($1::bigint[]) and m.id = any($2::bigint[]) and m.id >= $3`,
  values: [
    [...new Set(drafts.map(({ conversationId }) => conversationId))],
    drafts.map(({ id }) => id),
    drafts.reduce((least, { id }) => (BigInt(id) < BigInt(least) ? id : least), drafts[0]!.id),
  ],
  map: (rows) => new Map(rows.map((row) => [row.id as MessageId, Number(row.seq)])),
});
