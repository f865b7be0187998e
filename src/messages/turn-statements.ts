import type { ApiKeyId, DialogueId, MessageId, TenantId } from '../common';
import type { Statement } from '../database';
import { DIALOGUE_COLUMNS, toDialogue, toMessage } from './rows';
import type {
  BranchMessage,
  Checkpoint,
  Dialogue,
  DialogueMessage,
  OrphanedReply,
  ReplyEnding,
  ReplyProgress,
  TurnDraft,
} from './records';

const IDEMPOTENCY_WINDOW = `interval '24 hours'`;
/** Longest branch that is read for a prompt; the context window ends it long before. */
const MAX_BRANCH_MESSAGES = 2_000;

/**
 * A turn is stored by these statements in one transaction and one round trip. Each sees what those before it wrote,
 * which is how a later one knows whether it has anything to do.
 */

/** Claims the key, or waits for who is claiming it now. A claim older than a day is taken over. */
export const claimKey = (draft: TurnDraft): Statement<void> => ({
  name: 'turn-claim-key',
  text: `insert into idempotency_keys as k (tenant_id, key, request_hash, message_id) values ($1, $2, $3, $4)
         on conflict (tenant_id, key) do update
           set request_hash = excluded.request_hash, message_id = excluded.message_id, created_at = now()
         where k.created_at < now() - ${IDEMPOTENCY_WINDOW}`,
  values: [draft.tenantId, draft.idempotency?.key, draft.idempotency?.requestHash, draft.replyId],
  map: () => undefined,
});

/** After the turn: who holds the key. A claim whose turn was refused is given back first. */
export const releaseKey = (draft: TurnDraft): Statement<void> => ({
  name: 'turn-release-key',
  text: `delete from idempotency_keys where tenant_id = $1 and key = $2 and message_id = $3
           and not exists (select 1 from dialogue_messages where id = $3)`,
  values: [draft.tenantId, draft.idempotency?.key, draft.replyId],
  map: () => undefined,
});

export const readKey = (draft: TurnDraft): Statement<{ replyId: MessageId; requestHash: string } | null> => ({
  name: 'turn-read-key',
  text: 'select message_id, request_hash from idempotency_keys where tenant_id = $1 and key = $2',
  values: [draft.tenantId, draft.idempotency?.key],
  map: ([row]) =>
    row ? { replyId: row.message_id as MessageId, requestHash: row.request_hash as string } : null,
});

/** Takes the session's name for the new dialogue, or waits for who is taking it now. */
export const claimSession = (draft: TurnDraft): Statement<void> => ({
  name: 'turn-claim-session',
  text: `insert into dialogue_sessions (tenant_id, user_id, assistant_id, name, dialogue_id)
         values ($1, $2, $3, $4, $5) on conflict do nothing`,
  values: [draft.tenantId, draft.userId, draft.assistantId, draft.session, draft.newDialogueId],
  map: () => undefined,
});

/** After the turn: a name whose turn was refused is given back. */
export const releaseSession = (draft: TurnDraft): Statement<void> => ({
  name: 'turn-release-session',
  text: `delete from dialogue_sessions where tenant_id = $1 and dialogue_id = $2
           and not exists (select 1 from dialogues where id = $2)`,
  values: [draft.tenantId, draft.newDialogueId],
  map: () => undefined,
});

/**
 * A new dialogue, its root, what was said before, the user's message and the empty reply, in one statement that reads nothing back but the
 * time: this is what stands between a client and its first event. Null when somebody else holds the key or the session's name.
 */
