import { ask, bootApp, eventually, type Answer, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { Device, Im, type Frame } from '../support/im-rest';

let app: TestApp;
let acme: TestTenant;
let im: Im;
let rival: Im;

beforeAll(async () => {
  app = await bootApp();
  const tenants = await Promise.all([app.tenant(), app.tenant()]);
  acme = tenants[0];
  [im, rival] = tenants.map(({ apiKey }) => new Im(app.url, apiKey)) as [Im, Im];
});
afterAll(() => app.close());

const contents = (frames: Frame[]): unknown[] => frames.map(({ msg }) => (msg as Frame).content);
const seqs = ({ body }: Answer): number[] => (body.data as { seq: number }[]).map(({ seq }) => seq);

/** A conversation of two, with so many messages. */
async function conversation(user: string, peer: string, messages: number): Promise<string> {
  let last: Answer | undefined;
  for (let n = 1; n <= messages; n += 1) last = await im.say(user, peer, `m${n}`);
  return last!.body.conversationId as string;
}

describe('sending', () => {
  it("reaches the target and the impersonated user's own devices, with the JSON types it was sent with", async () => {
    const [bob, own, rich] = await Promise.all([
      im.connect('bob'),
      im.connect(71),
      im.connect(71, { client: 'phone', rich: true }),
    ]);
    const msg = { msgId: 1, timestamp: '1611065986', content: '你好 👋', nested: { big: 3 } };
    const answer = await im.post('/messages', {
      type: 'single',
      source: 71,
      target: 'bob',
      msgType: 'card',
      msg,
      extra: [1, null],
    });
    expect(answer.status).toBe(200);
    const { id, conversationId } = answer.body as Frame;
    expect(answer.body).toEqual({
      id: expect.stringMatching(/^\d+$/) as string,
      seq: 1,
      conversationId: expect.stringMatching(/^\d+$/) as string,
      timestamp: expect.any(Number) as number,
      repeated: false,
    });
    const frame = {
      type: 'single',
      source: 71,
      target: 'bob',
      msgType: 'card',
      msg,
      extra: [1, null],
      id,
      seq: 1,
    };
    expect(await bob.next({ type: 'single' })).toEqual(frame);
    expect(await own.next({ type: 'single' })).toEqual(frame);
    expect(await rich.next({ type: 'single' })).toMatchObject({ ...frame, conversationId });
  });

  it('is `system` when nobody is named', async () => {
    const carol = await im.connect('carol');
    await im.post('/messages', { type: 'single', target: 'carol', msg: { content: 'maintenance' } });
    expect(await carol.next({ type: 'single' })).toMatchObject({
      source: 'system',
      target: 'carol',
      msg: { content: 'maintenance' },
    });
  });

  it('to a group reaches every member, also from somebody who is not in it', async () => {
    const members = await Promise.all(['ann', 'ben'].map((user) => im.connect(user, { groups: ['crew'] })));
    const { status } = await im.post('/messages', { type: 'group', target: 'crew', msg: { content: 'all' } });
    expect(status).toBe(200);
    for (const member of members)
      expect(await member.next({ type: 'group' })).toMatchObject({ source: 'system', target: 'crew' });
  });

  it('to a group that is not there is 404, also where a rival has one of that id', async () => {
    await rival.post('/groups', { groupId: 'elsewhere' });
    const sent = { type: 'group', target: 'elsewhere', msg: { content: 'x' } };
    expect(await im.post('/messages', sent)).toMatchObject({ status: 404, body: { code: 'NOT_FOUND' } });
    expect((await rival.post('/messages', sent)).status).toBe(200);
  });

  it('the same again answers with the first one and tells nobody; another content is 409', async () => {
    const dan = await im.connect('dan');
    const msg = { msgId: 'order-17', timestamp: 1_700_000_000, content: 'shipped' };
    const send = (content: string, more = {}) =>
      im.say('shop', 'dan', '', { msg: { ...msg, content, ...more } });
    const first = await send('shipped');
    const again = await send('shipped', { timestamp: '1700000000' });
    expect(again.body).toEqual({ ...(first.body as object), repeated: true });
    expect(await send('cancelled')).toMatchObject({ status: 409, body: { code: 'CONFLICT' } });
    expect((await send('later', { timestamp: 1_700_000_001 })).body).toMatchObject({
      seq: 2,
      repeated: false,
    });
    await dan.next({ seq: 2 });
    expect(contents(dan.of('single'))).toEqual(['shipped', 'later']);
  });

  it.each<[string, object]>([
    ['type', { type: 'everyone' }],
    ['type', { type: undefined }],
    ['target', { target: undefined }],
    ['target', { target: '' }],
    ['target', { target: { id: 1 } }],
    ['source', { source: 'x'.repeat(129) }],
    ['msg', { msg: undefined }],
    ['msg', { msg: 'text' }],
    ['msg.msgId', { msg: { msgId: {} } }],
    ['msg.timestamp', { msg: { timestamp: 'yesterday' } }],
    ['msg.timestamp', { msg: { timestamp: Date.now() + 40 * 86_400_000 } }],
    ['msgType', { msgType: 7 }],
  ])('refuses a bad %s by name, and stores nothing', async (field, wrong) => {
    const answer = await im.say('erin', 'frank', 'x', wrong);
    expect(answer).toMatchObject({ status: 400, body: { code: 'BAD_INPUT' } });
    expect(answer.body.error).toMatch(new RegExp(`^${field}\\b`));
    expect((await im.get('/conversations?userId=erin')).body.data).toEqual([]);
  });
});

describe('conversations', () => {
  it('come most recent first, with what is unread', async () => {
    const first = await conversation('gil', 'hal', 2);
    const second = await conversation('ida', 'gil', 3);
    const of = async (user: string) =>
      (await im.get(`/conversations?userId=${user}`)).body as { data: Frame[] };
    expect(await of('gil')).toEqual({
      nextCursor: null,
      data: [
        { id: second, kind: 'single', target: 'ida', lastSeq: 3, readSeq: 0, unread: 3 },
        { id: first, kind: 'single', target: 'hal', lastSeq: 2, readSeq: 0, unread: 0 },
      ],
    });
    const gil = await im.connect('gil', { rich: true });
    gil.send({ type: 'read', conversationId: second, seq: 2 });
    await gil.send({ type: 'ping' }).next({ type: 'pong' });
    await im.say('hal', 'gil', 'and you?');
    expect((await of('gil')).data).toMatchObject([
      { id: first, target: 'hal', unread: 1 },
      { id: second, target: 'ida', readSeq: 2, unread: 1 },
    ]);
    expect((await rival.get('/conversations?userId=gil')).body).toEqual({ data: [], nextCursor: null });
  });

  it('come page by page, also those in which nothing was said', async () => {
    const peers = ['p1', 'p2', 'p3', 'p4', 'p5'];
    for (const peer of peers) await im.say(peer, 'many', 'hello');
    // Made by a message that was not stored.
    await query(
      app.databaseUrl,
      `update conversations set last_id = 0 where key in ('["many","p1"]', '["many","p2"]')`,
    );
    const pages: string[][] = [];
    for (let cursor: string | null = ''; cursor !== null;) {
      const { body } = await im.get(`/conversations?userId=many&limit=2&cursor=${cursor}`);
      pages.push((body.data as Frame[]).map(({ target }) => target as string));
      cursor = body.nextCursor as string | null;
    }
    expect(pages.map(({ length }) => length)).toEqual([2, 2, 1]);
    expect(pages.flat().slice(0, 3)).toEqual(['p5', 'p4', 'p3']);
    expect(pages.flat().sort()).toEqual(peers);
    for (const wrong of ['cursor=x', 'cursor=1.', 'limit=501', 'limit=0'])
      expect([wrong, (await im.get(`/conversations?userId=many&${wrong}`)).status]).toEqual([wrong, 400]);
  });

  it('have a history whose pages are bounded in bytes, too, both ways', async () => {
    const content = 'x'.repeat(60_000);
    let id = '';
    for (let n = 0; n < 8; n += 1)
      id = (await im.say('large', 'larger', '', { msg: { content } })).body.conversationId as string;
    const forwards: number[][] = [];
    for (let after = 0, more = true; more;) {
      const answer = await im.get(`/conversations/${id}/messages?after=${after}`);
      forwards.push(seqs(answer));
      after = seqs(answer).at(-1)!;
      more = answer.body.hasMore as boolean;
    }
    expect(forwards).toEqual([
      [1, 2, 3, 4, 5],
      [6, 7, 8],
    ]);
    const newest = await im.get(`/conversations/${id}/messages?before=9`);
    expect([seqs(newest), newest.body.hasMore]).toEqual([[4, 5, 6, 7, 8], true]);
  });

  it('have a history: oldest first, `before` and `after` exclusive, in pages both ways', async () => {
    const id = await conversation('jim', 'kay', 7);
    const page = async (query: string) => {
      const answer = await im.get(`/conversations/${id}/messages?${query}`);
      return [seqs(answer), answer.body.hasMore];
    };
    expect(await page('')).toEqual([[1, 2, 3, 4, 5, 6, 7], false]);
    expect(await page('limit=3')).toEqual([[1, 2, 3], true]);
    expect(await page('after=3&limit=3')).toEqual([[4, 5, 6], true]);
    expect(await page('after=4&limit=3')).toEqual([[5, 6, 7], false]);
    expect(await page('before=8&limit=3')).toEqual([[5, 6, 7], true]);
    expect(await page('before=4&limit=3')).toEqual([[1, 2, 3], false]);
    expect(await page('after=2&before=6')).toEqual([[3, 4, 5], false]);
    expect(await page('after=2&before=6&limit=2')).toEqual([[3, 4], true]);
    expect(await page('after=7')).toEqual([[], false]);
    expect(await page('before=1')).toEqual([[], false]);
    expect((await im.history(id))[0]).toEqual({
      id: expect.stringMatching(/^\d+$/) as string,
      seq: 1,
      conversationId: id,
      type: 'single',
      source: 'jim',
      target: 'kay',
      msgType: 'text',
      msg: { content: 'm1' },
      extra: null,
      timestamp: expect.any(Number) as number,
      recalled: false,
    });
    for (const query of ['limit=0', 'limit=x', 'before=-1', 'after=1.5'])
      expect([query, (await im.get(`/conversations/${id}/messages?${query}`)).status]).toEqual([query, 400]);
  });

  it('of another tenant are 404', async () => {
    const id = await conversation('leo', 'mia', 1);
    expect(await rival.get(`/conversations/${id}/messages`)).toMatchObject({
      status: 404,
      body: { code: 'NOT_FOUND' },
    });
    expect((await rival.delete(`/conversations/${id}/messages/1`)).status).toBe(404);
    for (const path of ['/conversations/12345/messages', '/conversations/x/messages'])
      expect((await im.get(path)).status).toBe(404);
    expect(await im.history(id)).toMatchObject([{ recalled: false }]);
  });

  it('lose a message to a recall by the server, whoever sent it: a tombstone stays in its place', async () => {
    const [ned, oda] = await Promise.all(['ned', 'oda'].map((user) => im.connect(user, { rich: true })));
    const { conversationId } = (await im.say('ned', 'oda', '', { msg: { msgId: 5, content: 'oops' } }))
      .body as Frame;
    await im.say('ned', 'oda', 'second');
    const recalled = await im.delete(`/conversations/${conversationId}/messages/1`);
    expect(recalled).toMatchObject({ status: 200, body: { seq: 1, recalled: true, msg: { msgId: 5 } } });
    for (const device of [ned!, oda!])
      expect(await device.next({ type: 'recall' })).toMatchObject({
        conversationId,
        seq: 1,
        source: 'system',
      });
    const history = await im.history(conversationId as string);
    expect(history).toMatchObject([
      { seq: 1, recalled: true },
      { seq: 2, recalled: false },
    ]);
    expect(JSON.stringify(history)).not.toContain('oops');
    for (const seq of ['3', '0', 'x'])
      expect((await im.delete(`/conversations/${conversationId}/messages/${seq}`)).status).toBe(404);
  });
});

describe("a user's sessions", () => {
  it('end when the server revokes them: sockets close with 4401, old tokens are refused, new ones work', async () => {
    const token = await im.token('pam');
    const [pc, phone, other] = await Promise.all([
      im.connect('pam', { token }),
      im.connect('pam', { client: 'phone' }),
      im.connect('not-pam'),
    ]);
    const foreign = await rival.connect('pam');
    const began = Date.now();
    const answer = await im.delete('/users/pam/sessions');
    expect(answer).toMatchObject({ status: 200, body: { userId: 'pam', client: null } });
    expect(await Promise.all([pc.closed(), phone.closed()])).toEqual([4401, 4401]);
    expect(Date.now() - began).toBeLessThan(1_500);
    const again = new Device(app.url, 'pam', token);
    await again.closed();
    expect(again.refused).toBe(401);
    const fresh = await im.connect('pam');
    for (const device of [fresh, other, foreign]) await device.send({ type: 'ping' }).next({ type: 'pong' });
  });

  it('end for one client alone, on every node', async () => {
    const second = await bootApp({}, app.databaseUrl);
    try {
      const elsewhere = new Im(second.url, acme.apiKey);
      const token = await im.token('quin');
      const [pc, phone] = await Promise.all([
        elsewhere.connect('quin', { token }),
        im.connect('quin', { client: 'phone' }),
      ]);
      await im.delete('/users/quin/sessions?client=pc');
      expect(await pc.closed()).toBe(4401);
      const again = new Device(second.url, 'quin', token);
      await again.closed();
      expect(again.refused).toBe(401);
      await phone.send({ type: 'ping' }).next({ type: 'pong' });
    } finally {
      await second.close();
    }
  });

  it('are seen from outside', async () => {
    expect((await im.get('/users/rob/presence')).body).toEqual({ user: 'rob', online: false, clients: [] });
    const pc = await im.connect('rob');
    await im.connect('rob', { client: 'phone' });
    expect((await im.get('/users/rob/presence')).body).toEqual({
      user: 'rob',
      online: true,
      clients: ['pc', 'phone'].map((client) => ({ client, connectedAt: expect.any(Number) as number })),
    });
    expect(await rival.clients('rob')).toEqual([]);
    await pc.close();
    await eventually(async () => (await im.clients('rob')).join() === 'phone');
  });
});

it('is for keys with the scope `im`: 401 without a key, 403 without the scope', async () => {
  const { body } = await acme.post(`/api/admin/tenants/${acme.id}/api-keys`, {
    name: 'no im',
    scopes: ['dialogue', 'models', 'usage'],
  });
  const scopeless = { 'x-api-key': (body as { key: string }).key };
  for (const [method, path] of [
    ['POST', '/messages'],
    ['POST', '/broadcasts'],
    ['POST', '/tokens'],
    ['GET', '/conversations?userId=a'],
    ['GET', '/conversations/1/messages'],
    ['DELETE', '/conversations/1/messages/1'],
    ['DELETE', '/users/a/sessions'],
    ['GET', '/users/a/presence'],
    ['GET', '/groups'],
    ['GET', '/webhooks'],
  ] as const) {
    const status = async (headers: Record<string, string>) =>
      (await ask(app.url, method, `/api/v1/im${path}`, method === 'POST' ? {} : undefined, headers)).status;
    expect([path, await status({}), await status(scopeless)]).toEqual([path, 401, 403]);
  }
});
