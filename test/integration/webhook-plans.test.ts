import { Client, escapeLiteral } from 'pg';
import type { DataSource, QueryRunner } from 'typeorm';
import type { TenantId, WebhookId } from '../../src/common';
import { applicationDataSource, beginUnder, platformScope, type Statement } from '../../src/database';
import { claim, endWaiting } from '../../src/webhooks/deliveries.repository';
import { freshDatabase } from '../support/database';

/** Of a plan as EXPLAIN (ANALYZE, FORMAT JSON) tells it. */
interface PlanNode {
  readonly 'Relation Name'?: string;
  readonly 'Index Name'?: string;
  readonly 'Node Type': string;
  readonly 'Actual Rows': number;
  readonly 'Actual Loops': number;
  readonly 'Rows Removed by Filter'?: number;
  readonly Plans?: readonly PlanNode[];
}

const WAITING = 20_000;
/** Of one webhook a claim looks at the 50 that have been due for longest. */
const WINDOW = 50;
const PAUSED = '1';
const FULL = '2';
const BUSY = '3';
const QUIET = '4';
const OFF = '5';
const STATEMENTS: Readonly<Record<string, Statement<unknown>>> = {
  claiming: claim(
    {
      limit: 100,
      perWebhook: 10,
      perOrigin: 20,
      perTenant: 100,
      running: [{ webhookId: FULL as WebhookId, tenantId: '1' as TenantId, origin: 'http://a', count: 10 }],
    },
    5,
    15,
  ),
  'ending what waits': endWaiting(5, 24),
};

let postgres: Awaited<ReturnType<typeof freshDatabase>>;
let source: DataSource;
let session: QueryRunner;
const sql = <T = unknown>(text: string): Promise<T[]> => session.query(text) as Promise<T[]>;

beforeAll(async () => {
  postgres = await freshDatabase();
  source = await applicationDataSource({ url: postgres.url, poolSize: 1, entities: [] }).initialize();
  session = source.createQueryRunner();
  const owner = new Client({ connectionString: postgres.url });
  await owner.connect();
  const fill = (webhook: string, rows: number) =>
    owner.query(
      `insert into webhook_deliveries (webhook_id, tenant_id, event, event_id, payload)
       select $1, tenant_id, 'message.created', i::text, '{}' from webhooks, generate_series(1, $2::int) i where id = $1`,
      [webhook, rows],
    );
  await owner.query(`
    insert into tenants (id, name) values (1, 'one'), (2, 'two');
    insert into webhooks (id, tenant_id, url, secret, events, origin, enabled, failures, paused_until) values
      (${PAUSED}, 1, 'http://a/', '', '{}', 'http://a', true, 5, now() + interval '1 hour'),
      (${FULL}, 1, 'http://a/', '', '{}', 'http://a', true, 0, null),
      (${BUSY}, 1, 'http://b/', '', '{}', 'http://b', true, 0, null),
      (${QUIET}, 2, 'http://c/', '', '{}', 'http://c', true, 0, null),
      (${OFF}, 1, 'http://d/', '', '{}', 'http://d', false, 0, null)`);
  // As a server does that was installed a minute ago: planned once, while there is next to nothing.
  for (const statement of Object.values(STATEMENTS)) {
    await sql(`prepare "${statement.name}" as ${statement.text}`);
    await explain(statement);
  }
  for (const webhook of [PAUSED, FULL, BUSY]) await fill(webhook, WAITING);
  await fill(OFF, 10);
  await fill(QUIET, 1);
  await owner.end();
});
afterAll(async () => {
  await session.release();
  await source.destroy();
  await postgres.drop();
});

const call = ({ name, values }: Statement<unknown>): string => {
  const literal = (value: unknown): string =>
    escapeLiteral(Array.isArray(value) ? `{${value.join(',')}}` : String(value));
  return `execute "${name}"(${values.map(literal).join(', ')})`;
};

async function undone<T>(work: () => Promise<T>): Promise<T> {
  await sql(beginUnder(platformScope()));
  try {
    return await work();
  } finally {
    await sql('rollback');
  }
}

const explain = (statement: Statement<unknown>): Promise<PlanNode> =>
  undone(async () => {
    const [row] = await sql<{ 'QUERY PLAN': [{ Plan: PlanNode }] }>(
      `explain (analyze, format json) ${call(statement)}`,
    );
    return row!['QUERY PLAN'][0].Plan;
  });

/** How many rows of the outbox a plan came by, in the table and in its indexes. */
function rowsRead(node: PlanNode): number {
  const ours =
    node['Relation Name'] === 'webhook_deliveries' || /^webhook_deliveries_/.test(node['Index Name'] ?? '');
  const own =
    ours && node['Node Type'] !== 'ModifyTable'
      ? (node['Rows Removed by Filter'] ?? 0) + node['Actual Rows']
      : 0;
  return own * node['Actual Loops'] + (node.Plans ?? []).reduce((sum, child) => sum + rowsRead(child), 0);
}

test.each(Object.entries(STATEMENTS))(
  '%s comes by a few rows of each webhook, however many wait, planned before there were any',
  async (_what, statement) => {
    expect(rowsRead(await explain(statement))).toBeLessThanOrEqual(6 * WINDOW);
  },
);

test('a claim takes the oldest of each that has room, none of one that is paused, full or switched off', async () => {
  // Of an update TypeORM tells the rows and how many they are.
  const [rows] = await undone(() =>
    sql<{ webhook_id: string; event_id: string }[]>(call(STATEMENTS.claiming!)),
  );
  const of = (webhook: string) =>
    rows!
      .filter(({ webhook_id: id }) => id === webhook)
      .map(({ event_id: id }) => Number(id))
      .sort((a, b) => a - b);
  expect([of(PAUSED), of(FULL), of(OFF)]).toEqual([[], [], []]);
  expect(of(BUSY)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  expect(of(QUIET)).toEqual([1]);
});
