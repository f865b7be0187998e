import { Injectable } from '@nestjs/common';
import type { EntityManager } from 'typeorm';
import {
  AppError,
  IdGenerator,
  timeOfId,
  type AssistantId,
  type ConversationId,
  type DialogueId,
  type MessageId,
  type TenantId,
} from '../common';
import { Database, tenantScope, type Row, type Statement } from '../database';
import { SENT_BY_MEMBER } from './append-statements';
import { ASSISTANT_PREFIX, sideOf, singleKey } from './conversation-records';
import type {
  Conversation,
  ConversationKind,
  Gap,
  LogEntry,
  Member,
  MemberRole,
  Side,
} from './conversation-records';
import { toEntry } from './message-log';

/** A change of who is in a group: an entry of its log, made with the change in one transaction. */
export interface MembershipEntry {
  readonly groupId: string;
  readonly userId: string;
  readonly client: string;
  /** JSON text, as for messages. */
  readonly frame: string;
}

export interface MembershipChange {
  readonly conversationId: ConversationId;
  /** Null when nothing changed: joined before, or not in. */
  readonly entry: LogEntry | null;
  readonly role: MemberRole | null;
  /** Of one who comes back: what was said meanwhile. */
  readonly gap?: Gap;
}

export interface JoinPolicy {
  /** False: the group must exist (the tenant's groups are managed by its server). */
  readonly mayCreate: boolean;
  readonly maxMembers: number;
  readonly role?: MemberRole;
}

export interface GroupInput {
  readonly name?: string;
  readonly attributes?: Readonly<Record<string, unknown>>;
  readonly maxMembers?: number | null;
  readonly muted?: boolean;
}

export interface MemberInput {
  readonly role?: MemberRole;
  readonly mutedUntil?: Date | null;
}

/** Conversations and who is in them. What is said in them is the {@link MessageLog}'s. */
@Injectable()
export class ConversationsRepository {
  constructor(
    private readonly database: Database,
    private readonly ids: IdGenerator,
  ) {}

  /** The one-to-one conversation of two users, made when it is not there yet. Either may be an assistant's id under the prefix. */
  async single(
    tenantId: TenantId,
    a: string,
    b: string,
    assistantId: AssistantId | null,
  ): Promise<ConversationId> {
    const key = singleKey(a, b);
    const found = await this.database.one(tenantScope(tenantId), findId(tenantId, 'single', key));
    if (found) return found;
    const members = [
      { userId: a, side: sideOf(a, b) },
      ...(a === b ? [] : [{ userId: b, side: sideOf(b, a) }]),
    ].filter(({ userId }) => !userId.startsWith(ASSISTANT_PREFIX));
    const [, id] = await this.database.run(tenantScope(tenantId), [
      createSingle(this.ids.next(), tenantId, key, assistantId, members),
      findId(tenantId, 'single', key),
    ]);
    if (!id) throw new AppError('INTERNAL');
    return id;
  }

  findGroup(tenantId: TenantId, groupId: string): Promise<Conversation | null> {
    return this.database.one(tenantScope(tenantId), findConversation(tenantId, groupId, null));
  }

  find(tenantId: TenantId, id: ConversationId): Promise<Conversation | null> {
    return this.database.one(tenantScope(tenantId), findConversation(tenantId, null, id));
  }

