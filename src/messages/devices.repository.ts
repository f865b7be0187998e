import { Injectable } from '@nestjs/common';
import type { AssistantId, ConversationId, MessageId, TenantId } from '../common';
import {
  Database,
  NODE_LEASE_MS,
  NodeRegistry,
  platformScope,
  tenantScope,
  type Row,
  type Scope,
  type Statement,
} from '../database';
import { SENT_BY_MEMBER } from './append-statements';
import type { ConversationKind, Standing } from './conversation-records';

/** One connection of a user's device kind. */
export interface DeviceSession {
  readonly tenantId: TenantId;
  readonly userId: string;
  readonly client: string;
  readonly connectionId: string;
}

export interface OpenedDevice {
  /** The 500 most recent conversations and every older one with something the device has not; newest first. */
  readonly standings: readonly Standing[];
  /** The connection of another live node that this one takes the place of. */
  readonly replaced: { readonly incarnation: bigint; readonly connectionId: string } | null;
}

export interface DeviceMark {
  readonly tenantId: TenantId;
  readonly userId: string;
  readonly client: string;
  readonly conversationId: ConversationId;
  readonly seq: number;
}

/** Of one user: what has happened since an id. */
export interface ChangeQuery {
  readonly tenantId: TenantId;
  readonly userId: string;
  readonly since: string;
}

export interface Change {
  readonly conversationId: ConversationId;
  readonly kind: ConversationKind;
  readonly key: string;
  readonly fromSeq: number;
  readonly lastSeq: number;
  readonly untilSeq: number | null;
}

export const RECENT_CONVERSATIONS = 500;

/** Devices, what each is known to have, and which are connected where. */
@Injectable()
export class DevicesRepository {
  constructor(
    private readonly database: Database,
    private readonly nodes: NodeRegistry,
  ) {}

  /** No device twice in one call. In the order of the input. */
  async open(sessions: readonly DeviceSession[]): Promise<OpenedDevice[]> {
    const [, replaced, standings] = await this.database.run(scopeOf(sessions), [
      lockUsers(sessions),
      openDevices(sessions, this.nodes.incarnation),
      readStandings(sessions),
    ]);
    return sessions.map((_, index) => ({
      replaced: replaced.get(index) ?? null,
      standings: standings.get(index) ?? [],
    }));
  }

  async close(sessions: readonly DeviceSession[]): Promise<void> {
    await this.database.run(scopeOf(sessions), [lockUsers(sessions), closeDevices(sessions)]);
  }

  /** Sessions whose process is dead. */
  orphanedSessions(limit: number): Promise<DeviceSession[]> {
    return this.database.one(platformScope(), orphanedSessions(limit));
  }

  /** Marks only grow. */
  async saveMarks(marks: readonly DeviceMark[]): Promise<void> {
    await this.database.one(
      { tenants: [...new Set(marks.map(({ tenantId }) => tenantId))], platform: false },
      saveMarks(marks),
    );
  }

  async mark(
    tenantId: TenantId,
    userId: string,
    client: string,
    id: ConversationId,
  ): Promise<(Change & { mark: number }) | null> {
    return this.database.one(tenantScope(tenantId), readMark(tenantId, userId, client, id));
  }

  /** Per query: the conversations that have moved since. */
  async changes(queries: readonly ChangeQuery[]): Promise<Change[][]> {
    const found = await this.database.one(
      { tenants: [...new Set(queries.map(({ tenantId }) => tenantId))], platform: false },
      readChanges(queries),
    );
    return queries.map((_, index) => found.get(index) ?? []);
  }

  /** Device kinds of a user that are connected to a live node, with the time each connected. */
  online(tenantId: TenantId, userIds: readonly string[]): Promise<OnlineDevice[]> {
    return this.database.one({ tenants: [tenantId], platform: true }, readOnline(tenantId, userIds));
  }

  /** Every user of the tenant that ever connected a device, by id. */
  users(tenantId: TenantId, after: string, limit: number): Promise<string[]> {
    return this.database.one(tenantScope(tenantId), readUsers(tenantId, after, limit));
  }
}

export interface OnlineDevice {
  readonly userId: string;
  readonly client: string;
  readonly connectedAt: Date;
}

function scopeOf(sessions: readonly DeviceSession[]): Scope {
  return { tenants: [...new Set(sessions.map(({ tenantId }) => tenantId))], platform: true };
}

const ALIVE = `exists (select 1 from nodes n where n.incarnation = s.incarnation
  and n.heartbeat_at > now() - interval '${NODE_LEASE_MS} milliseconds')`;

const columnsOf = (sessions: readonly DeviceSession[]): unknown[] => [
  sessions.map(({ tenantId }) => tenantId),
  sessions.map(({ userId }) => userId),
  sessions.map(({ client }) => client),
  sessions.map(({ connectionId }) => connectionId),
];

const INPUT = `input as materialized (
  select * from unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[]) with ordinality
    as i(tenant_id, user_id, client, connection_id, ord))`;

