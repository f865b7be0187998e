import { Injectable } from '@nestjs/common';
import type { EntityManager } from 'typeorm';
import {
  AppError,
  IdGenerator,
  parseExact,
  timeOfId,
  type AssistantId,
  type ConversationId,
  type DialogueId,
  type MessageId,
  type TenantId,
} from '../common';
import { Database, idArray, tenantScope, textArray, type Row, type Statement } from '../database';
import { SENT_BY_MEMBER } from './append-statements';
import { ASSISTANT_PREFIX, sideOf, singleKey } from './conversation-records';
import type {
  Conversation,
  ConversationKind,
  Gap,
  LogEntry,
  Member,
  MemberRole,
} from './conversation-records';
import { enterAll, type Join, type Joined } from './group-joins';
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

export interface GroupPage {
  readonly groups: readonly Conversation[];
  readonly hasMore: boolean;
}

/** Of many at once: an entry for each who was not in. */
export interface MembershipChanges {
  readonly conversationId: ConversationId;
  readonly joined: readonly Joined[];
  readonly memberCount: number;
}

export interface JoinPolicy {
  /** False: the group must exist (the tenant's groups are managed by its server). */
  readonly mayCreate: boolean;
  readonly maxMembers: number;
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
    const [id] = await this.singles(tenantId, a, [b], assistantId);
    return id!;
  }

  /** One user's with each of many others, in their order. */
  async singles(
    tenantId: TenantId,
    a: string,
    others: readonly string[],
    assistantId: AssistantId | null = null,
  ): Promise<ConversationId[]> {
    const keys = others.map((b) => singleKey(a, b));
    let found = await this.database.one(tenantScope(tenantId), findSingles(tenantId, keys));
    const missing = others.filter((_, index) => !found.has(keys[index]!));
    if (missing.length > 0) {
      const made = missing.map((b) => ({ id: this.ids.next<ConversationId>(), key: singleKey(a, b), a, b }));
      [, found] = await this.database.run(tenantScope(tenantId), [
        createSingles(tenantId, assistantId, made),
        findSingles(tenantId, keys),
      ]);
    }
    return keys.map((key) => {
      const id = found.get(key);
      if (!id) throw new AppError('INTERNAL');
      return id;
    });
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
      const role = founder ? 'owner' : 'member';
      const [joined] = await this.enterAll(tx, group, entry.groupId, [{ ...entry, role }], policy.maxMembers);
      return { conversationId: group.id, role, ...joined! };
    });
  }

  /** All of them or, where the group has not enough room, none: CONFLICT. Null: no such group. Who is in stays as they are. */
  joinAll(
    tenantId: TenantId,
    groupId: string,
    joins: readonly Join[],
    maxMembers: number,
  ): Promise<MembershipChanges | null> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const group = await lockGroup(tx, tenantId, groupId);
      if (!group) return null;
      const present = await rows(
        tx,
        `select user_id from conversation_members
         where tenant_id = $1 and conversation_id = $2 and user_id = any($3::text[]) and until_seq is null`,
        [tenantId, group.id, textArray(joins.map(({ userId }) => userId))],
      );
      const isIn = new Set(present.map((row) => row.user_id as string));
      const news = joins.filter(({ userId }) => !isIn.has(userId));
      const joined = await this.enterAll(tx, group, groupId, news, maxMembers);
      return {
        conversationId: group.id,
        joined,
        memberCount: group.memberCount + joined.length,
      };
    });
  }

  /** Null: no such group. The oldest admin, else the oldest member, takes a leaving owner's place. */
  leave(tenantId: TenantId, entry: MembershipEntry): Promise<MembershipChange | null> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const group = await lockGroup(tx, tenantId, entry.groupId);
      if (!group) return null;
      const [member] = await rows(tx, MEMBER, [group.id, entry.userId]);
      if (!member || member.until_seq !== null) return { conversationId: group.id, entry: null, role: null };
      const left = await this.exit(tx, group, entry);
      await tx.query(
        `update conversation_members set until_seq = $3, role = 'member' where conversation_id = $1 and user_id = $2`,
        [group.id, entry.userId, left.seq],
      );
      if (member.role === 'owner') await promoteOldest(tx, group.id);
      return { conversationId: group.id, entry: left, role: null };
    });
  }

  /** With its first members, or not at all. CONFLICT when the tenant has a group of that id, or there are too many. */
  async createGroup(
    tenantId: TenantId,
    groupId: string,
    input: GroupInput,
    joins: readonly Join[],
    maxMembers: number,
  ): Promise<{ readonly group: Conversation; readonly joined: readonly Joined[] }> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      if (!(await insertGroup(tx, this.ids.next(), tenantId, groupId, input))) {
        throw new AppError('CONFLICT', { message: 'groupId: is already taken in this tenant' });
      }
      await groupChanged(tx, tenantId, `group:${this.ids.next()}`, { groupId, change: 'created' });
      const empty = (await lockGroup(tx, tenantId, groupId))!;
      const joined = await this.enterAll(tx, empty, groupId, joins, maxMembers);
      return { group: (await lockGroup(tx, tenantId, groupId))!, joined };
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

  /** By id; at most `limit`, and some 256 KiB of attributes, but one at least. */
  listGroups(tenantId: TenantId, after: string, limit: number): Promise<GroupPage> {
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

  /** Under the group's lock. CONFLICT where it has not enough room. */
  private enterAll(
    tx: EntityManager,
    group: Conversation,
    groupId: string,
    joins: readonly Join[],
    maxMembers: number,
  ): Promise<Joined[]> {
    if (joins.length > 0 && group.memberCount + joins.length > (group.maxMembers ?? maxMembers))
      throw new AppError('CONFLICT', { message: 'The group is full.' });
    return enterAll(tx, group, groupId, joins, () => this.ids.next());
  }

  /** A leave's entry of the log under the group's lock, and the change told to who asked for it. */
  private async exit(
    tx: EntityManager,
    group: Conversation,
    { groupId, userId, client, frame }: MembershipEntry,
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
      `update conversations set last_seq = $2, last_id = greatest(last_id, $3), member_count = member_count - 1 where id = $1`,
      [group.id, seq, id],
    );
    await groupChanged(tx, group.tenantId, id, { groupId, change: 'left', userId, seq });
    return { id, seq, conversationId: group.id, sender: userId, client, frame, recalled: false };
  }
}

