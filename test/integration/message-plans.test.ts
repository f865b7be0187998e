import { Client, escapeLiteral } from 'pg';
import type { DataSource, QueryRunner } from 'typeorm';
import { idAtTime, type ConversationId, type MessageId, type TenantId } from '../../src/common';
import { applicationDataSource, beginUnder, tenantsScope, type Statement } from '../../src/database';
import {
  lockConversations,
  storeIfUnchanged,
  storeStatements,
  type NumberedMessage,
} from '../../src/messages/append-statements';
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

const TENANT = '1000' as TenantId;
const CONVERSATIONS = 300;
const OURS = ['5000', '5001'] as ConversationId[];

const messages = OURS.map((conversationId, index): NumberedMessage => ({
  seq: 1,
  draft: {
    id: String(BigInt(idAtTime(Date.now())) + BigInt(index)) as MessageId,
    tenantId: TENANT,
    conversationId,
    sender: 'ann',
    side: 0,
    client: 'pc',
    dedupe: `ann\n${index}\n1`,
    clientTime: 1,
    frame: '{}',
    only: null,
    assistantId: null,
  },
}));

const STATEMENTS: Readonly<Record<string, Statement<unknown>>> = {
  'the whole of a batch in one statement': storeIfUnchanged(messages, () => 0, {
    oldest: '1',
    newest: '9223372036854775807',
  }),
  locking: lockConversations(OURS),
  'storing under locks': storeStatements(messages, new Map())[0]!,
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
  const fill = (from: number, to: number) =>
    owner.query(
      `insert into conversations (id, tenant_id, kind, key)
       select 5000 + i, $1, 'single', 'a' || i from generate_series($2::int, $3) i`,
      [TENANT, from, to],
    );
  // As a server does that was installed a minute ago: planned once, while there is next to nothing.
  await fill(0, 9);
  for (const statement of Object.values(STATEMENTS)) {
    await sql(`prepare "${statement.name}" as ${statement.text}`);
    await explain(statement);
  }
  await fill(10, CONVERSATIONS);
  await owner.end();
});
afterAll(async () => {
  await session.release();
  await source.destroy();
  await postgres.drop();
});

async function explain({ name, values }: Statement<unknown>): Promise<PlanNode> {
  const literal = (value: unknown): string => {
    if (Buffer.isBuffer(value)) return `array[${textsOf(value).map(literal).join(', ')}]::text[]`;
    if (value === null) return 'null';
    return escapeLiteral(
      Array.isArray(value) ? `{${value.join(',')}}` : (value as string | number).toString(),
    );
  };
  await sql(beginUnder(tenantsScope([TENANT])));
  try {
    const [row] = await sql<{ 'QUERY PLAN': [{ Plan: PlanNode }] }>(
      `explain (analyze, format json) execute "${name}"(${values.map(literal).join(', ')})`,
    );
    return row!['QUERY PLAN'][0].Plan;
  } finally {
    await sql('rollback');
  }
}

/** What `textArray` has made: elements after five words, each after its length, -1 for null. */
function textsOf(array: Buffer): (string | null)[] {
  const texts: (string | null)[] = [];
  for (let at = 20; at < array.length;) {
    const length = array.readInt32BE(at);
    at += 4;
    texts.push(length < 0 ? null : array.toString('utf8', at, at + length));
    at += Math.max(0, length);
  }
  return texts;
}

/** How many rows of `conversations` a plan came by, in the table and in its indexes. */
function rowsRead(node: PlanNode): number {
  const ours = node['Relation Name'] === 'conversations' || /^conversations_/.test(node['Index Name'] ?? '');
  const own =
    ours && node['Node Type'] !== 'ModifyTable'
      ? (node['Rows Removed by Filter'] ?? 0) + node['Actual Rows']
      : 0;
  return own * node['Actual Loops'] + (node.Plans ?? []).reduce((sum, child) => sum + rowsRead(child), 0);
}

test.each(Object.entries(STATEMENTS))(
  '%s reads the conversations it is about, not all of the tenant’s, planned before there were any',
  async (_what, statement) => {
    // Each may be come by a few times: to lock, to check, to write.
    expect(rowsRead(await explain(statement))).toBeLessThanOrEqual(5 * OURS.length);
  },
);
