import { idAtTime, type AssistantId, type ConversationId, type MessageId, type TenantId } from '../common';
import { idArray, textArray, type Statement } from '../database';
import type { Side } from './conversation-records';

/** A message on its way into the log. */
export interface MessageDraft {
  readonly id: MessageId;
  readonly tenantId: TenantId;
  readonly conversationId: ConversationId;
  readonly sender: string;
  /** Of the two of a one-to-one conversation, which the sender is; null: neither, or it is a group's. */
  readonly side: Side | null;
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

/** Joined to rows `i`: what was stored of each before. */
const firstCopyOf = (oldest: string, newest: string): string =>
  `cross join lateral (
     select id, seq, frame, recalled_at is not null as recalled from messages
     where tenant_id = i.tenant_id and conversation_id = i.conversation_id and dedupe = i.dedupe
       and id >= ${oldest} and id < ${newest}
     limit 1) m
   where i.dedupe is not null`;

const refusedOf = (tenants: string, conversations: string, senders: string, audiences: string): string =>
  `select i.ord from unnest(${tenants}, ${conversations}, ${senders}, ${audiences})
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

/** Between these ids is what can be a first copy: the search is bounded to their partitions. */
export interface FirstCopies {
  readonly oldest: string;
  /** Exclusive. */
  readonly newest: string;
}

/** Which have been stored before, by their place in the batch. */
export const findKnown = (
  drafts: readonly MessageDraft[],
  { oldest, newest }: FirstCopies,
): Statement<ReadonlyMap<number, KnownMessage>> => ({
  name: 'log-known',
  text: `select i.ord, m.* from unnest($1::bigint[], $2::bigint[], $3::text[]) with ordinality
           as i(tenant_id, conversation_id, dedupe, ord) ${firstCopyOf('$4', '$5')}`,
  values: [
    idArray(drafts.map(({ tenantId }) => tenantId)),
    idArray(drafts.map(({ conversationId }) => conversationId)),
    textArray(drafts.map(({ dedupe }) => dedupe)),
    oldest,
    newest,
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
  text: refusedOf('$1::bigint[]', '$2::bigint[]', '$3::text[]', '$4::text[]'),
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

/** Values of a statement, numbered as they come. */
class Parameters {
  readonly values: unknown[] = [];

  /** Its place in the text. */
  add(value: unknown): string {
    return `$${this.values.push(value)}`;
  }

  ids(ids: readonly (string | number)[]): string {
    return `${this.add(idArray(ids))}::bigint[]`;
  }

  texts(texts: readonly (string | null)[]): string {
    return `${this.add(textArray(texts))}::text[]`;
  }
}

/** Ids are decimals without leading zeros. */
const compareIds = (a: string, b: string): number => a.length - b.length || (a < b ? -1 : 1);

/** How far a batch takes a conversation. */
interface Advance {
  readonly tenantId: TenantId;
  lastSeq: number;
  /** Of these messages how many are the one side's and how many the other's. */
  readonly sent: [number, number];
}

/** Each conversation once, in the order in which rows are locked, whichever process and whichever statement does it. */
function advancesOf(messages: readonly NumberedMessage[]): (readonly [ConversationId, Advance])[] {
  const advances = new Map<ConversationId, Advance>();
  for (const { draft, seq } of messages) {
    const { conversationId, tenantId, side } = draft;
    let advance = advances.get(conversationId);
    if (advance) advance.lastSeq = seq;
    else advances.set(conversationId, (advance = { tenantId, lastSeq: seq, sent: [0, 0] }));
    if (side !== null) advance.sent[side] += 1;
  }
  return [...advances].sort(([a], [b]) => compareIds(a, b));
}

/** Of those who are counted by themselves, how many each has sent where. */
function countsOf(messages: readonly NumberedMessage[]): { draft: MessageDraft; sent: number }[] {
  const counts = new Map<string, { draft: MessageDraft; sent: number }>();
  for (const { draft } of messages) {
    if (draft.side !== null) continue;
    const key = `${draft.conversationId}\n${draft.sender}`;
    const count = counts.get(key);
    if (count) count.sent += 1;
    else counts.set(key, { draft, sent: 1 });
  }
  return [...counts.values()];
}

/** The messages' columns as parameters. One loop: a batch is made while Postgres waits for it. */
function columnsOf(parameters: Parameters, messages: readonly NumberedMessage[]) {
  const ids: MessageId[] = [];
  const tenants: TenantId[] = [];
  const conversations: ConversationId[] = [];
  const seqs: number[] = [];
  const senders: string[] = [];
  const clients: string[] = [];
  const dedupes: (string | null)[] = [];
  const frames: string[] = [];
  for (const { draft, seq } of messages) {
    ids.push(draft.id);
    tenants.push(draft.tenantId);
    conversations.push(draft.conversationId);
    seqs.push(seq);
    senders.push(draft.sender);
    clients.push(draft.client);
    dedupes.push(draft.dedupe);
    frames.push(draft.frame);
  }
  return {
    id: parameters.ids(ids),
    tenant_id: parameters.ids(tenants),
    conversation_id: parameters.ids(conversations),
    seq: parameters.ids(seqs),
    sender: parameters.texts(senders),
    client: parameters.texts(clients),
    dedupe: parameters.texts(dedupes),
    frame: parameters.texts(frames),
  };
}

/**
 * Rows of arrays: `unnest` among the columns, where it goes from row to row, instead of `from unnest(a, b, …)`, which
 * first lays up every one of the arrays in a store of its own (measured: 7 % of a batch's work).
 */
const rowsOf = (columns: Readonly<Record<string, string>>): string =>
  `(select ${Object.entries(columns)
    .map(([name, array]) => `unnest(${array}) as ${name}`)
    .join()})`;

const inserting = (columns: ReturnType<typeof columnsOf>, condition: string): string => `
      stored as (
        insert into messages (${Object.keys(columns).join()})
        select * from ${rowsOf(columns)} i where ${condition})`;

/** The conversations' new ends as parameters. */
const endsOf = (parameters: Parameters, advances: ReturnType<typeof advancesOf>) => ({
  id: parameters.ids(advances.map(([id]) => id)),
  tenant_id: parameters.ids(advances.map(([, { tenantId }]) => tenantId)),
  seq: parameters.ids(advances.map(([, { lastSeq }]) => lastSeq)),
  first: parameters.ids(advances.map(([, { sent }]) => sent[0])),
  second: parameters.ids(advances.map(([, { sent }]) => sent[1])),
});

/**
 * `condition` may speak of a conversation (`c`) and its row of the input (`i`). A long reply's message bears the id of
 * its beginning: who looks for what has moved goes by the time it came.
 */
const advancing = (
  parameters: Parameters,
  ends: Readonly<Record<string, string>>,
  condition: string,
): string => `
      advanced as (
        update conversations c set last_seq = i.seq,
          last_id = greatest(c.last_id, ${parameters.add(idAtTime(Date.now()))}::bigint),
          sent_first = c.sent_first + i.first, sent_second = c.sent_second + i.second
        from ${rowsOf(ends)} i
        where c.id = i.id and c.tenant_id = i.tenant_id and ${condition}
        returning c.id)`;

/** How many messages of conversation `c` are its member `m`'s: what {@link advancing} and {@link counting} have counted. */
export const SENT_BY_MEMBER = `case m.side when 0 then c.sent_first when 1 then c.sent_second else coalesce((
  select sent from conversation_senders
  where conversation_id = m.conversation_id and sender = m.user_id and tenant_id = m.tenant_id), 0) end`;

/** Nothing where everybody is counted in the conversation's own row. */
const counting = (parameters: Parameters, counts: ReturnType<typeof countsOf>, condition: string): string =>
  counts.length === 0
    ? ''
    : `,
      counted as (
        insert into conversation_senders as s (conversation_id, sender, tenant_id, sent)
        select * from unnest(${[
          parameters.ids(counts.map(({ draft }) => draft.conversationId)),
          parameters.texts(counts.map(({ draft }) => draft.sender)),
          parameters.ids(counts.map(({ draft }) => draft.tenantId)),
          parameters.ids(counts.map(({ sent }) => sent)),
        ].join()})
        where ${condition}
        on conflict (conversation_id, sender) do update set sent = s.sent + excluded.sent)`;

function storeMessages(messages: readonly NumberedMessage[]): Statement<void> {
  const parameters = new Parameters();
  const counts = countsOf(messages);
  const inserted = inserting(columnsOf(parameters, messages), 'true');
  const advanced = advancing(parameters, endsOf(parameters, advancesOf(messages)), 'true');
  return {
    name: `log-store${counts.length > 0 ? '-counting' : ''}`,
    text: `with ${inserted},${advanced}${counting(parameters, counts, 'true')} select`,
    values: parameters.values,
    map: () => undefined,
  };
}

/** SQLSTATE of `conversations_have_moved()`: {@link storeIfUnchanged} has met what another process wrote. */
export const CONVERSATIONS_HAVE_MOVED = 'PY001';

/**
 * The whole of a batch in one statement, if everything is as this process believes: every conversation still ends
 * where it left it (`lastSeqOf`), nothing was stored before, every sender may speak, no webhook listens. Else nothing is
 * written, and the batch goes the long way: the statement says false, or fails with {@link CONVERSATIONS_HAVE_MOVED}
 * where a conversation ends elsewhere. What another process commits between this statement's snapshot and its locks
 * has moved the conversation, too: the update reads its row anew.
 */
export const storeIfUnchanged = (
  messages: readonly NumberedMessage[],
  lastSeqOf: (id: ConversationId) => number,
  { oldest, newest }: FirstCopies,
): Statement<boolean> => {
  const drafts = messages.map(({ draft }) => draft);
  const guarded = drafts.some(({ only }) => only !== null);
  const advances = advancesOf(messages);
  const counts = countsOf(messages);
  const parameters = new Parameters();
  const columns = columnsOf(parameters, messages);
  const { tenant_id, conversation_id, sender, dedupe } = columns;
  const copies = [parameters.add(oldest), parameters.add(newest)] as const;
  const known = `select from ${rowsOf({ tenant_id, conversation_id, dedupe })} i ${firstCopyOf(...copies)}`;
  const listening = parameters.ids([...new Set(advances.map(([, { tenantId }]) => tenantId))]);
  const condition = '(select unchanged from verdict)';
  const reached = {
    ...endsOf(parameters, advances),
    believed: parameters.ids(advances.map(([id]) => lastSeqOf(id))),
  };
  const inserted = inserting(columns, condition);
  const advanced = advancing(parameters, reached, `c.last_seq = i.believed and ${condition}`);
  const all = parameters.add(advances.length);
  const counted = counting(parameters, counts, condition);
  const audiences = () => parameters.texts(drafts.map(({ only }) => only));
  return {
    name: `log-store-if${counts.length > 0 ? '-counting' : ''}${guarded ? '-guarded' : ''}`,
    text: `with verdict as materialized (
        select not exists (${known})
          and not exists (
            select from webhooks where tenant_id = any(${listening}) and enabled and 'message.created' = any(events))
          ${guarded ? `and not exists (${refusedOf(tenant_id, conversation_id, sender, audiences())})` : ''} as unchanged),
      ${inserted},${advanced}${counted}
      select case when not unchanged then false
        when (select count(*) from advanced) = ${all} then true
        else conversations_have_moved() end as unchanged from verdict`,
    values: parameters.values,
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
