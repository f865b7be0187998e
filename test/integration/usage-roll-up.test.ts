import { Client } from 'pg';
import type { TenantId } from '../../src/common';
import { Database, platformScope } from '../../src/database';
import { UsageReport, UsageRollUp, type UsageGroup, type UsageRow } from '../../src/usage';
import { bootApp, type TestApp } from '../support/app';
import { query } from '../support/database';

const ROWS = 20_000;
const TENANTS = [101, 102, 103];
const FROM = '2026-01-01T00:00:00Z';
const TO = '2026-01-31T00:00:00Z';

let app: TestApp;
let database: Database;
beforeAll(async () => {
  app = await bootApp({ DATABASE_POOL_SIZE: '8' });
  database = app.app.nest.get(Database);
});
afterAll(() => app.close());

const insert = `insert into usage_ledger (message_id, tenant_id, key_id, user_id, assistant_id, model_service_id, attempts,
  prompt_tokens, completion_tokens, total_tokens, estimated, credits, outcome, latency_ms, wire, model, created_at)`;
const sums = `count(*) as requests, sum(attempts) as attempts, sum(prompt_tokens) as p, sum(completion_tokens) as c,
  sum(total_tokens) as t, sum(credits) as credits, count(*) filter (where estimated) as estimated`;
/** Groups of the ledger that the hours do not have, or have otherwise; there are to be none. */
const differences = (table: string, keys: string) =>
  query(
    app.databaseUrl,
    `with ledger as (select tenant_id, date_trunc('hour', created_at, 'UTC') as hour, ${keys}, ${sums} from usage_ledger group by 1, 2, ${keys}),
       hours as (select tenant_id, hour, ${keys}, requests, attempts, prompt_tokens as p, completion_tokens as c,
                   total_tokens as t, credits, estimated from ${table})
     (select * from ledger except all select * from hours) union all (select * from hours except all select * from ledger)`,
  );
const KEYS = 'key_id, assistant_id, model_service_id, model, wire';
const dayDifferences = (of: string, keys: string) => {
  const columns = 'requests, attempts, prompt_tokens, completion_tokens, total_tokens, credits, estimated';
  const added = columns.split(', ').map((column) => `sum(${column})`);
  return query(
    app.databaseUrl,
    `with days as (select tenant_id, day, ${keys}, ${columns} from usage_${of}days),
       hours as (select tenant_id, date_trunc('day', hour, 'UTC'), ${keys}, ${added.join(', ')} from usage_${of}hours group by 1, 2, ${keys})
     (select * from days except all select * from hours) union all (select * from hours except all select * from days)`,
  );
};
const exact = async (): Promise<void> => {
  expect(await differences('usage_hours', KEYS)).toEqual([]);
  expect(await differences('usage_user_hours', `${KEYS}, user_id`)).toEqual([]);
  expect(await dayDifferences('', KEYS)).toEqual([]);
  expect(await dayDifferences('user_', `${KEYS}, user_id`)).toEqual([]);
};

it(`adds up ${ROWS} rows of a month exactly, and tells them by the day, by the hour and from any hour to any other`, async () => {
  await query(
    app.databaseUrl,
    `${insert} select n, (array[${TENANTS.join(',')}])[1 + n % 3], n % 10, 'user ' || n % 5000, n % 4, n % 5, 1 + n % 2, n % 100, n % 50, n % 100 + n % 50,
       n % 7 = 0, n % 13 / 1000.0, 'finished', 1, 'dialogue', 'model ' || n % 5,
       timestamptz '${FROM}' + (n::float8 / ${ROWS} * interval '30 days') from generate_series(1, ${ROWS}) as n`,
  );
  await query(app.databaseUrl, 'analyze');
  const rollUp = app.app.nest.get(UsageRollUp);
  // Two at once, as two processes may be.
  await Promise.all([rollUp.run(), new UsageRollUp(database).run()]);
  await exact();
  const report = app.app.nest.get(UsageReport);
  const told = async (groupBy: UsageGroup[], from = FROM, to = TO, tenantId: TenantId | null = null) =>
    report.rows(platformScope(), { from: new Date(from), to: new Date(to), tenantId, groupBy });
  const requests = (rows: readonly UsageRow[]) => rows.reduce((sum, row) => sum + Number(row.requests), 0);
  const byDay = await told(['day']);
  // The last one is the first of the next day.
  expect([byDay.length, requests(byDay)]).toEqual([30, ROWS - 1]);
  const byHour = await told(['hour']);
  expect([byHour.length, requests(byHour)]).toEqual([720, ROWS - 1]);
  expect(requests(await told(['day', 'model', 'tenant']))).toBe(ROWS - 1);
  for (const [from, to] of [
    ['2026-01-02T05:00:00Z', '2026-01-09T17:00:00Z'],
    ['2026-01-02T05:00:00Z', '2026-01-02T07:00:00Z'],
    ['2026-01-02T23:00:00Z', '2026-01-03T01:00:00Z'],
    ['2026-01-02T00:00:00Z', '2026-01-04T00:00:00Z'],
  ] as const) {
    for (const tenantId of [null, '102' as TenantId]) {
      const [sum] = await query<{ n: string; users: string; tokens: string }>(
        app.databaseUrl,
        `select count(*) as n, count(distinct user_id) as users, sum(total_tokens) as tokens from usage_ledger
         where created_at >= $1 and created_at < $2 and ($3::bigint is null or tenant_id = $3)`,
        [from, to, tenantId],
      );
      const whole = { requests: Number(sum!.n), totalTokens: Number(sum!.tokens) };
      expect(await told([], from, to, tenantId)).toMatchObject([whole]);
      expect(requests(await told(['hour'], from, to, tenantId))).toBe(whole.requests);
      const byUser = await told(['user'], from, to, tenantId);
      expect([byUser.length, requests(byUser)]).toEqual([Number(sum!.users), whole.requests]);
    }
  }
}, 120_000);

