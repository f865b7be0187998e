import { createHmac } from 'node:crypto';
import { bootApp, eventually, type Answer, type TestApp } from '../support/app';
import { query } from '../support/database';
import { Hooked, Im, type Frame, type Received } from '../support/im-rest';
import { gate, Upstream } from '../support/upstream';

const EVENTS = ['message.created', 'user.online', 'user.offline', 'group.changed'];

let app: TestApp;
let upstream: Upstream;
let rival: Hooked;

beforeAll(async () => {
  [app, upstream] = await Promise.all([bootApp(), Upstream.start()]);
  rival = await acme(EVENTS);
});
afterAll(async () => {
  // The rival asked for everything, and all of it happened to others.
  expect(rival.receiver.received).toEqual([]);
  await app.close();
  await upstream.close();
});

const acme = (events: string[]) =>
  Hooked.make(app, events, undefined, { baseUrl: upstream.url, model: 'echo' });

describe('message.created', () => {
  it('tells of every message that is stored, however it came, once', async () => {
    const to = await acme(['message.created']);
    const { im, receiver } = to;
    const bob = await im.connect('bob', { rich: true, groups: ['crew'] });
    const msg = { msgId: 'a', timestamp: 1_700_000_000, content: '你好 👋' };
    const first = await im.say('ann', 'bob', '', { msg });
    const { id, seq, conversationId } = first.body as Frame;
    // In the outbox when its sender is told, or already delivered.
    const waiting = await to.outbox();
    expect([
      ...waiting.map((row) => row.event_id),
      ...receiver.received.map(({ body }) => body.eventId as string),
    ]).toContain(id);
    expect((await im.say('ann', 'bob', '', { msg })).body).toMatchObject({ id, repeated: true });
    await bob.send({ type: 'single', target: 'ann', msg: { msgId: 1 } }).next({ type: 'sent' });
    await bob
      .send({ type: 'group', target: 'crew', msg: { msgId: 2, content: 'all' } })
      .next({ type: 'sent' });
    await im.post('/broadcasts', { users: ['x', 'y'], msg: { content: 'news' } });
    bob.send({ type: 'single', target: 'agent:main', msg: { msgId: 3, content: 'hello' } });
    await bob.next({ source: 'agent:main' });
    await to.delivered();

    const told = receiver.data('message.created');
    expect(told.find((data) => data.id === id)).toEqual({
      conversationId,
      id,
      seq,
      frame: { type: 'single', source: 'ann', target: 'bob', msg },
    });
    const stored = await query<{ id: string }>(
      app.databaseUrl,
      `select id from messages where tenant_id = $1 and frame not like '{"type":"join"%'`,
      [to.tenant.id],
    );
    expect(stored).toHaveLength(7);
    expect(told.map((data) => data.id as string).sort()).toEqual(stored.map((row) => row.id).sort());
  });

  it('is stored with its message or not at all', async () => {
    const { im, hook } = await acme(['message.created']);
    const { body } = await im.say('ann', 'bob', 'first');
    await query(
      app.databaseUrl,
      `create function no_events() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;
       create trigger no_events before insert on webhook_deliveries for each row
       when (new.webhook_id = ${hook.id}) execute function no_events()`,
    );
    expect((await im.say('ann', 'bob', 'second')).status).toBe(500);
    await query(app.databaseUrl, 'drop function no_events cascade');
    expect((await im.say('ann', 'bob', 'third')).body).toMatchObject({ seq: 2 });
    expect(await im.history(body.conversationId as string)).toHaveLength(2);
  });
});