/** Who comes and who goes at the same moment, on whatever node, does so one after the other: else both would be told wrongly. */
const lockUsers = (sessions: readonly DeviceSession[]): Statement<void> => ({
  name: 'devices-lock-users',
  text: `select pg_advisory_xact_lock(key) from (
           select distinct hashtextextended(user_id, tenant_id) as key
           from unnest($1::bigint[], $2::text[]) as i(tenant_id, user_id) order by 1) keys`,
  values: columnsOf(sessions).slice(0, 2),
  map: () => undefined,
});

/** A user's very first device begins at the beginning; a further new one at the present, which is stored once. */
const openDevices = (
  sessions: readonly DeviceSession[],
  incarnation: bigint,
): Statement<Map<number, { incarnation: bigint; connectionId: string }>> => ({
  name: 'devices-open',
  text: `with ${INPUT},
    fresh as (
      insert into devices (tenant_id, user_id, client) select tenant_id, user_id, client from input
      on conflict do nothing returning tenant_id, user_id, client),
    present as (
      insert into device_marks (tenant_id, user_id, client, conversation_id, seq)
      select f.tenant_id, f.user_id, f.client, m.conversation_id, c.last_seq
      from fresh f
      join conversation_members m on m.tenant_id = f.tenant_id and m.user_id = f.user_id
      join conversations c on c.id = m.conversation_id
      where exists (select 1 from devices d
        where d.tenant_id = f.tenant_id and d.user_id = f.user_id and d.client <> f.client)
      on conflict do nothing),
    before as materialized (
      select i.ord, s.client = i.client as same, s.incarnation, s.connection_id
      from input i join im_sessions s on s.tenant_id = i.tenant_id and s.user_id = i.user_id where ${ALIVE}),
    session as (
      insert into im_sessions (tenant_id, user_id, client, incarnation, connection_id)
      select tenant_id, user_id, client, $5, connection_id from input
      on conflict (tenant_id, user_id, client) do update
        set incarnation = excluded.incarnation, connection_id = excluded.connection_id, connected_at = now()),
    told as (
      insert into webhook_deliveries (webhook_id, tenant_id, event, event_id, payload)
      select w.id, i.tenant_id, 'user.online', i.connection_id::text,
        json_build_object('user', i.user_id, 'client', i.client)::text
      from (select distinct on (tenant_id, user_id) * from input order by tenant_id, user_id, ord) i
      join webhooks w on w.tenant_id = i.tenant_id
      where w.enabled and 'user.online' = any(w.events) and not exists (select 1 from before b where b.ord = i.ord))
    select ord, incarnation, connection_id from before where same and incarnation <> $5`,
  values: [...columnsOf(sessions), incarnation.toString()],
  map: (rows) =>
    new Map(
      rows.map((row) => [
        Number(row.ord) - 1,
        { incarnation: BigInt(row.incarnation as string), connectionId: row.connection_id as string },
      ]),
    ),
});

const readStandings = (sessions: readonly DeviceSession[]): Statement<Map<number, Standing[]>> => ({
  name: 'devices-standings',
  text: `with ${INPUT},
    ranked as (
      select i.ord, c.id, c.kind, c.key, c.assistant_id, c.last_seq, c.last_id, m.read_seq, m.until_seq,
        ${SENT_BY_MEMBER} - m.read_own as own, greatest(coalesce(k.seq, 0), m.from_seq) as mark,
        row_number() over (partition by i.ord order by c.last_id desc) as rank
      from input i
      join conversation_members m on m.tenant_id = i.tenant_id and m.user_id = i.user_id
      join conversations c on c.id = m.conversation_id
      left join device_marks k on k.tenant_id = i.tenant_id and k.user_id = i.user_id and k.client = i.client
        and k.conversation_id = c.id)
    select * from ranked where rank <= ${RECENT_CONVERSATIONS} or coalesce(until_seq, last_seq) > mark
    order by ord, rank`,
  values: columnsOf(sessions),
  map: (rows) => grouped(rows, toStanding),
});

/** What a page does not show is not counted: of thousands of conversations only their order is looked at. */

const closeDevices = (sessions: readonly DeviceSession[]): Statement<void> => ({
  name: 'devices-close',
  text: `with ${INPUT},
    gone as (
      delete from im_sessions s using input i
      where s.tenant_id = i.tenant_id and s.user_id = i.user_id and s.client = i.client
        and s.connection_id = i.connection_id
      returning s.tenant_id, s.user_id, s.client, s.connection_id)
    insert into webhook_deliveries (webhook_id, tenant_id, event, event_id, payload)
    select w.id, g.tenant_id, 'user.offline', g.connection_id::text,
      json_build_object('user', g.user_id, 'client', g.client)::text
    from (select distinct on (tenant_id, user_id) * from gone order by tenant_id, user_id, connection_id desc) g
    join webhooks w on w.tenant_id = g.tenant_id
    where w.enabled and 'user.offline' = any(w.events) and not exists (
      select 1 from im_sessions s where s.tenant_id = g.tenant_id and s.user_id = g.user_id
        and not exists (select 1 from gone x where x.connection_id = s.connection_id) and ${ALIVE})`,
  values: columnsOf(sessions),
  map: () => undefined,
});

