import { DevicesByUse1805000000000 } from '../../migrations/1805000000000-devices-by-use';
import { migratedDatabase } from '../support/migrated-database';

/** The migration of devices to one row each, on devices of before and of after it. */
const { query, migrate: migrateBy } = migratedDatabase();
const migrate = (way: 'up' | 'down') => migrateBy(new DevicesByUse1805000000000(), way);

const marks = () =>
  query<{ client: string; conversation_id: string; seq: string }>(
    'select client, conversation_id, seq from device_marks order by client, conversation_id',
  ).then((rows) => rows.map(({ client, conversation_id, seq }) => [client, +conversation_id, +seq]));

it('leaves the marks that there are, and on the way back writes those that a device had no need of', async () => {
  await query(`insert into tenants (id, name) values (1, 'acme')`);
  await query(`select ensure_message_partition(now() - interval '2 days')`);
  // Quiet for two days, moved since the newer device came, and begun since.
  await query(
    `insert into conversations (id, tenant_id, kind, key, last_seq, last_id) values
       (11, 1, 'group', 'quiet', 3, message_id_at(now() - interval '2 days')),
       (12, 1, 'group', 'moved', 9, message_id_at(now())),
       (13, 1, 'group', 'begun', 2, message_id_at(now()))`,
  );
  await query(
    `insert into conversation_members (conversation_id, user_id, tenant_id) select c, 'ann', 1 from unnest(array[11, 12, 13]) c`,
  );
  // The four oldest of the second are gone with their time.
  await query(
    `insert into messages (id, tenant_id, conversation_id, seq, sender, client, frame)
     select message_id_at(now() - case when seq <= 6 then interval '2 days' else interval '1 hour' end) + seq, 1, 12, seq, 'ben', 'pc', '{}'
     from generate_series(5, 9) seq`,
  );
  await query(
    `insert into messages (id, tenant_id, conversation_id, seq, sender, client, frame)
     select message_id_at(now()) + seq, 1, 13, seq, 'ben', 'pc', '{}' from generate_series(1, 2) seq`,
  );
  await query(
    `insert into devices (tenant_id, user_id, client, since) values
       (1, 'ann', 'first', 0), (1, 'ann', 'further', message_id_at(now() - interval '1 day'))`,
  );
  await query(`insert into device_marks values (1, 'ann', 'first', 11, 2)`);

  await migrate('down');
  const all = [
    ['first', 11, 2],
    ['further', 11, 3],
    ['further', 12, 6],
    ['further', 13, 0],
  ];
  expect(await marks()).toEqual(all);
  await migrate('up');
  expect(await marks()).toEqual(all);
  expect(
    await query('select client, since, fresh, seen_at is not null as seen from devices order by client'),
  ).toEqual([
    { client: 'first', since: '0', fresh: false, seen: true },
    { client: 'further', since: '0', fresh: false, seen: true },
  ]);
});

it.each([
  [0, 0],
  [1, 0],
  [4, 3],
  [5, 4],
  [100, 99],
  [101, 100],
])('finds the last number before an id: the first after it is %i', async (first, expected) => {
  const id = 1_000 + first;
  await query(`insert into conversations (id, tenant_id, kind, key) values ($1, 1, 'group', $2)`, [
    id,
    `g${id}`,
  ]);
  await query(
    `insert into messages (id, tenant_id, conversation_id, seq, sender, client, frame)
     select message_id_at(now()) + seq * 10, 1, $1, seq, 'ben', 'pc', '{}' from generate_series(1, 100) seq`,
    [id],
  );
  const [row] = await query<{ seq: string }>(
    'select last_seq_before(1, $1, 100, min(id) + ($2 - 1) * 10) as seq from messages where conversation_id = $1',
    [id, first],
  );
  expect(Number(row!.seq)).toBe(expected);
});
