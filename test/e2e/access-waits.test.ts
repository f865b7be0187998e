import { request } from 'node:http';
import { Client } from 'pg';
import { FairShares } from '../../src/fairness';
import { ask, bootApp, eventually, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { Im } from '../support/im-rest';

/** What has not begun when a key ends is not done with it: neither what is still being sent, nor what waits for its turn. */
let app: TestApp;

beforeAll(async () => {
  app = await bootApp({ TENANT_REQUESTS_AT_WORK: '1' });
});
afterAll(() => app.close());

const root = () => ({ 'x-api-key': app.rootKey });
const counts = () => app.app.nest.get(FairShares).counts;
const SCOPES = ['im', 'dialogue'];

interface Mine {
  readonly tenant: TestTenant;
  readonly key: string;
  readonly path: string;
}

async function keyOf(tenant: TestTenant): Promise<Mine> {
  const path = `/api/admin/tenants/${tenant.id}/api-keys`;
  const made = await ask(app.url, 'POST', path, { name: 'second', scopes: SCOPES }, root());
  const { key, id } = made.body as { key: string; id: string };
  return { tenant, key, path: `${path}/${id}` };
}

const change = async (method: string, path: string, body?: object): Promise<void> => {
  const answer = await ask(app.url, method, path, body, root());
  if (answer.status !== 200) throw new Error(answer.text);
};

const LOSSES: [what: string, status: number, lose: (mine: Mine) => Promise<void>][] = [
  ['revoked', 401, ({ path }) => change('DELETE', path)],
  ['rotated', 401, ({ path }) => change('POST', `${path}/rotate`)],
  ['narrowed to fewer scopes', 403, ({ path }) => change('PATCH', path, { scopes: ['dialogue'] })],
  [
    'narrowed to other addresses',
    401,
    ({ path }) => change('PATCH', path, { allowedAddresses: ['203.0.113.7'] }),
  ],
  [
    'of a tenant that is suspended',
    401,
    ({ tenant }) => change('PATCH', `/api/admin/tenants/${tenant.id}`, { status: 'suspended' }),
  ],
];

/** The head and the beginning of a message have come to the server; `finish` sends the rest. */
async function halfSent(key: string): Promise<{ finish(): Promise<number> }> {
  const message = { type: 'single', source: 'ann', target: 'bob', msg: { content: 'late' } };
  const body = JSON.stringify(message);
  const sent = request(`${app.url}/api/v1/im/messages`, {
    method: 'POST',
    agent: false,
    headers: { 'x-api-key': key, 'content-type': 'application/json', 'content-length': body.length },
  });
  const status = new Promise<number>((resolve, reject) => {
    sent.once('error', reject).once('response', (response) => resolve(response.resume().statusCode!));
  });
  sent.write(body.slice(0, 5));
  await eventually(async () => counts().tenants === 1);
  const since = performance.now();
  return {
    finish: async () => {
      // As long as an admission stands by itself.
      await eventually(async () => performance.now() - since > 150);
      sent.end(body.slice(5));
      return status;
    },
  };
}

const messagesOf = ({ id }: TestTenant) =>
  query(app.databaseUrl, 'select 1 from messages where tenant_id = $1', [id]);

/** On this process a key is known to have ended at once, a suspended tenant within a second. */
const refused = (key: string) =>
  eventually(async () => {
    const answer = await new Im(app.url, key).get('/conversations?userId=ann');
    return answer.status !== 200;
  });

describe.each(LOSSES)('a key that is %s', (_, status, lose) => {
  it(`before the body of its request has come: ${status}, and nothing is stored`, async () => {
    const mine = await keyOf(await app.tenant());
    await eventually(async () => counts().tenants === 0);
    const message = await halfSent(mine.key);
    await lose(mine);
    await refused(mine.key);
    expect(await message.finish()).toBe(status);
    expect(await messagesOf(mine.tenant)).toEqual([]);
  });
});

it('a key that still stands, and a rival whose key ended beside it: the message is stored', async () => {
  const [mine, rival] = await Promise.all([keyOf(await app.tenant()), keyOf(await app.tenant())]);
  await eventually(async () => counts().tenants === 0);
  const message = await halfSent(mine.key);
  await change('DELETE', rival.path);
  await change('PATCH', mine.path, { name: 'third' });
  expect(await message.finish()).toBe(200);
  expect(await messagesOf(mine.tenant)).toHaveLength(1);
});

it('requests that wait for their turn when the key is revoked are not begun; what had begun is done', async () => {
  const mine = await keyOf(await app.tenant());
  const rival = await app.tenant();
  const im = new Im(app.url, mine.key);
  await im.post('/groups', { groupId: 'g1' });
  await new Im(app.url, rival.apiKey).get('/conversations?userId=ann');
  const lock = new Client({ connectionString: app.databaseUrl });
  await lock.connect();
  try {
    await lock.query('begin');
    await lock.query(`select id from conversations where tenant_id = $1 and kind = 'group' for update`, [
      mine.tenant.id,
    ]);
    const begun = im.post('/groups/g1/members', { users: ['ann'] });
    await eventually(async () => counts().atWork === 1);
    const waiting = ['bob', 'cid', 'dan'].map((user) => im.post('/groups/g1/members', { users: [user] }));
    await eventually(async () => counts().waiting === 3);
    await change('DELETE', mine.path);
    // Its place is free after a second at the latest, and theirs as soon as they are refused.
    expect((await Promise.all(waiting)).map(({ status }) => status)).toEqual([401, 401, 401]);
    await lock.query('rollback');
    expect((await begun).status).toBe(200);
  } finally {
    await lock.end();
  }
  const members = await query<{ user_id: string }>(
    app.databaseUrl,
    `select user_id from conversation_members where tenant_id = $1`,
    [mine.tenant.id],
  );
  expect(members.map(({ user_id }) => user_id)).toEqual(['ann']);
});