  /** Null: no such group and none may be made. Throws CONFLICT when the group is full. */
  join(tenantId: TenantId, entry: MembershipEntry, policy: JoinPolicy): Promise<MembershipChange | null> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      let group = await lockGroup(tx, tenantId, entry.groupId);
      let founder = false;
      if (!group) {
        if (!policy.mayCreate) return null;
        await insertGroup(tx, this.ids.next(), tenantId, entry.groupId, {});
        group = (await lockGroup(tx, tenantId, entry.groupId))!;
        founder = group.memberCount === 0 && group.lastSeq === 0;
      }
      const [member] = await rows(tx, MEMBER, [group.id, entry.userId]);
      if (member && member.until_seq === null)
        return { conversationId: group.id, entry: null, role: member.role as MemberRole };
      if (group.memberCount >= (group.maxMembers ?? policy.maxMembers)) {
        throw new AppError('CONFLICT', { message: 'The group is full.' });
      }
      const role = policy.role ?? (founder ? 'owner' : 'member');
      const joined = await this.enter(tx, group, entry, 1);
      const gap = member && (await this.keepInterval(tx, tenantId, group.id, entry.userId, joined.seq - 1));
      await tx.query(
        `insert into conversation_members as m
           (conversation_id, user_id, tenant_id, role, from_seq, read_seq, read_own)
         values ($1, $2, $3, $4, $5, $6, (select sent from conversation_senders where conversation_id = $1 and sender = $2))
         on conflict (conversation_id, user_id) do update set role = excluded.role, from_seq = excluded.from_seq,
           until_seq = null, read_seq = excluded.read_seq, read_own = excluded.read_own, joined_at = now(),
           rejoined = true`,
        [group.id, entry.userId, tenantId, role, joined.seq - 1, joined.seq],
      );
      return { conversationId: group.id, entry: joined, role, ...(gap && { gap }) };
    });
  }

  /** Null: no such group. The oldest admin, else the oldest member, takes a leaving owner's place. */
  leave(tenantId: TenantId, entry: MembershipEntry): Promise<MembershipChange | null> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const group = await lockGroup(tx, tenantId, entry.groupId);
      if (!group) return null;
      const [member] = await rows(tx, MEMBER, [group.id, entry.userId]);
      if (!member || member.until_seq !== null) return { conversationId: group.id, entry: null, role: null };
      const left = await this.enter(tx, group, entry, -1);
      await tx.query(
        `update conversation_members set until_seq = $3, role = 'member' where conversation_id = $1 and user_id = $2`,
        [group.id, entry.userId, left.seq],
      );
      if (member.role === 'owner') await promoteOldest(tx, group.id);
      return { conversationId: group.id, entry: left, role: null };
    });
  }

  /** CONFLICT when the tenant has a group of that id. */
  async createGroup(tenantId: TenantId, groupId: string, input: GroupInput): Promise<Conversation> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      if (!(await insertGroup(tx, this.ids.next(), tenantId, groupId, input))) {
        throw new AppError('CONFLICT', { message: 'groupId: is already taken in this tenant' });
      }
      await groupChanged(tx, tenantId, `group:${this.ids.next()}`, { groupId, change: 'created' });
      return (await lockGroup(tx, tenantId, groupId))!;
    });
  }

  async updateGroup(tenantId: TenantId, groupId: string, input: GroupInput): Promise<Conversation> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const group = await lockGroup(tx, tenantId, groupId);
      if (!group) throw new AppError('NOT_FOUND');
      await tx.query(
        `update conversations set name = $2, attributes = $3, max_members = $4, muted = $5 where id = $1`,
        [
          group.id,
          input.name ?? group.name,
          JSON.stringify(input.attributes ?? group.attributes),
          input.maxMembers === undefined ? group.maxMembers : input.maxMembers,
          input.muted ?? group.muted,
        ],
      );
      await groupChanged(tx, tenantId, `${group.id}:${this.ids.next()}`, { groupId, change: 'updated' });
      return (await lockGroup(tx, tenantId, groupId))!;
    });
  }

  /** Its log stays readable by conversation id; its members are out, and the id is free again. */
  async deleteGroup(
    tenantId: TenantId,
    groupId: string,
  ): Promise<{ group: Conversation; userIds: string[] }> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const group = await lockGroup(tx, tenantId, groupId);
      if (!group) throw new AppError('NOT_FOUND');
      const out = await rows(
        tx,
        `update conversation_members set until_seq = $2 where conversation_id = $1 and until_seq is null returning user_id`,
        [group.id, group.lastSeq],
      );
      await tx.query(
        `update conversations set key = $2, member_count = 0, deleted_at = now() where id = $1`,
        [group.id, `${groupId}\n${group.id}`],
      );
      await groupChanged(tx, tenantId, `${group.id}:${this.ids.next()}`, { groupId, change: 'deleted' });
      return { group, userIds: out.map((row) => row.user_id as string) };
    });
  }

  /** Which of these groups the user is in. */
  async groupsOf(tenantId: TenantId, userId: string, groupIds: readonly string[]): Promise<Set<string>> {
    if (groupIds.length === 0) return new Set();
    return this.database.one(tenantScope(tenantId), groupsOf(tenantId, userId, groupIds));
  }

  listGroups(tenantId: TenantId, after: string, limit: number): Promise<Conversation[]> {
    return this.database.one(tenantScope(tenantId), listGroups(tenantId, after, limit));
  }

  /** By user id. */
  members(tenantId: TenantId, id: ConversationId, after: string, limit: number): Promise<Member[]> {
    return this.database.one(tenantScope(tenantId), listMembers(tenantId, id, after, limit));
  }

  member(tenantId: TenantId, id: ConversationId, userId: string): Promise<Member | null> {
    return this.database.one(tenantScope(tenantId), findMember(tenantId, id, userId));
  }

  /** NOT_FOUND when not in. A new owner makes the old one an admin. */
  async updateMember(
    tenantId: TenantId,
    groupId: string,
    userId: string,
    input: MemberInput,
  ): Promise<Member> {
    const id = await this.database.transaction(tenantScope(tenantId), async (tx) => {
      const group = await lockGroup(tx, tenantId, groupId);
      const [member] = group ? await rows(tx, MEMBER, [group.id, userId]) : [];
      if (!group || !member || member.until_seq !== null) throw new AppError('NOT_FOUND');
      if (input.role === 'owner') {
        await tx.query(
          `update conversation_members set role = 'admin' where conversation_id = $1 and role = 'owner' and user_id <> $2`,
          [group.id, userId],
        );
      } else if (input.role && member.role === 'owner') {
        throw new AppError('CONFLICT', { message: 'role: make somebody else the owner first' });
      }
      await tx.query(
        `update conversation_members set role = $3, muted_until = $4 where conversation_id = $1 and user_id = $2`,
        [
          group.id,
          userId,
          input.role ?? member.role,
          input.mutedUntil === undefined ? member.muted_until : input.mutedUntil,
        ],
      );
      await groupChanged(tx, tenantId, `${group.id}:${this.ids.next()}`, {
        groupId,
        change: 'member',
        userId,
      });
      return group.id;
    });
    return (await this.member(tenantId, id, userId))!;
  }

  /** Grows only, and not past the end. Null: not in that conversation; else where it now stands, and whether it moved. */
  markRead(
    tenantId: TenantId,
    id: ConversationId,
    userId: string,
    seq: number,
  ): Promise<{ readSeq: number; moved: boolean } | null> {
    return this.database.one(tenantScope(tenantId), markRead(tenantId, id, userId, seq));
  }

  /**
   * The message becomes a tombstone: `strip` makes its frame from the old one. `by` null is the tenant's server.
   * NOT_FOUND, FORBIDDEN (not the sender's, nor by an admin of the group), CONFLICT (the window is over).
   */
  recall(
    tenantId: TenantId,
    id: ConversationId,
    seq: number,
    by: string | null,
    windowMs: number,
    strip: (frame: string) => string,
  ): Promise<LogEntry> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const [row] = await rows(
        tx,
        `select id, seq, conversation_id, sender, client, frame, recalled_at is not null as recalled
         from messages where tenant_id = $1 and conversation_id = $2 and seq = $3 for update`,
        [tenantId, id, seq],
      );
      if (!row) throw new AppError('NOT_FOUND');
      const entry = toEntry(row);
      if (entry.recalled) return entry;
      if (by !== null) {
        const [member] = await rows(tx, MEMBER, [id, by]);
        if (!member || member.until_seq !== null) throw new AppError('NOT_FOUND');
        if (entry.sender !== by && member.role === 'member') throw new AppError('FORBIDDEN');
        if (Date.now() - timeOfId(entry.id) > windowMs)
          throw new AppError('CONFLICT', { message: 'That message is too old to be recalled.' });
      }
      const frame = strip(entry.frame);
      await tx.query(
        `update messages set recalled_at = now(), frame = $4
         where tenant_id = $1 and conversation_id = $2 and seq = $3 and id = $5`,
        [tenantId, id, seq, frame, entry.id],
      );
      return { ...entry, frame, recalled: true };
    });
  }

  /** The dialogue in which an assistant's side of this conversation is kept. */
  async linkDialogue(
    tenantId: TenantId,
    id: ConversationId,
    assistantId: AssistantId,
    dialogueId: DialogueId,
  ): Promise<void> {
    await this.database.one(tenantScope(tenantId), {
      name: 'conversation-dialogue-link',
      text: `insert into conversation_dialogues (conversation_id, assistant_id, tenant_id, dialogue_id) values ($2, $3, $1, $4)
             on conflict (conversation_id, assistant_id) do update set dialogue_id = excluded.dialogue_id`,
      values: [tenantId, id, assistantId, dialogueId],
      map: () => undefined,
    });
  }

  dialogueOf(tenantId: TenantId, id: ConversationId, assistantId: AssistantId): Promise<DialogueId | null> {
    return this.database.one(tenantScope(tenantId), {
      name: 'conversation-dialogue-of',
      text: `select dialogue_id from conversation_dialogues
             where tenant_id = $1 and conversation_id = $2 and assistant_id = $3`,
      values: [tenantId, id, assistantId],
      map: ([row]) => (row?.dialogue_id ?? null) as DialogueId | null,
    });
  }

  /** Of a membership that has ended and begins anew: its devices may not have all of it yet. */
  private async keepInterval(
    tx: EntityManager,
    tenantId: TenantId,
    id: ConversationId,
    userId: string,
    until: number,
  ): Promise<Gap> {
    const [row] = await rows(
      tx,
      `insert into past_memberships (conversation_id, user_id, tenant_id, from_seq, until_seq)
       select conversation_id, user_id, tenant_id, from_seq, until_seq from conversation_members
       where tenant_id = $1 and conversation_id = $2 and user_id = $3
       returning until_seq`,
      [tenantId, id, userId],
    );
    return { after: Number(row!.until_seq), until };
  }

  /** An entry of the log under the group's lock, and the change told to who asked for it. */
  private async enter(
    tx: EntityManager,
    group: Conversation,
    { groupId, userId, client, frame }: MembershipEntry,
    change: 1 | -1,
  ): Promise<LogEntry> {
    const id = this.ids.next<MessageId>();
    const seq = group.lastSeq + 1;
    await tx.query(
      `insert into messages (id, tenant_id, conversation_id, seq, sender, client, frame)
       values ($1, $2, $3, $4, $5, $6, $7)`,
      [id, group.tenantId, group.id, seq, userId, client, frame],
    );
    await tx.query(
      `insert into conversation_senders as s (conversation_id, sender, tenant_id, sent) values ($1, $2, $3, 1)
       on conflict (conversation_id, sender) do update set sent = s.sent + 1`,
      [group.id, userId, group.tenantId],
    );
    await tx.query(
      `update conversations set last_seq = $2, last_id = greatest(last_id, $3), member_count = member_count + $4 where id = $1`,
      [group.id, seq, id, change],
    );
    await groupChanged(tx, group.tenantId, id, {
      groupId,
      change: change === 1 ? 'joined' : 'left',
      userId,
      seq,
    });
    return { id, seq, conversationId: group.id, sender: userId, client, frame, recalled: false };
  }
}