describe('user.online and user.offline', () => {
  it('tell of the first device that comes and the last one that goes', async () => {
    const to = await acme(['user.online', 'user.offline']);
    const { im, receiver } = to;
    const pc = await im.connect('bob');
    const phone = await im.connect('bob', { client: 'phone' });
    await pc.close();
    await eventually(async () => (await im.clients('bob')).join() === 'phone');
    await phone.close();
    await receiver.has(2);
    await to.delivered();
    expect(receiver.received.map(({ body }) => [body.event, body.data])).toEqual([
      ['user.online', { user: 'bob', client: 'pc' }],
      ['user.offline', { user: 'bob', client: 'phone' }],
    ]);
  });

  it('tell it once when all devices come and go at the same time', async () => {
    const to = await acme(['user.online', 'user.offline']);
    const { im, receiver } = to;
    const clients = ['a', 'b', 'c', 'd', 'e'];
    const tokens = await Promise.all(clients.map((client) => im.token('bob', { client })));
    const devices = await Promise.all(
      clients.map((client, n) => im.connect('bob', { client, rich: true, token: tokens[n]! })),
    );
    await Promise.all(devices.map((device) => device.close()));
    await eventually(async () => (await im.clients('bob')).length === 0);
    await receiver.has(2);
    await to.delivered();
    expect(to.events()).toEqual(['user.online', 'user.offline']);
  });

  it('know a connection that takes the place of an older one for the same device', async () => {
    const to = await acme(['user.online', 'user.offline']);
    const { im } = to;
    const token = await im.token('bob');
    let device = await im.connect('bob', { rich: true, token });
    for (let n = 0; n < 30; n += 1) {
      const older = device;
      device = await im.connect('bob', { rich: true, token });
      expect(await older.closed()).toBe(4409);
    }
    await device.close();
    await eventually(async () => (await im.clients('bob')).length === 0);
    await to.receiver.has(2);
    await to.delivered();
    expect(to.events()).toEqual(['user.online', 'user.offline']);
  });

  it('end with `online` for a user one of whose devices comes while another one goes', async () => {
    const to = await acme(['user.online', 'user.offline']);
    const { im } = to;
    const tokens = [await im.token('bob', { client: 'a' }), await im.token('bob', { client: 'b' })];
    let device = await im.connect('bob', { client: 'a', rich: true, token: tokens[0]! });
    for (let n = 1; n <= 20; n += 1) {
      const client = 'ab'[n % 2]!;
      const [next] = await Promise.all([
        im.connect('bob', { client, rich: true, token: tokens[n % 2]! }),
        device.close(),
      ]);
      device = next;
      await eventually(async () => (await im.clients('bob')).join() === client);
    }
    await to.delivered();
    expect(to.events().at(-1)).toBe('user.online');
    expect(to.events()).toHaveLength(2 * to.events().filter((event) => event === 'user.offline').length + 1);
  });

  it('tell of those whose server stops', async () => {
    const to = await acme(['user.online', 'user.offline']);
    const second = await bootApp({}, app.databaseUrl);
    await new Im(second.url, to.tenant.apiKey).connect('bob', { rich: true });
    await second.close();
    expect(await to.im.clients('bob')).toEqual([]);
    await to.receiver.has(2);
    await to.delivered();
    expect(to.events()).toEqual(['user.online', 'user.offline']);
  });
});

it('group.changed tells who came, who went, and what became of the group', async () => {
  const to = await acme(['group.changed']);
  const { im, receiver } = to;
  await im.post('/groups', { groupId: 'crew', owner: 'ann', members: ['ben'] });
  const cat = await im.connect('cat', { rich: true });
  for (const type of ['join', 'join', 'leave', 'leave'])
    await cat.send({ type, target: 'crew' }).next({ type: 'sent' });
  await im.patch('/groups/crew', { name: 'Crew' });
  await im.patch('/groups/crew/members/ben', { role: 'admin' });
  await im.delete('/groups/crew/members/ben');
  await im.delete('/groups/crew');
  await to.delivered();
  const inOrder = [...receiver.received].sort((a, b) => Number(a.body.id) - Number(b.body.id));
  expect(inOrder.map(({ body }) => body.data as Frame)).toEqual([
    { groupId: 'crew', change: 'created' },
    { groupId: 'crew', change: 'joined', userId: 'ann', seq: 1 },
    { groupId: 'crew', change: 'joined', userId: 'ben', seq: 2 },
    { groupId: 'crew', change: 'joined', userId: 'cat', seq: 3 },
    { groupId: 'crew', change: 'left', userId: 'cat', seq: 4 },
    { groupId: 'crew', change: 'updated' },
    { groupId: 'crew', change: 'member', userId: 'ben' },
    { groupId: 'crew', change: 'left', userId: 'ben', seq: 5 },
    { groupId: 'crew', change: 'deleted' },
  ]);
  expect(new Set(inOrder.map(({ body }) => body.eventId as string)).size).toBe(9);
});