export const storeFirstTurn = (
  draft: TurnDraft,
): Statement<{ dialogue: Dialogue; message: DialogueMessage } | null> => ({
  name: 'turn-store-first',
  text: `with d as (
      insert into dialogues (id, tenant_id, user_id, assistant_id, version_id, model_service_id, name, created_by, updated_by)
      select $4, $2, $5, $6, $7, $8, $9, $10, $10
      where ($1::text is null or exists (
          select 1 from idempotency_keys where tenant_id = $2 and key = $1 and message_id = $3))
        and ($16::text is null or exists (
          select 1 from dialogue_sessions where tenant_id = $2 and user_id = $5 and assistant_id = $6 and name = $16
            and dialogue_id = $4))
      returning id, created_at),
    messages as (
      insert into dialogue_messages (id, tenant_id, dialogue_id, parent_id, role, content, status, user_id, created_by, model_service_id)
      select m.id, $2, d.id, m.parent_id, m.role, m.content, m.status, $5, $10, m.model_service_id
      from d cross join (
        values
          ($11::bigint, null::bigint, 'system', '', 'finished', null::bigint),
          ($12, coalesce($20::bigint, $11), 'user', $13, 'finished', null),
          ($3, $12, 'assistant', '', 'streaming', $8)
        union all
        select h.id, coalesce(lag(h.id) over (order by h.id), $11), h.role, h.content, 'finished', null
        from unnest($17::bigint[], $18::text[], $19::text[]) as h(id, role, content)) as m(id, parent_id, role, content, status, model_service_id)),
    progress as (
      insert into replies_in_progress (message_id, tenant_id, dialogue_id, incarnation, key_id, wire)
      select $3, $2, d.id, $14, $15, $21 from d)
    select (extract(epoch from created_at) * 1000)::float8 as created_ms from d`,
  values: [
    draft.idempotency?.key ?? null,
    draft.tenantId,
    draft.replyId,
    draft.newDialogueId,
    draft.userId,
    draft.assistantId,
    draft.versionId,
    draft.modelServiceId,
    draft.name,
    draft.createdBy,
    draft.rootId,
    draft.messageId,
    draft.content,
    draft.incarnation.toString(),
    draft.keyId,
    draft.session,
    draft.history.map(({ id }) => id),
    draft.history.map(({ role }) => role),
    draft.history.map(({ content }) => content),
    draft.history.at(-1)?.id ?? null,
    draft.wire,
  ],
  map: ([row]) => (row ? firstTurn(draft, new Date(row.created_ms as number)) : null),
});

/** The records as they were just stored. */
function firstTurn(draft: TurnDraft, createdAt: Date): { dialogue: Dialogue; message: DialogueMessage } {
  const { tenantId, userId, createdBy } = draft;
  return {
    dialogue: {
      id: draft.newDialogueId,
      tenantId,
      userId,
      assistantId: draft.assistantId,
      versionId: draft.versionId,
      modelServiceId: draft.modelServiceId,
      name: draft.name,
      closed: false,
      totalTokens: 0,
      credits: 0,
      createdBy,
      updatedBy: createdBy,
      createdAt,
      updatedAt: createdAt,
    },
    message: {
      id: draft.messageId,
      dialogueId: draft.newDialogueId,
      parentId: draft.history.at(-1)?.id ?? draft.rootId,
      role: 'user',
      content: draft.content,
      reasoning: '',
      status: 'finished',
      userId,
      createdBy,
      modelServiceId: null,
      promptTokens: 0,
      completionTokens: 0,
      totalTokens: 0,
      credits: 0,
      error: null,
      createdAt,
    },
  };
}

/** One turn at a time in a dialogue: two that answer the same newest message must not both see it free. */
export const lockDialogue = (draft: TurnDraft): Statement<boolean> => ({
  name: 'turn-lock-dialogue',
  text: 'select id from dialogues where tenant_id = $1 and id = $2 and ($3::text is null or user_id = $3) for update',
  values: [draft.tenantId, draft.dialogueId, draft.onlyUser],
  map: (rows) => rows.length > 0,
});

export type ParentState = 'free' | 'missing' | 'in-progress';