it('adds up a day when it has ended, and again when a row of it comes late; today is told from its hours', async () => {
  const rollUp = app.app.nest.get(UsageRollUp);
  const add = (id: number, daysAgo: number) =>
    query(
      app.databaseUrl,
      `${insert} values ($1, 105, null, 'u', null, 1, 1, 1, 1, 2, false, 0.5, 'finished', 1, 'dialogue', 'm',
         date_trunc('day', now(), 'UTC') - $2 * interval '1 day')`,
      [id, daysAgo],
    );
  const days = async () =>
    (
      await query<{ ago: number; n: string }>(
        app.databaseUrl,
        `select (extract(epoch from date_trunc('day', now(), 'UTC') - day) / 86400)::int as ago, requests as n
         from usage_days where tenant_id = 105 order by day`,
      )
    ).map(({ ago, n }) => [ago, Number(n)]);
  const told = async () => {
    const tenantId = '105' as TenantId;
    const range = { from: new Date(Date.now() - 5 * 86_400_000), to: new Date(Date.now() + 86_400_000) };
    const rows = await app.app.nest
      .get(UsageReport)
      .rows(platformScope(tenantId), { ...range, tenantId, groupBy: [] });
    return rows[0]!.requests;
  };
  await add(-11, 1);
  await add(-12, 0);
  await rollUp.run();
  expect(await days()).toEqual([[1, 1]]);
  expect(await told()).toBe(2);
  // As it was yesterday: that day had not ended, and had no sum yet.
  await query(app.databaseUrl, 'delete from usage_days where tenant_id = 105');
  await query(
    app.databaseUrl,
    `update usage_roll_up set days_until = date_trunc('day', now(), 'UTC') - interval '1 day'`,
  );
  expect(await told()).toBe(2);
  await rollUp.run();
  expect(await days()).toEqual([[1, 1]]);
  await add(-13, 1);
  await add(-14, 0);
  await rollUp.run();
  expect(await days()).toEqual([[1, 2]]);
  expect(await told()).toBe(4);
  // Whose clock is behind must not take up a day that others have left behind.
  await query(
    app.databaseUrl,
    `update usage_roll_up set days_until = date_trunc('day', now(), 'UTC') + interval '1 day'`,
  );
  await add(-15, 0);
  await rollUp.run();
  expect(await days()).toEqual([
    [1, 2],
    [0, 3],
  ]);
  expect(await told()).toBe(5);
});

it('misses no row that is committed late, and takes up one that is changed', async () => {
  const rollUp = app.app.nest.get(UsageRollUp);
  const late = new Client({ connectionString: app.databaseUrl });
  await late.connect();
  try {
    const values = `(104, null, 'u', null, 1, 1, 1, 1, 2, false, 0.5, 'interrupted', 1, 'dialogue', 'm', '2026-02-01T10:30:00Z')`;
    const row = (id: number) => `${insert} values ${values.replace('(', `(${id}, `)}`;
    await late.query('begin');
    await late.query(row(-1));
    // Another one, begun later, ends first, and the hours are added up meanwhile.
    await query(app.databaseUrl, row(-2));
    await rollUp.run();
    const requests = async () =>
      (
        await query<{ n: string }>(
          app.databaseUrl,
          'select sum(requests) as n from usage_hours where tenant_id = 104',
        )
      )[0]!.n;
    expect(await requests()).toBe('1');
    await late.query('commit');
    await rollUp.run();
    expect(await requests()).toBe('2');
    await query(
      app.databaseUrl,
      `update usage_ledger set outcome = 'finished', total_tokens = 50, txid = pg_current_xact_id() where message_id = -1`,
    );
    await rollUp.run();
    await query(app.databaseUrl, 'select 1');
    const report = await app.app.nest.get(UsageReport).rows(platformScope('104' as TenantId), {
      from: new Date('2026-02-01'),
      to: new Date('2026-02-02'),
      tenantId: '104' as TenantId,
      groupBy: [],
    });
    expect(report).toMatchObject([{ requests: 2, totalTokens: 52, credits: 1 }]);
  } finally {
    await late.end();
  }
});

it('begins anew on the cluster of a restored dump', async () => {
  const rollUp = app.app.nest.get(UsageRollUp);
  await query(app.databaseUrl, `update usage_roll_up set watermark = '9000000000000000000'`);
  await query(app.databaseUrl, `update usage_ledger set txid = '8000000000000000000' where tenant_id = 104`);
  await query(app.databaseUrl, 'delete from usage_hours where tenant_id = 104');
  await rollUp.run();
  const hours = () => query(app.databaseUrl, 'select requests from usage_hours where tenant_id = 104');
  expect(await hours()).toEqual([{ requests: '2' }]);
  const [place] = await query<{ low: boolean }>(
    app.databaseUrl,
    `select watermark < '9000000000'::xid8 as low from usage_roll_up`,
  );
  expect(place!.low).toBe(true);
  // Numbers of another cluster are not looked at again and again.
  await query(app.databaseUrl, 'delete from usage_hours where tenant_id = 104');
  await rollUp.run();
  expect(await hours()).toEqual([]);
});