const MEMBER = `select role, until_seq, muted_until from conversation_members where conversation_id = $1 and user_id = $2`;

function rows(tx: EntityManager, sql: string, values: unknown[]): Promise<Row[]> {
  return tx.query<unknown>(sql, values).then((result) => {
    // TypeORM answers an UPDATE … RETURNING with [rows, count].
    const list = result as unknown[];
    return (list.length === 2 && Array.isArray(list[0]) ? list[0] : list) as Row[];
  });
}

async function groupChanged(
  tx: EntityManager,
  tenantId: TenantId,
  eventId: string,
  payload: Record<string, unknown>,
): Promise<void> {
  await tx.query(
    `insert into webhook_deliveries (webhook_id, tenant_id, event, event_id, payload)
     select id, tenant_id, 'group.changed', $2, $3 from webhooks
     where tenant_id = $1 and enabled and 'group.changed' = any(events)`,
    [tenantId, eventId, JSON.stringify(payload)],
  );
}

async function lockGroup(
  tx: EntityManager,
  tenantId: TenantId,
  groupId: string,
): Promise<Conversation | null> {
  const [row] = await rows(
    tx,
    `select ${CONVERSATION_COLUMNS} from conversations where tenant_id = $1 and kind = 'group' and key = $2 for update`,
    [tenantId, groupId],
  );
  return row ? toConversation(row) : null;
}