/** The parent that a turn of an existing dialogue gets: the named one, its newest reply if it is a user's, the newest message by default. */
const PARENT = `
  named as (
    select m.id, m.role, m.status from dialogue_messages m
    where m.tenant_id = $1 and m.dialogue_id = $2 and ($3::bigint is null or m.id = $3)
    order by m.id desc limit 1),
  parent as (
    select n.id, n.status from named n where n.role <> 'user'
    union all
    (select r.id, r.status from named n join dialogue_messages r on r.parent_id = n.id and r.tenant_id = $1
     where n.role = 'user' order by r.id desc limit 1))`;

export const readParent = (draft: TurnDraft): Statement<ParentState> => ({
  name: 'turn-read-parent',
  text: `with ${PARENT} select status from parent`,
  values: [draft.tenantId, draft.dialogueId, draft.parentId],
  map: ([row]) => (!row ? 'missing' : row.status === 'streaming' ? 'in-progress' : 'free'),
});

/** The user's message and the empty reply, under the parent if that is free. */
export const storeTurn = (
  draft: TurnDraft,
): Statement<{ dialogue: Dialogue; message: DialogueMessage } | null> => ({
  name: 'turn-store',
  text: `with ${PARENT},
    free as (select id from parent where status <> 'streaming'
      and exists (select 1 from dialogues where tenant_id = $1 and id = $2 and ($13::text is null or user_id = $13))
      and ($11::text is null or exists (
        select 1 from idempotency_keys where tenant_id = $1 and key = $11 and message_id = $5))),
    message as (
      insert into dialogue_messages (id, tenant_id, dialogue_id, parent_id, role, content, status, user_id, created_by)
      select $4, $1, $2, free.id, 'user', $6, 'finished', $7, $8 from free returning *),
    reply as (
      insert into dialogue_messages (id, tenant_id, dialogue_id, parent_id, role, content, status, user_id, created_by, model_service_id)
      select $5, $1, $2, message.id, 'assistant', '', 'streaming', $7, $8, $9 from message returning id),
    progress as (
      insert into replies_in_progress (message_id, tenant_id, dialogue_id, incarnation, key_id, wire)
      select reply.id, $1, $2, $10, $12, $14 from reply),
    dialogue as (
      update dialogues d set updated_at = now(), updated_by = $8, closed = false, model_service_id = $9
      from message where d.tenant_id = $1 and d.id = $2 returning d.*)
    select ${DIALOGUE_COLUMNS.map((column) => `dialogue.${column} as d_${column}`).join(', ')}, message.*
    from message, dialogue`,
  values: [
    draft.tenantId,
    draft.dialogueId,
    draft.parentId,
    draft.messageId,
    draft.replyId,
    draft.content,
    draft.userId,
    draft.createdBy,
    draft.modelServiceId,
    draft.incarnation.toString(),
    draft.idempotency?.key ?? null,
    draft.keyId,
    draft.onlyUser,
    draft.wire,
  ],
  map: ([row]) =>
    row
      ? {
          dialogue: toDialogue(row, 'd_'),
          message: toMessage(row),
        }
      : null,
});

/**
 * The turn of a dialogue that is also a one-to-one conversation with the assistant, begun on another wire: it is to be
 * told there. Stored with the turn, so that it is told even if this process dies now.
 */
export const tellConversation = (draft: TurnDraft): Statement<boolean> => ({
  name: 'turn-tell-conversation',
  text: `insert into reply_requests (message_id, tenant_id, conversation_id, assistant_id, sender, frame, reply_id)
         select $3, $1, l.conversation_id, l.assistant_id, d.user_id, $5, $4
         from conversation_dialogues l
         join conversations c on c.id = l.conversation_id and c.tenant_id = $1 and c.kind = 'single'
         join dialogues d on d.id = l.dialogue_id and d.tenant_id = $1
         where l.dialogue_id = $2 and l.tenant_id = $1
           and exists (select 1 from dialogue_messages where id = $4 and tenant_id = $1)
         returning 1`,
  values: [draft.tenantId, draft.dialogueId, draft.messageId, draft.replyId, draft.content],
  map: (rows) => rows.length > 0,
});