/** Of attributes: of large ones a page holds few groups. */
const MAX_PAGE_CHARS = 262_144;
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
       order by role <> 'admin', joined_at, from_seq limit 1)`,
    [id],
  );
}

const findSingles = (
  tenantId: TenantId,
  keys: readonly string[],
): Statement<ReadonlyMap<string, ConversationId>> => ({
  name: 'conversation-find-singles',
  text: `select key, id from conversations where key = any($2::text[]) and tenant_id = $1 and kind = 'single'`,
  values: [tenantId, textArray(keys)],
  map: (all) => new Map(all.map((row) => [row.key as string, row.id as ConversationId])),
});

/** In the order of their keys: two processes that make the same ones can't wait for each other. */
const createSingles = (
  tenantId: TenantId,
  assistantId: AssistantId | null,
  singles: readonly {
    readonly id: ConversationId;
    readonly key: string;
    readonly a: string;
    readonly b: string;
  }[],
): Statement<void> => {
  const members = singles.flatMap(({ id, a, b }) =>
    [
      { id, userId: a, side: sideOf(a, b) },
      ...(a === b ? [] : [{ id, userId: b, side: sideOf(b, a) }]),
    ].filter(({ userId }) => !userId.startsWith(ASSISTANT_PREFIX)),
  );
  return {
    name: 'conversation-create-singles',
    text: `with made as (
        insert into conversations (id, tenant_id, kind, key, assistant_id, member_count)
        select i.id, $1, 'single', i.key, $4,
          (select count(*) from unnest($5::bigint[]) as m(id) where m.id = i.id)
        from unnest($2::bigint[], $3::text[]) as i(id, key) order by i.key
        on conflict (key, tenant_id, kind) do nothing returning id)
      insert into conversation_members (conversation_id, user_id, tenant_id, side)
      select made.id, m.user_id, $1, m.side
      from made join unnest($5::bigint[], $6::text[], $7::smallint[]) as m(id, user_id, side) using (id)`,
    values: [
      tenantId,
      idArray(singles.map(({ id }) => id)),
      textArray(singles.map(({ key }) => key)),
      assistantId,
      idArray(members.map(({ id }) => id)),
      textArray(members.map(({ userId }) => userId)),
      idArray(members.map(({ side }) => side)),
    ],
    map: () => undefined,
  };
};

/** Attributes as text: parsed by the driver their numbers would lose digits. */
const CONVERSATION_COLUMNS =
  'id, tenant_id, kind, key, name, attributes::text, max_members, muted, assistant_id, member_count, last_seq, created_at';

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

const listGroups = (tenantId: TenantId, after: string, limit: number): Statement<GroupPage> => ({
  name: 'conversation-groups',
  // One more than a page tells whether there is one.
  text: `select * from (
           select *, row_number() over (order by key) as n, count(*) over () as found,
             sum(length(attributes)) over (order by key) - length(attributes) as chars_before
           from (select ${CONVERSATION_COLUMNS} from conversations
                 where tenant_id = $1 and kind = 'group' and key > $2 and deleted_at is null
                 order by key limit $3 + 1) page) g
         where n <= $3 and chars_before < ${MAX_PAGE_CHARS} order by key`,
  values: [tenantId, after, limit],
  map: (all) => ({
    groups: all.map(toConversation),
    hasMore: all.length > 0 && Number(all[0]!.found) > all.length,
  }),
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
    attributes: parseExact(row.attributes as string),
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