async function insertGroup(
  tx: EntityManager,
  id: ConversationId,
  tenantId: TenantId,
  groupId: string,
  { name = '', attributes = {}, maxMembers = null, muted = false }: GroupInput,
): Promise<boolean> {
  const made = await rows(
    tx,
    `insert into conversations (id, tenant_id, kind, key, name, attributes, max_members, muted)
     values ($1, $2, 'group', $3, $4, $5, $6, $7) on conflict do nothing returning id`,
    [id, tenantId, groupId, name, JSON.stringify(attributes), maxMembers, muted],
  );
  return made.length > 0;
}

async function promoteOldest(tx: EntityManager, id: ConversationId): Promise<void> {
  await tx.query(
    `update conversation_members set role = 'owner' where conversation_id = $1 and user_id = (
       select user_id from conversation_members where conversation_id = $1 and until_seq is null
       order by role <> 'admin', joined_at, user_id limit 1)`,
    [id],
  );
}

const findId = (
  tenantId: TenantId,
  kind: ConversationKind,
  key: string,
): Statement<ConversationId | null> => ({
  name: 'conversation-find-id',
  text: 'select id from conversations where tenant_id = $1 and kind = $2 and key = $3',
  values: [tenantId, kind, key],
  map: ([row]) => (row ? (row.id as ConversationId) : null),
});

