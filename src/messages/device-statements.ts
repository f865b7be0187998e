import type { AssistantId, ConversationId, MessageId, TenantId } from '../common';
import { NODE_LEASE_MS, type Row, type Statement } from '../database';
import { SENT_BY_MEMBER } from './append-statements';
import type { ConversationKind, Gap, Standing } from './conversation-records';
import type {
  Change,
  ChangeQuery,
  ChangesPage,
  DeviceMark,
  DeviceName,
  DeviceSession,
  MarkedChange,
  OnlineDevice,
  StandingsPage,
} from './devices.repository';

/** How much later than its id was made a message may be stored, but for what an assistant was asked before. */
export const LATE_MS = 300_000;

const ALIVE = `exists (select 1 from nodes n where n.incarnation = s.incarnation
  and n.heartbeat_at > now() - interval '${NODE_LEASE_MS} milliseconds')`;

const columnsOf = (sessions: readonly DeviceSession[]): unknown[] => [
  ...namesOf(sessions),
  sessions.map(({ connectionId }) => connectionId),
];

const namesOf = (devices: readonly DeviceName[]): unknown[] => [
  devices.map(({ tenantId }) => tenantId),
  devices.map(({ userId }) => userId),
  devices.map(({ client }) => client),
];

const INPUT = `input as materialized (
  select * from unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[]) with ordinality
    as i(tenant_id, user_id, client, connection_id, ord))`;

/** Who comes and who goes at the same moment, on whatever node, does so one after the other: else both would be told wrongly. */
export const lockUsers = (sessions: readonly DeviceSession[]): Statement<void> => ({
  name: 'devices-lock-users',
  text: `select pg_advisory_xact_lock(key) from (
           select distinct hashtextextended(user_id, tenant_id) as key
           from unnest($1::bigint[], $2::text[]) as i(tenant_id, user_id) order by 1) keys`,
  values: columnsOf(sessions).slice(0, 2),
  map: () => undefined,
});

/** A device that comes back is noted as seen so often at most. */
const SEEN_EVERY = `interval '1 hour'`;