/** From the user's new message up to the root, as far as the context window can hold. Replies without text are left out. */
export const readBranch = (draft: TurnDraft): Statement<BranchMessage[]> => ({
  name: 'turn-read-branch',
  text: `with recursive branch as (
      select m.id, m.parent_id, m.role, m.content, 0::bigint as before, 1 as depth
      from dialogue_messages m where m.tenant_id = $1 and m.id = $2
      union all
      select p.id, p.parent_id, p.role, p.content, b.before + length(b.content), b.depth + 1
      from branch b join dialogue_messages p on p.id = b.parent_id and p.tenant_id = $1
      where b.before + length(b.content) <= $3 and b.depth < ${MAX_BRANCH_MESSAGES})
    select role, content from branch where content <> '' order by depth desc`,
  values: [draft.tenantId, draft.messageId, draft.maxHistoryChars],
  map: (rows) =>
    rows.map((row) => ({ role: row.role as BranchMessage['role'], content: row.content as string })),
});

/**
 * The one statement that ends a reply. Changes nothing when somebody else has ended it before, except that the node
 * that wrote it may still replace a sweeper's `interrupted`.
 */
export const endReply = (ending: ReplyEnding): Statement<boolean> => ({
  name: 'reply-end',
  text: `with old as (
      select id, total_tokens, credits from dialogue_messages
      where tenant_id = $1 and id = $2 and (status = 'streaming' or ($3 and status = 'interrupted')) for update),
    message as (
      update dialogue_messages m set status = $4, content = $5, reasoning = $6, prompt_tokens = $7, completion_tokens = $8,
        total_tokens = $9, tokens_estimated = $10, credits = $11, error_code = $12, error_message = $13, ended_at = now()
      from old where m.id = old.id returning m.id),
    dialogue as (
      update dialogues d set total_tokens = d.total_tokens + $9 - old.total_tokens, credits = d.credits + $11::numeric - old.credits,
        updated_at = now(), updated_by = $14
      from old where d.tenant_id = $1 and d.id = $15),
    progress as (delete from replies_in_progress where message_id = $2 and tenant_id = $1),
    checkpoints as (delete from reply_checkpoints where message_id = $2 and tenant_id = $1)
    select id from message`,
  values: [
    ending.tenantId,
    ending.replyId,
    ending.byOwner,
    ending.status,
    ending.content,
    ending.reasoning,
    ending.promptTokens,
    ending.completionTokens,
    ending.totalTokens,
    ending.estimated,
    ending.credits,
    ending.error?.code ?? null,
    ending.error?.message ?? null,
    ending.updatedBy,
    ending.dialogueId,
  ],
  map: (rows) => rows.length > 0,
});

/** Part by part: what was said before is not written again. A part whose commit was in doubt is written over. */
export const storeCheckpoints = (checkpoints: readonly Checkpoint[]): Statement<void> => ({
  name: 'reply-checkpoint',
  // A reply that somebody else ended meanwhile gets no more checkpoints: nobody would clear them away.
  text: `insert into reply_checkpoints (message_id, part, tenant_id, content, reasoning)
         select c.* from unnest($1::bigint[], $2::int[], $3::bigint[], $4::text[], $5::text[])
           as c(message_id, part, tenant_id, content, reasoning)
         where exists (select 1 from replies_in_progress p where p.message_id = c.message_id)
         on conflict (message_id, part) do update set content = excluded.content, reasoning = excluded.reasoning`,
  values: [
    checkpoints.map(({ replyId }) => replyId),
    checkpoints.map(({ part }) => part),
    checkpoints.map(({ tenantId }) => tenantId),
    checkpoints.map(({ content }) => content),
    checkpoints.map(({ reasoning }) => reasoning),
  ],
  map: () => undefined,
});