const orphanedSessions = (limit: number): Statement<DeviceSession[]> => ({
  name: 'devices-orphaned',
  text: `select s.tenant_id, s.user_id, s.client, s.connection_id from im_sessions s where not ${ALIVE} limit $1`,
  values: [limit],
  map: (rows) =>
    rows.map((row) => ({
      tenantId: row.tenant_id as TenantId,
      userId: row.user_id as string,
      client: row.client as string,
      connectionId: row.connection_id as string,
    })),
});

const saveMarks = (marks: readonly DeviceMark[]): Statement<void> => ({
  name: 'devices-marks',
  text: `insert into device_marks as k (tenant_id, user_id, client, conversation_id, seq)
         select tenant_id, user_id, client, conversation_id, seq from unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
           as i(tenant_id, user_id, client, conversation_id, seq)
         order by 1, 2, 3, 4
         on conflict (tenant_id, user_id, client, conversation_id) do update set seq = excluded.seq
         where k.seq < excluded.seq`,
  values: [
    marks.map(({ tenantId }) => tenantId),
    marks.map(({ userId }) => userId),
    marks.map(({ client }) => client),
    marks.map(({ conversationId }) => conversationId),
    marks.map(({ seq }) => seq),
  ],
  map: () => undefined,
});

const CHANGE_COLUMNS = 'c.id, c.kind, c.key, c.last_seq, m.from_seq, m.until_seq';

const readChanges = (queries: readonly ChangeQuery[]): Statement<Map<number, Change[]>> => ({
  name: 'devices-changes',
  text: `select i.ord, ${CHANGE_COLUMNS}
    from unnest($1::bigint[], $2::text[], $3::bigint[]) with ordinality as i(tenant_id, user_id, since, ord)
    join conversation_members m on m.tenant_id = i.tenant_id and m.user_id = i.user_id
    join conversations c on c.id = m.conversation_id
    where c.last_id >= i.since`,
  values: [
    queries.map(({ tenantId }) => tenantId),
    queries.map(({ userId }) => userId),
    queries.map(({ since }) => since),
  ],
  map: (rows) => grouped(rows, toChange),
});

const readMark = (
  tenantId: TenantId,
  userId: string,
  client: string,
  id: ConversationId,
): Statement<(Change & { mark: number }) | null> => ({
  name: 'devices-mark',
  text: `select ${CHANGE_COLUMNS}, greatest(coalesce(k.seq, 0), m.from_seq) as mark
    from conversation_members m join conversations c on c.id = m.conversation_id
    left join device_marks k on k.tenant_id = $1 and k.user_id = $2 and k.client = $3 and k.conversation_id = c.id
    where m.tenant_id = $1 and m.user_id = $2 and m.conversation_id = $4`,
  values: [tenantId, userId, client, id],
  map: ([row]) => (row ? { ...toChange(row), mark: Number(row.mark) } : null),
});

const readOnline = (tenantId: TenantId, userIds: readonly string[]): Statement<OnlineDevice[]> => ({
  name: 'devices-online',
  text: `select s.user_id, s.client, s.connected_at from im_sessions s
    where s.tenant_id = $1 and s.user_id = any($2::text[]) and ${ALIVE} order by s.user_id, s.connected_at`,
  values: [tenantId, userIds],
  map: (rows) =>
    rows.map((row) => ({
      userId: row.user_id as string,
      client: row.client as string,
      connectedAt: row.connected_at as Date,
    })),
});

const readUsers = (tenantId: TenantId, after: string, limit: number): Statement<string[]> => ({
  name: 'devices-users',
  text: `select distinct user_id from devices where tenant_id = $1 and user_id > $2 order by user_id limit $3`,
  values: [tenantId, after, limit],
  map: (rows) => rows.map((row) => row.user_id as string),
});

function grouped<T>(rows: readonly Row[], read: (row: Row) => T): Map<number, T[]> {
  const groups = new Map<number, T[]>();
  for (const row of rows) {
    const index = Number(row.ord) - 1;
    const group = groups.get(index);
    if (group) group.push(read(row));
    else groups.set(index, [read(row)]);
  }
  return groups;
}

export function toStanding(row: Row): Standing {
  const lastSeq = Number(row.last_seq);
  const readSeq = Number(row.read_seq);
  const untilSeq = row.until_seq === null ? null : Number(row.until_seq);
  return {
    id: row.id as ConversationId,
    kind: row.kind as ConversationKind,
    key: row.key as string,
    assistantId: row.assistant_id as AssistantId | null,
    lastSeq,
    lastId: row.last_id === '0' ? null : (row.last_id as MessageId),
    readSeq,
    unread: Math.max(0, (untilSeq ?? lastSeq) - readSeq - Number(row.own)),
    mark: Number(row.mark),
    untilSeq,
  };
}

function toChange(row: Row): Change {
  return {
    conversationId: row.id as ConversationId,
    kind: row.kind as ConversationKind,
    key: row.key as string,
    fromSeq: Number(row.from_seq),
    lastSeq: Number(row.last_seq),
    untilSeq: row.until_seq === null ? null : Number(row.until_seq),
  };
}