/** A user's very first device begins at the beginning; a further new one at the present: `since`, and {@link noteNew}. */
export const openDevices = (
  sessions: readonly DeviceSession[],
  incarnation: bigint,
  since: string,
): Statement<Map<number, { incarnation: bigint; connectionId: string }>> => ({
  name: 'devices-open',
  text: `with ${INPUT},
    made as (
      insert into devices (tenant_id, user_id, client, since, fresh)
      select i.tenant_id, i.user_id, i.client, case when further then $6::bigint else 0 end, further
      from input i cross join lateral (
        select exists (select 1 from devices d
          where d.tenant_id = i.tenant_id and d.user_id = i.user_id and d.client <> i.client) as further) o
      on conflict do nothing),
    seen as (
      update devices d set seen_at = now(), since = case when d.fresh then $6::bigint else d.since end
      from input i
      where d.tenant_id = i.tenant_id and d.user_id = i.user_id and d.client = i.client
        and (d.fresh or d.seen_at is null or d.seen_at < now() - ${SEEN_EVERY})),
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
  values: [...columnsOf(sessions), incarnation.toString(), since],
  map: (rows) =>
    new Map(
      rows.map((row) => [
        Number(row.ord) - 1,
        { incarnation: BigInt(row.incarnation as string), connectionId: row.connection_id as string },
      ]),
    ),
});

interface Place extends DeviceName {
  readonly after: ConversationId;
}

/**
 * Rows `i`, each with a page of its user's conversations: `m` the user in it, `c` itself, in the order of ids. Look-ups
 * with limits: they stay look-ups, whatever the planner thinks of tables that are small, or were a minute ago.
 */
const pageOf = (limit: number): string => `
  cross join lateral (
    select * from conversation_members
    where tenant_id = i.tenant_id and user_id = i.user_id and conversation_id > i.after
    order by conversation_id limit ${limit}) m
  cross join lateral (select * from conversations where id = m.conversation_id limit 1) c`;

const PLACES = `unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[]) with ordinality
  as i(tenant_id, user_id, client, after, ord)`;

const placesOf = (places: readonly Place[]): unknown[] => [
  ...namesOf(places),
  places.map(({ after }) => after),
];

/**
 * The present of devices that are new, in a page of conversations. What was quiet before is told by `since` and needs no
 * row. What has just moved, or is going to be answered under an id of before, gets a mark: ids do not say exactly
 * which of it was there.
 */
export const noteNew = (places: readonly Place[], limit: number): Statement<void> => ({
  name: `devices-note-${limit}`,
  text: `with page as materialized (
      select i.*, m.conversation_id, c.last_seq, c.last_id, d.since from ${PLACES}
      cross join lateral (
        select since from devices
        where tenant_id = i.tenant_id and user_id = i.user_id and client = i.client and fresh limit 1) d
      ${pageOf(limit)}),
    noted as (
      insert into device_marks (tenant_id, user_id, client, conversation_id, seq)
      select tenant_id, user_id, client, conversation_id, last_seq from page p
      where last_id >= since or exists (select 1 from reply_requests r where r.conversation_id = p.conversation_id)
      on conflict do nothing)
    update devices d set fresh = false from ${PLACES}
    where d.tenant_id = i.tenant_id and d.user_id = i.user_id and d.client = i.client and d.fresh
      and (select count(*) from page p where p.ord = i.ord) < ${limit}`,
  values: placesOf(places),
  map: () => undefined,
});

/** Earlier intervals of a membership that are read; older ones are as if they had not been. */
const MAX_INTERVALS = 1_000;

/** The earlier intervals of member `m`'s membership, as JSON, oldest first; nothing for nearly everybody. */
const PAST = `case when m.rejoined then (
  select json_agg(json_build_array(from_seq, until_seq) order by from_seq) from (
    select from_seq, until_seq from past_memberships
    where conversation_id = m.conversation_id and user_id = m.user_id and tenant_id = m.tenant_id
    order by from_seq desc limit ${MAX_INTERVALS}) p) end`;

/** Of member `m`'s device `d` in conversation `c`: what it has read, else where it began. */
const MARK = `greatest((case when m.rejoined then (
    select min(from_seq) from (
      select from_seq from past_memberships
      where conversation_id = m.conversation_id and user_id = m.user_id and tenant_id = m.tenant_id
      order by from_seq desc limit ${MAX_INTERVALS}) p)
  else m.from_seq end), coalesce(k.seq, case
  when coalesce(d.since, 0) = 0 then 0
  when c.last_id < d.since then c.last_seq
  else last_seq_before(m.tenant_id, m.conversation_id, c.last_seq, d.since) end))`;

export const readStandings = (places: readonly Place[], limit: number): Statement<StandingsPage[]> => ({
  name: `devices-standings-${limit}`,
  text: `select i.ord, d.fresh, m.conversation_id as id, c.kind, c.key, c.assistant_id, c.last_seq, c.last_id, m.read_seq,
      m.until_seq, ${SENT_BY_MEMBER} - m.read_own as own, k.seq is not null as marked, ${MARK} as mark,
      m.from_seq, ${PAST} as past
    from ${PLACES}
    left join lateral (
      select since, fresh from devices
      where tenant_id = i.tenant_id and user_id = i.user_id and client = i.client limit 1) d on true
    ${pageOf(limit)}
    left join lateral (
      select seq from device_marks where tenant_id = i.tenant_id and user_id = i.user_id and client = i.client
        and conversation_id = m.conversation_id limit 1) k on true
    order by i.ord, m.conversation_id`,
  values: placesOf(places),
  map: (rows) => {
    const pages = grouped(rows);
    return places.map((_, index) => {
      const page = pages.get(index) ?? [];
      const more = page.length === limit;
      return {
        standings: page.map(toStanding),
        next: more ? (page.at(-1)!.id as ConversationId) : null,
        fresh: more && page[0]!.fresh === true,
      };
    });
  },
});

export const closeDevices = (sessions: readonly DeviceSession[]): Statement<void> => ({
  name: 'devices-close',
  text: `with ${INPUT},
    gone as (
      delete from im_sessions s using input i
      where s.tenant_id = i.tenant_id and s.user_id = i.user_id and s.client = i.client
        and s.connection_id = i.connection_id
      returning s.tenant_id, s.user_id, s.client, s.connection_id),
    seen as (
      update devices d set seen_at = now() from gone g
      where d.tenant_id = g.tenant_id and d.user_id = g.user_id and d.client = g.client
        and d.seen_at < now() - ${SEEN_EVERY})
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

/** The row stays: it is how a user is known to have connected, and where the device goes on. */
export const forgetUnseen = (tenantId: TenantId, before: Date, limit: number): Statement<number> => ({
  name: 'devices-forget',
  text: `with unseen as materialized (
      select user_id, client from devices d
      where tenant_id = $1 and seen_at < $2 and not exists (select 1 from im_sessions s
        where s.tenant_id = $1 and s.user_id = d.user_id and s.client = d.client)
      order by seen_at limit $3 for update skip locked),
    gone as (
      delete from device_marks k using unseen u
      where k.tenant_id = $1 and k.user_id = u.user_id and k.client = u.client),
    forgotten as (
      update devices d set seen_at = null,
        since = greatest(since, message_id_at(seen_at - interval '${LATE_MS} milliseconds'))
      from unseen u where d.tenant_id = $1 and d.user_id = u.user_id and d.client = u.client)
    select count(*) as n from unseen`,
  values: [tenantId, before, limit],
  map: ([row]) => Number(row!.n),
});

export const orphanedSessions = (limit: number): Statement<DeviceSession[]> => ({
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

export const saveMarks = (marks: readonly DeviceMark[]): Statement<void> => ({
  name: 'devices-marks',
  text: `insert into device_marks as k (tenant_id, user_id, client, conversation_id, seq)
         select tenant_id, user_id, client, conversation_id, seq from unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
           as i(tenant_id, user_id, client, conversation_id, seq)
         order by 1, 2, 3, 4
         on conflict (tenant_id, user_id, client, conversation_id) do update set seq = excluded.seq
         where k.seq < excluded.seq`,
  values: [...namesOf(marks), marks.map(({ conversationId }) => conversationId), marks.map(({ seq }) => seq)],
  map: () => undefined,
});

const CHANGE_COLUMNS = `c.id, c.kind, c.key, c.last_seq, m.from_seq, m.until_seq, ${PAST} as past`;

/** A row without an id says where the next page goes on. */
export const readChanges = (queries: readonly ChangeQuery[], limit: number): Statement<ChangesPage[]> => ({
  name: `devices-changes-${limit}`,
  text: `with m as materialized (
      select i.ord, i.since, m.*
      from unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[]) with ordinality
        as i(tenant_id, user_id, since, after, ord)
      cross join lateral (
        select * from conversation_members
        where tenant_id = i.tenant_id and user_id = i.user_id and conversation_id > i.after
        order by conversation_id limit ${limit}) m)
    select m.ord, null::bigint as next, ${CHANGE_COLUMNS} from m
    cross join lateral (
      select * from conversations where id = m.conversation_id and last_id >= m.since limit 1) c
    union all
    select ord, max(conversation_id), null, null, null, null, null, null, null from m group by ord having count(*) = ${limit}`,
  values: [
    queries.map(({ tenantId }) => tenantId),
    queries.map(({ userId }) => userId),
    queries.map(({ since }) => since),
    queries.map(({ after }) => after),
  ],
  map: (rows) => {
    const found = grouped(rows);
    return queries.map((_, index) => {
      const page = found.get(index) ?? [];
      return {
        changes: page.filter(({ id }) => id !== null).map(toChange),
        next: (page.find(({ id }) => id === null)?.next ?? null) as ConversationId | null,
      };
    });
  },
});

export const readMark = (
  tenantId: TenantId,
  userId: string,
  client: string,
  id: ConversationId,
): Statement<MarkedChange | null> => ({
  name: 'devices-mark',
  text: `select ${CHANGE_COLUMNS}, k.seq is not null as marked, ${MARK} as mark
    from conversation_members m join conversations c on c.id = m.conversation_id
    left join devices d on d.tenant_id = $1 and d.user_id = $2 and d.client = $3
    left join device_marks k on k.tenant_id = $1 and k.user_id = $2 and k.client = $3 and k.conversation_id = c.id
    where m.tenant_id = $1 and m.user_id = $2 and m.conversation_id = $4`,
  values: [tenantId, userId, client, id],
  map: ([row]) => (row ? { ...toChange(row), mark: Number(row.mark), marked: row.marked as boolean } : null),
});

export const readOnline = (tenantId: TenantId, userIds: readonly string[]): Statement<OnlineDevice[]> => ({
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

export const readUsers = (tenantId: TenantId, after: string, limit: number): Statement<string[]> => ({
  name: 'devices-users',
  text: `select distinct user_id from devices where tenant_id = $1 and user_id > $2 order by user_id limit $3`,
  values: [tenantId, after, limit],
  map: (rows) => rows.map((row) => row.user_id as string),
});

/** By the place of what was asked, from `ord`. */
function grouped(rows: readonly Row[]): Map<number, Row[]> {
  const groups = new Map<number, Row[]>();
  for (const row of rows) {
    const index = Number(row.ord) - 1;
    const group = groups.get(index);
    if (group) group.push(row);
    else groups.set(index, [row]);
  }
  return groups;
}

const NO_GAPS: readonly Gap[] = [];

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
    marked: row.marked as boolean,
    gaps: intervalsOf(row).gaps,
    untilSeq,
  };
}

function intervalsOf(row: Row): { fromSeq: number; gaps: readonly Gap[] } {
  const last = Number(row.from_seq);
  const past = row.past as readonly (readonly [number, number])[] | null;
  if (!past) return { fromSeq: last, gaps: NO_GAPS };
  const gaps = past.map(([, after], index) => ({ after, until: past[index + 1]?.[0] ?? last }));
  return { fromSeq: past[0]![0], gaps };
}

function toChange(row: Row): Change {
  return {
    conversationId: row.id as ConversationId,
    kind: row.kind as ConversationKind,
    key: row.key as string,
    ...intervalsOf(row),
    lastSeq: Number(row.last_seq),
    untilSeq: row.until_seq === null ? null : Number(row.until_seq),
  };
}
