// Rows written straight into Parley's tables (migrations/1795300000000-create-conversations.ts), as the superuser: the
// only place of the benchmark that knows them.

const CONVERSATIONS = 100;
const BATCH = 250_000;

const FRAME = `json_build_object('type', 'single', 'source', 'a', 'target', 'b', 'msgType', 'text', 'msg',
  json_build_object('msgId', n::text, 'timestamp', 1700000000000 + n, 'content', repeat('what people write ', 6)))::text`;

/**
 * `rows` messages in 100 conversations whose messages came in turns, over the last month. Returns the conversations and
 * how far each goes.
 */
export async function fillHistory(database, tenantId, rows, told) {
  const lastSeq = Math.floor(rows / CONVERSATIONS);
  const ids = Array.from({ length: CONVERSATIONS }, (_, i) => String(i + 1));
  await database.query(
    `insert into conversations (id, tenant_id, kind, key, member_count)
     select i, $1, 'single', json_build_array('a', 'b' || i)::text, 2 from unnest($2::bigint[]) i`,
    [tenantId, ids],
  );
  await database.query(
    `insert into conversation_members (conversation_id, user_id, tenant_id)
     select i, u, $1 from unnest($2::bigint[]) i, unnest(array['a', 'b' || i]) u`,
    [tenantId, ids],
  );
  await database.query(
    `select ensure_message_partition(now() - interval '1 day' * day) from generate_series(0, 31) day`,
  );
  for (let first = 1; first <= lastSeq; first += BATCH / CONVERSATIONS) {
    const last = Math.min(lastSeq, first + BATCH / CONVERSATIONS - 1);
    await database.query(
      `insert into messages (id, tenant_id, conversation_id, seq, sender, client, dedupe, frame)
       select message_id_at(now() - interval '30 days' * (1 - n::float8 / $4)) + c, $1, c, n,
         'a', 'pc', 'a' || chr(10) || n, ${FRAME}
       from generate_series($2::bigint, $3::bigint) n, generate_series(1, ${CONVERSATIONS}) c`,
      [tenantId, first, last, lastSeq],
    );
    told(last * CONVERSATIONS);
  }
  await database.query(
    `update conversations c set last_seq = $2, last_id = (
       select max(id) from messages m where m.conversation_id = c.id and m.seq = $2)
     where c.id = any($1::bigint[])`,
    [ids, lastSeq],
  );
  // What autovacuum and the checkpointer would do in their own time.
  await database.query('vacuum analyze messages');
  await database.query('vacuum analyze conversations, conversation_members');
  await database.query('checkpoint');
  return { ids, lastSeq };
}

/**
 * Everybody writes to the next three, so that everybody has six conversations, of four messages each; known devices that
 * come back, and have missed the last message of one of them.
 */
export async function fillStorm(database, tenantId, userIds) {
  await database.query(
    `create temp table pairs as
     select 1000000 + (i - 1) * 3 + k as id, k, u[i] as a, u[(i + k - 1) % cardinality(u) + 1] as b
     from (select $1::text[] as u) users, generate_series(1, cardinality(u)) i, generate_series(1, 3) k`,
    [userIds],
  );
  await database.query(
    `insert into conversations (id, tenant_id, kind, key, member_count, last_seq, last_id)
     select id, $1::bigint, 'single', '["' || least(a, b) || '","' || greatest(a, b) || '"]', 2, 4,
       message_id_at(now() - interval '1 minute') + id * 8 + 4
     from (select id, a collate "C" as a, b collate "C" as b from pairs) p`,
    [tenantId],
  );
  await database.query(
    `insert into conversation_members (conversation_id, user_id, tenant_id)
     select id, unnest(array[a, b]), $1 from pairs`,
    [tenantId],
  );
  await database.query(
    `insert into conversation_senders (conversation_id, sender, tenant_id, sent) select id, a, $1, 4 from pairs`,
    [tenantId],
  );
  await database.query(
    `insert into messages (id, tenant_id, conversation_id, seq, sender, client, dedupe, frame)
     select message_id_at(now() - interval '1 minute') + id * 8 + n, $1, id, n, a, 'pc', a || chr(10) || n, json_build_object(
       'type', 'single', 'source', a, 'target', b, 'msgType', 'text', 'msg',
       json_build_object('msgId', n::text, 'timestamp', 1700000000000 + n, 'content', 'good morning'))::text
     from pairs, generate_series(1, 4) n`,
    [tenantId],
  );
  await database.query(
    `insert into devices (tenant_id, user_id, client) select $1::bigint, u, 'pc' from unnest($2::text[]) u`,
    [tenantId, userIds],
  );
  await database.query(
    `insert into device_marks (tenant_id, user_id, client, conversation_id, seq)
     select $1, unnest(array[a, b]), 'pc', id, unnest(array[4, case k when 1 then 3 else 4 end]) from pairs`,
    [tenantId],
  );
  await database.query('vacuum analyze');
}