describe('a delivery', () => {
  it('is signed with the secret, its time included', async () => {
    const { im, receiver, hook } = await acme(['message.created']);
    await im.say('ann', 'bob', 'signed');
    const [{ headers, text, body }] = (await receiver.has(1)) as [Received];
    const timestamp = headers['parley-timestamp'] as string;
    const hmac = createHmac('sha256', hook.secret).update(`${timestamp}.${text}`).digest('hex');
    expect(headers).toMatchObject({
      'content-type': 'application/json',
      'parley-signature': `v1=${hmac}`,
      'parley-event': 'message.created',
      'parley-delivery': body.id as string,
      'parley-attempt': '1',
    });
    expect(Math.abs(Number(timestamp) - Date.now() / 1_000)).toBeLessThan(60);
  });

  it('that fails comes again, the same bytes under the same id, until it is taken', async () => {
    const to = await acme(['message.created']);
    const { im, receiver } = to;
    const statuses = [500, 302, 200];
    receiver.answer = () => statuses.shift()!;
    await im.say('ann', 'bob', 'again');
    const [row] = await to.all(({ last_error }) => last_error !== null);
    expect(row).toMatchObject({ attempts: 1, last_error: 'answered 500', dead: false });
    expect(row!.wait).toBeGreaterThan(2);
    expect(row!.wait).toBeLessThanOrEqual(5);
    await to.dueNow(1);
    // A redirect is no success, and is not followed.
    await to.all(({ last_error }) => last_error === 'answered 302');
    await to.dueNow(2);
    await to.delivered();
    const { received } = receiver;
    expect(received.map(({ headers }) => headers['parley-attempt'])).toEqual(['1', '2', '3']);
    expect(new Set(received.map(({ headers }) => headers['parley-delivery'])).size).toBe(1);
    expect(new Set(received.map(({ text }) => text)).size).toBe(1);
  });

  it('that fails for good is a dead letter: listed, and tried anew when asked for', async () => {
    const to = await acme(['message.created']);
    const { im, receiver, hook } = to;
    const letters = `/webhooks/${hook.id}/dead-letters`;
    receiver.answer = () => 503;
    const sent = [await im.say('ann', 'bob', 'one'), await im.say('ann', 'bob', 'two')];
    await receiver.has(2);
    await to.all(({ last_error }) => last_error !== null);
    await to.dueNow(11);
    await to.all(({ dead }) => dead);
    const first = (await im.get(`${letters}?limit=1`)).body as Frame;
    const second = (await im.get(`${letters}?limit=1&cursor=${first.nextCursor}`)).body as Frame;
    expect([...first.data, ...second.data]).toMatchObject(
      sent.map(({ body }: Answer) => ({
        event: 'message.created',
        eventId: body.id as string,
        payload: { id: body.id as string },
        attempts: 12,
        lastError: 'answered 503',
      })),
    );
    expect(second.nextCursor).toBeNull();
    expect([(await rival.im.get(letters)).status, (await rival.im.post(`${letters}/retry`)).status]).toEqual([
      404, 404,
    ]);
    expect(receiver.received).toHaveLength(4);

    receiver.answer = () => 200;
    expect(await im.post(`${letters}/retry`)).toMatchObject({ status: 200, body: { retried: 2 } });
    await to.delivered();
    expect(receiver.received.slice(4).map(({ headers }) => headers['parley-attempt'])).toEqual(['1', '1']);
    expect((await im.get(letters)).body).toEqual({ data: [], nextCursor: null });
  });

  it('waits for no receiver: messages go on while one hangs or is dead', async () => {
    const to = await acme(['message.created']);
    const { im, receiver } = to;
    const { opened, open } = gate();
    receiver.answer = () => opened.then(() => 200);
    await im.post('/webhooks', { url: 'http://127.0.0.1:9/dead', events: EVENTS });
    const bob = await im.connect('bob');
    await im.say('ann', 'bob', 'm1');
    await receiver.has(1);
    for (let n = 2; n <= 20; n += 1) {
      await im.say('ann', 'bob', `m${n}`);
      await bob.next({ seq: n });
    }
    expect((await to.outbox()).length).toBe(20);
    open();
    await to.delivered();
  });

  it("of one tenant does not wait for another one's receiver", async () => {
    const [slow, quick] = await Promise.all([acme(['message.created']), acme(['message.created'])]);
    const { opened, open } = gate();
    slow.receiver.answer = () => opened.then(() => 200);
    const users = Array.from({ length: 300 }, (_, n) => `u${n}`);
    await slow.im.post('/broadcasts', { users, msg: { content: 'to all' } });
    await slow.receiver.has(1);
    await quick.im.say('ann', 'bob', 'hi');
    await eventually(async () => quick.receiver.received.length > 0, 5_000).finally(open);
    await slow.delivered();
  });
});