const createSingle = (
  id: ConversationId,
  tenantId: TenantId,
  key: string,
  assistantId: AssistantId | null,
  members: readonly { readonly userId: string; readonly side: Side }[],
): Statement<void> => ({
  name: 'conversation-create-single',
  text: `with made as (
      insert into conversations (id, tenant_id, kind, key, assistant_id, member_count)
      values ($1, $2, 'single', $3, $4, cardinality($5::text[]))
      on conflict (key, tenant_id, kind) do nothing returning id)
    insert into conversation_members (conversation_id, user_id, tenant_id, side)
    select made.id, u, $2, side from made, unnest($5::text[], $6::smallint[]) as m(u, side)`,
  values: [
    id,
    tenantId,
    key,
    assistantId,
    members.map(({ userId }) => userId),
    members.map(({ side }) => side),
  ],
  map: () => undefined,
});

const CONVERSATION_COLUMNS =
  'id, tenant_id, kind, key, name, attributes, max_members, muted, assistant_id, member_count, last_seq, created_at';

const findConversation = (
  tenantId: TenantId,
  groupId: string | null,
  id: ConversationId | null,
): Statement<Conversation | null> => ({
  name: groupId === null ? 'conversation-find' : 'conversation-find-group',
  text:
    groupId === null
      ? `select ${CONVERSATION_COLUMNS} from conversations where tenant_id = $1 and id = $2`
      : `select ${CONVERSATION_COLUMNS} from conversations where tenant_id = $1 and kind = 'group' and key = $2`,
  values: [tenantId, groupId ?? id],
  map: ([row]) => (row ? toConversation(row) : null),
});

