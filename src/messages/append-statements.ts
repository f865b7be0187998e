import { idAtTime, type AssistantId, type ConversationId, type MessageId, type TenantId } from '../common';
import { idArray, textArray, type Statement } from '../database';

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

/** Whose a conversation is, and its last number. */
export interface ConversationEnd {
  readonly tenantId: TenantId;
  readonly lastSeq: number;
}

/**
 * First of a batch: nobody else appends to these conversations until it is committed. Always in the order of ids, so
 * that two processes can't wait for each other; a statement of its own, so that the next ones see what the process
 * that held them before has stored.
 */
export const lockConversations = (
  ids: readonly ConversationId[],
): Statement<ReadonlyMap<ConversationId, ConversationEnd>> => ({
  name: 'log-lock',
  text: `select id, tenant_id, last_seq from conversations where id = any($1::bigint[]) order by id for update`,
  values: [idArray(ids)],
  map: (rows) =>
    new Map(
      rows.map((row) => [
        row.id as ConversationId,
        { tenantId: row.tenant_id as TenantId, lastSeq: Number(row.last_seq) },
      ]),
    ),
});

const knownOf = (tenants: string, conversations: string, dedupes: string, oldest: string): string =>
  `select i.ord, m.* from unnest(${tenants}::bigint[], ${conversations}::bigint[], ${dedupes}::text[]) with ordinality
     as i(tenant_id, conversation_id, dedupe, ord)
   cross join lateral (
     select id, seq, frame, recalled_at is not null as recalled from messages
     where tenant_id = i.tenant_id and conversation_id = i.conversation_id and dedupe = i.dedupe and id >= ${oldest}
     limit 1) m
   where i.dedupe is not null`;

const refusedOf = (tenants: string, conversations: string, senders: string, audiences: string): string =>
  `select i.ord from unnest(${tenants}::bigint[], ${conversations}::bigint[], ${senders}::text[], ${audiences}::text[])
     with ordinality as i(tenant_id, conversation_id, sender, audience, ord)
   left join lateral (
     select muted from conversations
     where id = i.conversation_id and tenant_id = i.tenant_id and deleted_at is null limit 1) c on true
   left join lateral (
     select role, muted_until from conversation_members
     where conversation_id = i.conversation_id and user_id = i.sender and tenant_id = i.tenant_id
       and until_seq is null limit 1) p on true
   where i.audience is not null and (c.muted is null or i.audience = 'member' and (p.role is null
     or p.role = 'member' and (c.muted or p.muted_until > now())))`;

/** Which have been stored before, by their place in the batch. `oldest` bounds the search to the partitions that can hold a first copy. */
export const findKnown = (
  drafts: readonly MessageDraft[],
  oldest: string,
): Statement<ReadonlyMap<number, KnownMessage>> => ({
  name: 'log-known',
  text: knownOf('$1', '$2', '$3', '$4'),
  values: [
    idArray(drafts.map(({ tenantId }) => tenantId)),
    idArray(drafts.map(({ conversationId }) => conversationId)),
    textArray(drafts.map(({ dedupe }) => dedupe)),
    oldest,
  ],
  map: (rows) =>
    new Map(
      rows.map((row) => [
        Number(row.ord) - 1,
        {
          id: row.id as MessageId,
          seq: Number(row.seq),
          frame: row.frame as string,
          recalled: row.recalled as boolean,
        },
      ]),
    ),
});

/** Whose senders may not speak there, by their place in the batch. */
export const findRefused = (drafts: readonly MessageDraft[]): Statement<ReadonlySet<number>> => ({
  name: 'log-refused',
  text: refusedOf('$1', '$2', '$3', '$4'),
  values: [
    idArray(drafts.map(({ tenantId }) => tenantId)),
    idArray(drafts.map(({ conversationId }) => conversationId)),
    textArray(drafts.map(({ sender }) => sender)),
    textArray(drafts.map(({ only }) => only)),
  ],
  map: (rows) => new Set(rows.map((row) => Number(row.ord) - 1)),
});