/** One user, `a`, with so many conversations; the first hundred have messages. Returns the ids of those. */
export async function fillConversations(database, tenantId, { conversations, messages }) {
  const first = 5_000_000;
  // On the first of a month an hour ago is another one.
  await database.query(`select ensure_message_partition(now() - interval '1 hour')`);
  await database.query(
    `insert into conversations (id, tenant_id, kind, key, member_count, last_seq, last_id)
     select i, $1::bigint, 'single', json_build_array('a', 'b' || i)::text, 2, n,
       message_id_at(now() - interval '1 minute') + i - $2
     from generate_series($2::bigint, $3::bigint) i, lateral (select case when i < $2 + 100 then $4 else 1 end as n) l`,
    [tenantId, first, first + conversations - 1, messages],
  );
  await database.query(
    `insert into conversation_members (conversation_id, user_id, tenant_id)
     select i, u, $1 from generate_series($2::bigint, $3::bigint) i, unnest(array['a', 'b' || i]) u`,
    [tenantId, first, first + conversations - 1],
  );
  await database.query(
    `insert into messages (id, tenant_id, conversation_id, seq, sender, client, dedupe, frame)
     select message_id_at(now() - interval '1 hour') + (c - $2) * $3 + n, $1, c, n, 'a', 'pc', 'a' || chr(10) || n, ${FRAME}
     from generate_series($2::bigint, $2::bigint + 99) c, generate_series(1, $3::bigint) n`,
    [tenantId, first, messages],
  );
  await database.query('vacuum analyze');
  return { ids: Array.from({ length: 100 }, (_, i) => String(first + i)) };
}

/** `count` conversations of one user with as many others, quiet for a day; the user has had a device, which has all of it. */
export async function fillOneUser(database, tenantId, userId, count) {
  await database.query(
    `insert into conversations (id, tenant_id, kind, key, member_count, last_seq, last_id)
     select 2000000 + i, $1::bigint, 'single', json_build_array($2::text, 'x' || i)::text, 2, 1,
       message_id_at(now() - interval '1 day') + i
     from generate_series(1, $3::int) i`,
    [tenantId, userId, count],
  );
  await database.query(
    `insert into conversation_members (conversation_id, user_id, tenant_id, side)
     select 2000000 + i, unnest(array[$2, 'x' || i]), $1, unnest(array[0, 1]) from generate_series(1, $3::int) i`,
    [tenantId, userId, count],
  );
  await database.query(`select ensure_message_partition(now() - interval '1 day')`);
  await database.query(
    `insert into messages (id, tenant_id, conversation_id, seq, sender, client, dedupe, frame)
     select message_id_at(now() - interval '1 day') + i, $1, 2000000 + i, 1, 'x' || i, 'pc', 'x' || i || chr(10) || 1,
       json_build_object('type', 'single', 'source', 'x' || i, 'target', $2::text, 'msg', json_build_object('content', 'hello'))::text
     from generate_series(1, $3::int) i`,
    [tenantId, userId, count],
  );
  await database.query(`insert into devices (tenant_id, user_id, client) values ($1, $2, 'first')`, [
    tenantId,
    userId,
  ]);
  await database.query('vacuum analyze');
}
