import { CountBySide1798000000000 } from '../../migrations/1798000000000-count-by-side';
import { singleKey } from '../../src/messages';
import { migratedDatabase } from '../support/migrated-database';

/** The migration of counts into the conversations' rows, on conversations that were there before it. */
const { query, migrate: migrateBy } = migratedDatabase();
const migrate = (way: 'up' | 'down') => migrateBy(new CountBySide1798000000000(), way);

/** Conversations as their members' ids, or a group's name, and who has sent how many there. */
const CONVERSATIONS: readonly [string, 'single' | 'group', readonly string[], Record<string, number>][] = [
  [singleKey('zoe', 'ann'), 'single', ['ann', 'zoe'], { ann: 3, zoe: 5 }],
  [singleKey('ann', 'ann'), 'single', ['ann'], { ann: 7 }],
  [
    singleKey('agent:17', 'bob "the\\ b"'),
    'single',
    ['bob "the\\ b"'],
    { 'agent:17': 2, 'bob "the\\ b"': 4 },
  ],
  [singleKey('张三', '李四'), 'single', ['张三', '李四'], { 张三: 1 }],
  ['team', 'group', ['ann', 'zoe'], { ann: 6, zoe: 1 }],
];

it('moves the counts of one-to-one conversations, and back', async () => {
  await migrate('down');
  const sendersOf = () =>
    query<{ sender: string; sent: string }>(
      'select conversation_id, sender, tenant_id, sent from conversation_senders order by conversation_id, sender',
    );
  for (const [index, [key, kind, members, sent]] of CONVERSATIONS.entries()) {
    const id = 100 + index;
    await query(`insert into conversations (id, tenant_id, kind, key, last_seq) values ($1, 1, $2, $3, 20)`, [
      id,
      kind,
      key,
    ]);
    await query(
      `insert into conversation_members (conversation_id, user_id, tenant_id) select $1, u, 1 from unnest($2::text[]) u`,
      [id, members],
    );
    await query(
      `insert into conversation_senders select $1, u, 1, n from unnest($2::text[], $3::bigint[]) as s(u, n)`,
      [id, Object.keys(sent), Object.values(sent)],
    );
  }
  const before = await sendersOf();

  await migrate('up');
  const rows = await query<{ id: string; sent_first: string; sent_second: string }>(
    'select id, sent_first, sent_second from conversations order by id',
  );
  expect(rows.map(({ sent_first, sent_second }) => [Number(sent_first), Number(sent_second)])).toEqual([
    [3, 5],
    [7, 0],
    [0, 4],
    [1, 0],
    [0, 0],
  ]);
  expect(
    await query('select user_id, side from conversation_members order by conversation_id, user_id'),
  ).toEqual([
    { user_id: 'ann', side: 0 },
    { user_id: 'zoe', side: 1 },
    { user_id: 'ann', side: 0 },
    { user_id: 'bob "the\\ b"', side: 1 },
    { user_id: '张三', side: 0 },
    { user_id: '李四', side: 1 },
    { user_id: 'ann', side: null },
    { user_id: 'zoe', side: null },
  ]);
  // Who is neither of the two, and groups, are counted as before.
  expect((await sendersOf()).map(({ sender, sent }) => [sender, sent])).toEqual([
    ['agent:17', '2'],
    ['ann', '6'],
    ['zoe', '1'],
  ]);

  await migrate('down');
  expect(await sendersOf()).toEqual(before);
  await migrate('up');
});
