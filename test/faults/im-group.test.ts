import { WebSocket } from 'ws';
import { ConversationsRepository } from '../../src/messages';
import type { TenantId } from '../../src/common';
import { bootApp, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { ImClient, userToken } from '../support/im-client';

const MEMBERS = 10_000;
const ONLINE = 1_000;
const MESSAGES = 5;
let app: TestApp;
let acme: TestTenant;

beforeAll(async () => {
  app = await bootApp({ IM_TOKENS_PER_MINUTE: '100000', IM_CONNECTIONS_PER_ADDRESS: '5000' });
  acme = await app.tenant();
});
afterAll(() => app.close());

/** One of the many: counts what it gets, and its numbers. */
class Listener {
  readonly seqs: number[] = [];
  constructor(readonly ws: WebSocket) {
    ws.on('message', (data: Buffer) => {
      const frame = JSON.parse(data.toString()) as { type: string; seq: number };
      if (frame.type === 'group') this.seqs.push(frame.seq);
    });
  }
}

it('a group of 10,000 members, 1,000 of them online, gets every message, and others are not kept waiting', async () => {
  const tenantId = acme.id as TenantId;
  await acme.post('/api/v1/im/groups', { groupId: 'crowd', owner: 'm0' });
  const group = (await app.app.nest.get(ConversationsRepository).findGroup(tenantId, 'crowd'))!;
  await query(
    app.databaseUrl,
    `insert into conversation_members (conversation_id, user_id, tenant_id, from_seq, read_seq)
     select ${group.id}, 'm' || n, ${tenantId}, 1, 1 from generate_series(1, ${MEMBERS - 1}) as n`,
  );
  await query(app.databaseUrl, `update conversations set member_count = ${MEMBERS} where id = ${group.id}`);
  const listeners: Listener[] = [];
  for (let from = 1; from <= ONLINE; from += 50) {
    const some = Array.from({ length: 50 }, async (_, index) => {
      const token = await userToken(app.url, acme.apiKey, `m${from + index}`);
      const ws = new WebSocket(`${app.url.replace('http', 'ws')}/chat?token=${token}`);
      const listener = new Listener(ws);
      await new Promise((resolve, reject) => ws.once('open', resolve).once('error', reject));
      return listener;
    });
    listeners.push(...(await Promise.all(some)));
  }
  const speaker = new ImClient({
    url: app.url,
    token: await userToken(app.url, acme.apiKey, 'm0'),
    user: 'm0',
  });
  const [ann, bob] = await Promise.all(
    ['ann', 'bob'].map(
      async (user) =>
        new ImClient({ url: app.url, token: await userToken(app.url, acme.apiKey, user), user }),
    ),
  );
  try {
    for (let n = 0; n < MESSAGES; n += 1) speaker.say('group', 'crowd', `to everybody ${n}`);
    // A pair that has nothing to do with it talks meanwhile; each of their messages waits for the one before.
    for (let n = 0; n < 20; n += 1) {
      const { msg } = ann!.say('single', 'bob', n);
      await ann!.waitFor((client) => client.sent.has(String(msg.msgId)));
    }
    await bob!.waitFor((client) => client.frames.filter(({ type }) => type === 'single').length === 20);
    await speaker.waitFor((client) => client.sent.size === MESSAGES);
    const expected = [...speaker.sent.values()].map(({ seq }) => seq as number);
    const late = (): Listener[] => listeners.filter(({ seqs }) => seqs.length < MESSAGES);
    while (late().length > 0) await new Promise((resolve) => late()[0]!.ws.once('message', resolve));
    expect(new Set(listeners.map(({ seqs }) => seqs.join()))).toEqual(new Set([expected.join()]));
  } finally {
    for (const client of [speaker, ann!, bob!]) await client.stop();
    for (const { ws } of listeners) ws.terminate();
  }
}, 120_000);