/** Webhooks that are told of every message, by tenant. */
export const findListeners = (tenants: readonly TenantId[]): Statement<ReadonlyMap<TenantId, string[]>> => ({
  name: 'log-listeners',
  text: `select tenant_id, id from webhooks
         where tenant_id = any($1::bigint[]) and enabled and 'message.created' = any(events)`,
  values: [tenants],
  map: (rows) => {
    const listeners = new Map<TenantId, string[]>();
    for (const row of rows) {
      const tenantId = row.tenant_id as TenantId;
      listeners.set(tenantId, [...(listeners.get(tenantId) ?? []), row.id as string]);
    }
    return listeners;
  },
});

/** A draft that got its number. */
export interface NumberedMessage {
  readonly draft: MessageDraft;
  readonly seq: number;
}

/** What a batch writes; each statement only where there is something for it. */
export function storeStatements(
  messages: readonly NumberedMessage[],
  listeners: ReadonlyMap<TenantId, readonly string[]>,
): Statement<void>[] {
  if (messages.length === 0) return [];
  const asking = messages.filter(({ draft }) => draft.assistantId !== null);
  const events = messages.flatMap(({ draft, seq }) =>
    (listeners.get(draft.tenantId) ?? []).map((webhookId) => ({ webhookId, draft, seq })),
  );
  return [
    storeMessages(messages),
    ...(asking.length > 0 ? [requestReplies(asking)] : []),
    ...(events.length > 0 ? [tellWebhooks(events)] : []),
  ];
}

/** The messages, how far their conversations now reach, and how many each sender has sent there. */
function storing(messages: readonly NumberedMessage[]): unknown[] {
  const last = new Map(messages.map(({ draft, seq }) => [draft.conversationId, { seq, draft }]));
  const counts = new Map<string, { draft: MessageDraft; sent: number }>();
  for (const { draft } of messages) {
    const key = `${draft.conversationId}\n${draft.sender}`;
    const count = counts.get(key);
    if (count) count.sent += 1;
    else counts.set(key, { draft, sent: 1 });
  }
  const senders = [...counts.values()];
  return [
    idArray(messages.map(({ draft }) => draft.id)),
    idArray(messages.map(({ draft }) => draft.tenantId)),
    idArray(messages.map(({ draft }) => draft.conversationId)),
    idArray(messages.map(({ seq }) => seq)),
    textArray(messages.map(({ draft }) => draft.sender)),
    textArray(messages.map(({ draft }) => draft.client)),
    textArray(messages.map(({ draft }) => draft.dedupe)),
    textArray(messages.map(({ draft }) => draft.frame)),
    idArray([...last.keys()]),
    idArray([...last.values()].map(({ draft }) => draft.tenantId)),
    idArray([...last.values()].map(({ seq }) => seq)),
    idAtTime(Date.now()),
    idArray(senders.map(({ draft }) => draft.conversationId)),
    textArray(senders.map(({ draft }) => draft.sender)),
    idArray(senders.map(({ draft }) => draft.tenantId)),
    idArray(senders.map(({ sent }) => sent)),
  ];
}

/** CTEs over the parameters of `storing`. A long reply's message bears the id of its beginning: who looks for what has moved goes by the time it came ($12). */
const storingWhere = (condition: string): string => `
      stored as (
        insert into messages (id, tenant_id, conversation_id, seq, sender, client, dedupe, frame)
        select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[])
        where ${condition}),
      advanced as (
        update conversations c set last_seq = i.seq, last_id = greatest(c.last_id, $12::bigint)
        from unnest($9::bigint[], $10::bigint[], $11::bigint[]) as i(id, tenant_id, seq)
        where c.id = i.id and c.tenant_id = i.tenant_id and ${condition}),
      counted as (
        insert into conversation_senders as s (conversation_id, sender, tenant_id, sent)
        select * from unnest($13::bigint[], $14::text[], $15::bigint[], $16::bigint[])
        where ${condition}
        on conflict (conversation_id, sender) do update set sent = s.sent + excluded.sent)`;