const listGroups = (tenantId: TenantId, after: string, limit: number): Statement<Conversation[]> => ({
  name: 'conversation-groups',
  text: `select ${CONVERSATION_COLUMNS} from conversations
         where tenant_id = $1 and kind = 'group' and key > $2 and deleted_at is null order by key limit $3`,
  values: [tenantId, after, limit],
  map: (all) => all.map(toConversation),
});

const groupsOf = (
  tenantId: TenantId,
  userId: string,
  groupIds: readonly string[],
): Statement<Set<string>> => ({
  name: 'conversation-groups-of',
  text: `select c.key from conversations c join conversation_members m on m.conversation_id = c.id
         where c.tenant_id = $1 and c.kind = 'group' and c.key = any($3::text[]) and m.user_id = $2 and m.until_seq is null`,
  values: [tenantId, userId, groupIds],
  map: (all) => new Set(all.map((row) => row.key as string)),
});

const MEMBER_COLUMNS = 'user_id, role, muted_until, joined_at';

const listMembers = (
  tenantId: TenantId,
  id: ConversationId,
  after: string,
  limit: number,
): Statement<Member[]> => ({
  name: 'conversation-members',
  text: `select ${MEMBER_COLUMNS} from conversation_members
         where tenant_id = $1 and conversation_id = $2 and until_seq is null and user_id > $3 order by user_id limit $4`,
  values: [tenantId, id, after, limit],
  map: (all) => all.map(toMember),
});

const findMember = (tenantId: TenantId, id: ConversationId, userId: string): Statement<Member | null> => ({
  name: 'conversation-member',
  text: `select ${MEMBER_COLUMNS} from conversation_members
         where tenant_id = $1 and conversation_id = $2 and user_id = $3 and until_seq is null`,
  values: [tenantId, id, userId],
  map: ([row]) => (row ? toMember(row) : null),
});

/** `read_own`: how many of the messages up to there are the reader's own, so that unread is a subtraction. */
const markRead = (
  tenantId: TenantId,
  id: ConversationId,
  userId: string,
  seq: number,
): Statement<{ readSeq: number; moved: boolean } | null> => ({
  name: 'conversation-read',
  text: `with standing as (
      select m.conversation_id, m.user_id, m.read_seq, least($4, c.last_seq) as target, c.last_seq,
        ${SENT_BY_MEMBER} as sent
      from conversation_members m join conversations c on c.id = m.conversation_id
      where m.tenant_id = $1 and m.conversation_id = $2 and m.user_id = $3 and m.until_seq is null
      for update of m),
    moved as (
      update conversation_members m set read_seq = s.target,
        read_own = s.sent - (select count(*) from messages o
             where o.tenant_id = $1 and o.conversation_id = $2 and o.seq > s.target and o.sender = $3)
      from standing s
      where m.conversation_id = s.conversation_id and m.user_id = s.user_id and s.target > s.read_seq
      returning m.read_seq)
    select coalesce((select read_seq from moved), s.read_seq) as read_seq, exists (select 1 from moved) as moved
    from standing s`,
  values: [tenantId, id, userId, seq],
  map: ([row]) => (row ? { readSeq: Number(row.read_seq), moved: row.moved as boolean } : null),
});

function toConversation(row: Row): Conversation {
  return {
    id: row.id as ConversationId,
    tenantId: row.tenant_id as TenantId,
    kind: row.kind as ConversationKind,
    key: row.key as string,
    name: row.name as string,
    attributes: row.attributes as Record<string, unknown>,
    maxMembers: row.max_members as number | null,
    muted: row.muted as boolean,
    assistantId: row.assistant_id as AssistantId | null,
    memberCount: row.member_count as number,
    lastSeq: Number(row.last_seq),
    createdAt: row.created_at as Date,
  };
}

function toMember(row: Row): Member {
  return {
    userId: row.user_id as string,
    role: row.role as MemberRole,
    mutedUntil: row.muted_until as Date | null,
    joinedAt: row.joined_at as Date,
  };
}