/** A tool that was called while a reply was written, and what it gave. */
export const storeStep = (step: {
  readonly tenantId: TenantId;
  readonly replyId: MessageId;
  readonly number: number;
  readonly callId: string;
  readonly tool: string;
  readonly args: string;
  readonly content: string;
  readonly isError: boolean;
  readonly durationMs: number;
}): Statement<void> => ({
  name: 'reply-step',
  text: `insert into reply_steps (tenant_id, message_id, number, call_id, tool, arguments, result, is_error, duration_ms)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
  values: [
    step.tenantId,
    step.replyId,
    step.number,
    storable(step.callId),
    storable(step.tool),
    storable(step.args),
    storable(step.content),
    step.isError,
    step.durationMs,
  ],
  map: () => undefined,
});

/** What a model wrote may hold what Postgres' text does not. */
const storable = (text: string): string => text.toWellFormed().replaceAll('\0', '\uFFFD');

/** Replies of this node that some node was asked to stop. */
export const stopRequested = (incarnation: bigint): Statement<MessageId[]> => ({
  name: 'reply-stop-requested',
  text: 'select message_id from replies_in_progress where incarnation = $1 and stop_requested',
  values: [incarnation.toString()],
  map: (rows) => rows.map((row) => row.message_id as MessageId),
});

/** Asks whoever writes the dialogue's replies to stop, and `close`s it or leaves it as it is. Null: no such dialogue (of `onlyUser`). */
export const stopDialogue = (
  tenantId: TenantId,
  id: DialogueId,
  { close, onlyUser }: { readonly close: boolean; readonly onlyUser: string | null },
): Statement<MessageId[] | null> => ({
  name: 'dialogue-stop',
  text: `with stopped as (
      update dialogues set closed = closed or $3
      where tenant_id = $1 and id = $2 and ($4::text is null or user_id = $4) returning id),
    asked as (
      update replies_in_progress p set stop_requested = true from stopped
      where p.tenant_id = $1 and p.dialogue_id = stopped.id returning p.message_id)
    select (select array_agg(message_id::text) from asked) as replies from stopped`,
  values: [tenantId, id, close, onlyUser],
  map: ([row]) => (row ? ((row.replies ?? []) as MessageId[]) : null),
});

/** What is being written in a dialogue now, oldest first. */
export const repliesInProgress = (tenantId: TenantId, id: DialogueId): Statement<MessageId[]> => ({
  name: 'dialogue-in-progress',
  text: 'select message_id from replies_in_progress where tenant_id = $1 and dialogue_id = $2 order by message_id',
  values: [tenantId, id],
  map: (rows) => rows.map((row) => row.message_id as MessageId),
});

export const replyProgress = (tenantId: TenantId, replyId: MessageId): Statement<ReplyProgress | null> => ({
  name: 'reply-progress',
  text: 'select wire, key_id from replies_in_progress where tenant_id = $1 and message_id = $2',
  values: [tenantId, replyId],
  map: ([row]) => (row ? { wire: row.wire as string, keyId: row.key_id as ApiKeyId | null } : null),
});

/** Replies whose node has not been heard of for `leaseMs`. */
export const orphanedReplies = (leaseMs: number, limit: number): Statement<OrphanedReply[]> => ({
  name: 'reply-orphans',
  text: `select p.tenant_id, p.message_id from replies_in_progress p
         where not exists (select 1 from nodes n where n.incarnation = p.incarnation
                           and n.heartbeat_at > now() - make_interval(secs => $1 / 1000.0))
         order by p.message_id limit $2`,
  values: [leaseMs, limit],
  map: (rows) =>
    rows.map((row) => ({ tenantId: row.tenant_id as TenantId, replyId: row.message_id as MessageId })),
});

/** Keys past their window; a thousand at a time, so that no delete is long. */
export const pruneKeys: Statement<number> = {
  name: 'idempotency-prune',
  text: `delete from idempotency_keys where ctid in (
           select ctid from idempotency_keys where created_at < now() - ${IDEMPOTENCY_WINDOW} limit 1000) returning 1`,
  values: [],
  map: (rows) => rows.length,
};