const storeMessages = (messages: readonly NumberedMessage[]): Statement<void> => ({
  name: 'log-store',
  text: `with ${storingWhere('true')} select`,
  values: storing(messages),
  map: () => undefined,
});

/**
 * The whole of a batch in one statement, if everything is as this process believes: every conversation still ends
 * where it left it (`ends`), nothing was stored before, every sender may speak, no webhook listens. Else nothing is
 * written, and the batch goes the long way. What another process commits between this statement's snapshot and its
 * locks has moved the conversation's end, which the lock reads anew.
 */
export const storeIfUnchanged = (
  messages: readonly NumberedMessage[],
  ends: ReadonlyMap<ConversationId, ConversationEnd>,
  oldest: string,
): Statement<boolean> => {
  const drafts = messages.map(({ draft }) => draft);
  const guarded = drafts.some(({ only }) => only !== null);
  return {
    name: guarded ? 'log-store-if-guarded' : 'log-store-if',
    text: `with locked as materialized (
        select c.id from unnest($17::bigint[], $18::bigint[], $19::bigint[]) as i(id, tenant_id, last_seq)
        join conversations c on c.id = i.id and c.tenant_id = i.tenant_id and c.last_seq = i.last_seq
        order by c.id for update of c),
      verdict as materialized (
        select (select count(*) from locked) = cardinality($17::bigint[])
          and not exists (${knownOf('$2', '$3', '$7', '$20')})
          and not exists (
            select from webhooks
            where tenant_id = any($2::bigint[]) and enabled and 'message.created' = any(events))
          ${guarded ? `and not exists (${refusedOf('$2', '$3', '$5', '$21')})` : ''} as unchanged),
      ${storingWhere('(select unchanged from verdict)')}
      select unchanged from verdict`,
    values: [
      ...storing(messages),
      idArray([...ends.keys()]),
      idArray([...ends.values()].map(({ tenantId }) => tenantId)),
      idArray([...ends.values()].map(({ lastSeq }) => lastSeq)),
      oldest,
      ...(guarded ? [textArray(drafts.map(({ only }) => only))] : []),
    ],
    map: (rows) => rows[0]!.unchanged as boolean,
  };
};

const requestReplies = (messages: readonly NumberedMessage[]): Statement<void> => ({
  name: 'log-ask',
  text: `insert into reply_requests (message_id, tenant_id, conversation_id, assistant_id, sender, frame)
         select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[])`,
  values: [
    idArray(messages.map(({ draft }) => draft.id)),
    idArray(messages.map(({ draft }) => draft.tenantId)),
    idArray(messages.map(({ draft }) => draft.conversationId)),
    idArray(messages.map(({ draft }) => draft.assistantId)),
    textArray(messages.map(({ draft }) => draft.sender)),
    textArray(messages.map(({ draft }) => draft.frame)),
  ],
  map: () => undefined,
});

const tellWebhooks = (
  events: readonly (NumberedMessage & { readonly webhookId: string })[],
): Statement<void> => ({
  name: 'log-tell',
  text: `insert into webhook_deliveries (webhook_id, tenant_id, event, event_id, payload)
         select w, t, 'message.created', e, p
         from unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[]) as i(w, t, e, p)`,
  values: [
    idArray(events.map(({ webhookId }) => webhookId)),
    idArray(events.map(({ draft }) => draft.tenantId)),
    idArray(events.map(({ draft }) => draft.id)),
    events.map(
      ({ draft: { id, conversationId, frame }, seq }) =>
        `{"conversationId":"${conversationId}","id":"${id}","seq":${seq},"frame":${frame}}`,
    ),
  ],
  map: () => undefined,
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
    idArray(drafts.map(({ id }) => id)),
    drafts.reduce((least, { id }) => (BigInt(id) < BigInt(least) ? id : least), drafts[0]!.id),
  ],
  map: (rows) => new Map(rows.map((row) => [row.id as MessageId, Number(row.seq)])),
});
