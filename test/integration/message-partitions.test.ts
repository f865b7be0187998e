import { MessageLog, ConversationsRepository, type MessageDraft } from '../../src/messages';
import { MessagePartitions } from '../../src/messages/message-partitions';
import { IdGenerator, type ConversationId, type MessageId, type TenantId } from '../../src/common';
import { bootApp, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';

const DAY_MS = 86_400_000;
let app: TestApp;
let acme: TestTenant;
let log: MessageLog;
let conversationId: ConversationId;

beforeAll(async () => {
  app = await bootApp();
  acme = await app.tenant();
  log = app.app.nest.get(MessageLog);
  const conversations = app.app.nest.get(ConversationsRepository);
  conversationId = await conversations.single(acme.id as TenantId, 'ann', 'bob', null);
});
afterAll(() => app.close());

const partitions = async (): Promise<string[]> =>
  (
    await query<{ relname: string }>(
      app.databaseUrl,
      `select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'messages'::regclass order by 1`,
    )
  ).map(({ relname }) => relname);

const nameOf = (at: number): string => `messages_${new Date(at).toISOString().slice(0, 7).replace('-', '')}`;

/** As it would have been made at that time. */
const draft = (at: number, msgId: string, content = 'x'): MessageDraft => ({
  id: new IdGenerator(7, () => at).next<MessageId>(),
  tenantId: acme.id as TenantId,
  conversationId,
  sender: 'ann',
  side: 0,
  client: 'pc',
  dedupe: `ann\n${msgId}\n${at}`,
  clientTime: at,
  frame: JSON.stringify({
    type: 'single',
    source: 'ann',
    target: 'bob',
    msg: { msgId, timestamp: at, content },
  }),
  only: null,
  assistantId: null,
});

it('has this month and the next', async () => {
  const now = Date.now();
  expect(await partitions()).toEqual(expect.arrayContaining([nameOf(now), nameOf(now + 32 * DAY_MS)]));
  await app.app.nest.get(MessagePartitions).tend(now + 62 * DAY_MS);
  expect(await partitions()).toContain(nameOf(now + 62 * DAY_MS));
});

it('are vacuumed after millions of new messages and slowly, and analysed at a glance', async () => {
  await app.app.nest.get(MessagePartitions).tend(Date.now() + 62 * DAY_MS);
  const settings = await query<{ reloptions: string[] | null; sampled: number[] }>(
    app.databaseUrl,
    `select c.reloptions, (select array_agg(distinct coalesce(attstattarget, 100)) from pg_attribute
       where attrelid = c.oid and attnum > 0 and not attisdropped) as sampled
     from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'messages'::regclass`,
  );
  expect(settings.length).toBeGreaterThan(3);
  for (const { reloptions, sampled } of settings) {
    expect(reloptions).toEqual(
      expect.arrayContaining([
        'autovacuum_vacuum_insert_threshold=5000000',
        'autovacuum_vacuum_cost_delay=10',
      ]),
    );
    expect(sampled).toEqual([1]);
  }
});

it('knows a message again whose first copy lies in an older partition', async () => {
  const lastMonth = Date.now() - 31 * DAY_MS;
  const first = await log.store(draft(lastMonth, 'old'));
  expect(first).toMatchObject({ outcome: 'stored' });
  const again = { ...draft(lastMonth, 'old'), id: new IdGenerator().next<MessageId>() };
  expect(await log.store(again)).toEqual({ ...first, outcome: 'repeated' });
  const other = { ...draft(lastMonth, 'old', 'y'), id: new IdGenerator().next<MessageId>() };
  expect(await log.store(other)).toEqual({ outcome: 'conflict' });
});

it('reads history over partitions, in order', async () => {
  await log.store(draft(Date.now(), 'new'));
  const { entries } = await log.page(acme.id as TenantId, conversationId, { limit: 10 });
  expect(entries.map(({ seq }) => seq)).toEqual(entries.map((_, index) => index + 1));
  const tables = await query<{ name: string }>(
    app.databaseUrl,
    `select distinct tableoid::regclass::text as name from messages where conversation_id = ${conversationId}`,
  );
  expect(tables.length).toBeGreaterThan(1);
});

it('drops what is older than is to be kept, whole, and nothing else', async () => {
  const keeping = await bootApp({ MESSAGE_RETENTION_DAYS: '40' }, app.databaseUrl);
  try {
    const before = await partitions();
    // Seen from two months on, last month is over for more than forty days.
    await keeping.app.nest.get(MessagePartitions).tend(Date.now() + 62 * DAY_MS);
    const after = await partitions();
    const gone = before.filter((name) => !after.includes(name));
    expect(gone).toContain(nameOf(Date.now() - 31 * DAY_MS));
    expect(gone.every((name) => name < nameOf(Date.now() + 22 * DAY_MS))).toBe(true);
    expect(after).toContain(nameOf(Date.now() + 62 * DAY_MS));
  } finally {
    await keeping.close();
  }
});
