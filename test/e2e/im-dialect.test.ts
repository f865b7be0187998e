import { ask, bootApp, ROOT_KEY, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { ImSocket, imToken, type Frame } from '../support/im-socket';

let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;
const sockets: ImSocket[] = [];

beforeAll(async () => {
  app = await bootApp({ IM_FRAMES_BURST: '2000' });
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
afterEach(async () => {
  await Promise.all(sockets.splice(0).map((socket) => socket.close()));
});
afterAll(() => app.close());

let users = 0;
const someone = (): string => `user-${(users += 1)}`;

async function open(
  user: string,
  { client, groups, tenant = acme }: { client?: string; groups?: string[]; tenant?: TestTenant } = {},
): Promise<ImSocket> {
  const token = await imToken(app.url, tenant.apiKey, user, {
    ...(client && { client }),
    ...(groups && { groupId: groups }),
  });
  const socket = await ImSocket.open(app.url, { token, rich: true });
  sockets.push(socket);
  return socket;
}

const of = (type: string) => (frame: Frame) => frame.type === type;
let messages = 0;

/** Sends and waits until it is durable. */
async function say(from: ImSocket, source: string, target: string, more: object = {}): Promise<Frame> {
  const msgId = `m${(messages += 1)}`;
  from.send({ type: 'single', source, target, msg: { msgId, content: `about ${msgId}` }, ...more });
  return from.next((frame) => frame.type === 'sent' && frame.msgId === msgId);
}

describe('ready', () => {
  it('lists the most recent conversations first, with what is unread: last − read − own', async () => {
    const [me, ann, bob] = [someone(), someone(), someone()];
    const [fromAnn, fromBob] = [await open(ann), await open(bob)];
    for (let n = 0; n < 3; n += 1) await say(fromAnn, ann, me);
    const device = await open(me);
    const reply = await say(device, me, ann);
    await say(fromBob, bob, me);
    device.send({ type: 'read', conversationId: reply.conversationId, seq: 2 });
    await fromAnn.next(of('read'));
    await device.close();
    const again = await open(me);
    expect(again.frames[0]).toEqual({
      type: 'ready',
      user: me,
      client: 'pc',
      resumed: true,
      conversations: [
        { id: expect.any(String), kind: 'single', target: bob, lastSeq: 1, readSeq: 0, unread: 1 },
        { id: reply.conversationId, kind: 'single', target: ann, lastSeq: 4, readSeq: 2, unread: 1 },
      ],
    });
  });

  it('lists at most 500; what waits in older ones comes all the same', async () => {
    const me = someone();
    await query(
      app.databaseUrl,
      `with made as (
         insert into conversations (id, tenant_id, kind, key, last_seq, last_id)
         select 900000 + n, ${acme.id}, 'group', 'old-' || n, 1, 900000 + n from generate_series(1, 520) n returning id)
       insert into conversation_members (conversation_id, user_id, tenant_id) select id, '${me}', ${acme.id} from made`,
    );
    await query(
      app.databaseUrl,
      `insert into messages (id, tenant_id, conversation_id, seq, sender, client, frame)
       select (message_id_at(now())) + n, ${acme.id}, 900000 + n, 1, 'x', '', '{"type":"group","source":"x","target":"old-' || n || '","msg":{}}'
       from generate_series(1, 520) n`,
    );
    const device = await open(me);
    const { conversations } = device.frames[0] as { conversations: Frame[] };
    expect([conversations.length, conversations[0]!.target, conversations.at(-1)!.target]).toEqual([
      500,
      'old-520',
      'old-21',
    ]);
    const targets = new Set<string>();
    while (targets.size < 520) targets.add((await device.next(of('group'))).target as string);
  });

  it('says that nothing waits when nothing does', async () => {
    expect((await open(someone())).frames[0]).toMatchObject({ conversations: [], resumed: false });
  });
});

it('needs a msgId', async () => {
  const me = someone();
  const device = await open(me);
  expect(await device.fails({ type: 'single', source: me, target: 'x', msg: {} })).toMatchObject({
    code: 4000,
    message: expect.stringContaining('msg.msgId'),
  });
});

it('`sent` tells id, number, conversation and time; a join is acknowledged, twice too', async () => {
  const [me, other] = [someone(), someone()];
  const device = await open(me);
  const before = Date.now();
  const sent = await say(device, me, other);
  expect(Object.keys(sent).sort()).toEqual(['conversationId', 'id', 'msgId', 'seq', 'timestamp', 'type']);
  expect(sent.timestamp).toBeGreaterThanOrEqual(before - 1);
  expect(sent.timestamp).toBeLessThanOrEqual(Date.now() + 1);
  device.send({ type: 'join', source: me, target: `g-${me}`, msg: { msgId: 'j' } });
  expect(await device.next(of('sent'))).toMatchObject({ msgId: 'j', seq: 1 });
  device.send({ type: 'join', source: me, target: `g-${me}`, msg: { msgId: 'j2' } });
  const again = await device.next(of('sent'));
  expect(again.msgId).toBe('j2');
  expect(again).not.toHaveProperty('seq');
});

describe('read', () => {
  it("is told to the others and to the reader's own devices, once, and never goes back", async () => {
    const [me, other] = [someone(), someone()];
    const [mine, phone, theirs] = [await open(me), await open(me, { client: 'phone' }), await open(other)];
    const { conversationId } = await say(theirs, other, me);
    await say(theirs, other, me);
    mine.send({ type: 'read', conversationId, seq: 99 });
    const told = { type: 'read', conversationId, seq: 2, source: me };
    expect(await theirs.next(of('read'))).toEqual(told);
    expect(await phone.next(of('read'))).toEqual(told);
    mine.send({ type: 'read', conversationId, seq: 1 });
    await say(mine, me, other);
    expect((await theirs.settled()).filter(of('read'))).toHaveLength(1);
  });

  it('of a conversation that is not yours is 4004', async () => {
    const [me, other] = [someone(), someone()];
    const { conversationId } = await say(await open(me), me, other);
    for (const stranger of [await open(someone()), await open(me, { tenant: rival })]) {
      expect(await stranger.fails({ type: 'read', conversationId, seq: 1 })).toMatchObject({ code: 4004 });
      expect(await stranger.fails({ type: 'recall', conversationId, seq: 1 })).toMatchObject({ code: 4004 });
      expect(
        await stranger.fails({ type: 'sync', cursors: { [conversationId as string]: 0 } }),
      ).toMatchObject({
        code: 4004,
      });
    }
  });
});

describe('typing', () => {
  it('is shown to the other side or the group, never stored', async () => {
    const [me, other] = [someone(), someone()];
    const groups = [`g-${me}`];
    const [mine, theirs] = [await open(me, { groups }), await open(other, { groups })];
    mine.send({ type: 'typing', target: other, kind: 'single' });
    expect(await theirs.next(of('typing'))).toEqual({
      type: 'typing',
      source: me,
      target: other,
      kind: 'single',
    });
    mine.send({ type: 'typing', target: groups[0], kind: 'group' });
    expect(await theirs.next(of('typing'))).toMatchObject({ target: groups[0], kind: 'group' });
    expect((await mine.settled()).filter(of('typing'))).toEqual([]);
    expect(await query(app.databaseUrl, `select 1 from messages where frame like '%typing%'`)).toEqual([]);
    const outside = await open(someone());
    expect(await outside.fails({ type: 'typing', target: groups[0], kind: 'group' })).toMatchObject({
      code: 4004,
    });
  });
});

describe('recall', () => {
  it('leaves a tombstone: live, in the history and when catching up; the number stays', async () => {
    const [me, other] = [someone(), someone()];
    const [mine, theirs] = [await open(me), await open(other)];
    const { conversationId, seq } = await say(mine, me, other);
    await say(mine, me, other);
    await theirs.next(({ seq: number }) => number === 2);
    mine.send({ type: 'recall', conversationId, seq });
    const told = { type: 'recall', conversationId, seq, source: me };
    expect(await theirs.next(of('recall'))).toEqual(told);
    expect(await mine.next(of('recall'))).toEqual(told);
    const history = await acme.get(`/api/v1/im/conversations/${conversationId as string}/messages`);
    expect(history.body.data).toMatchObject([
      { seq: 1, recalled: true },
      { seq: 2, recalled: false },
    ]);
    expect(history.text).not.toContain(`about m${messages - 1}`);
    await theirs.close();
    const again = await open(other);
    const first = await again.next(of('single'));
    expect(first).toMatchObject({ seq: 1, recalled: true });
    expect(JSON.stringify(first)).not.toContain('about');
  });

  it("is the sender's or a group admin's, and only within the tenant's window", async () => {
    const [me, other] = [someone(), someone()];
    const groups = [`g-${me}`];
    const [mine, theirs] = [await open(me, { groups }), await open(other, { groups })];
    const single = await say(mine, me, other);
    const place = { conversationId: single.conversationId, seq: single.seq };
    expect(await theirs.fails({ type: 'recall', ...place })).toMatchObject({ code: 4005 });
    const sent = await say(theirs, other, groups[0]!, { type: 'group' });
    mine.send({ type: 'recall', conversationId: sent.conversationId, seq: sent.seq });
    await theirs.next(of('recall'));
    const tenant = await app.tenant();
    await ask(
      app.url,
      'PATCH',
      `/api/admin/tenants/${tenant.id}`,
      { limits: { imRecallSeconds: 0 } },
      { 'x-api-key': ROOT_KEY },
    );
    const strict = await open(me, { tenant });
    const late = await say(strict, me, other);
    const { code } = await strict.fails({
      type: 'recall',
      conversationId: late.conversationId,
      seq: late.seq,
    });
    expect(code).toBe(4005);
  });
});

it('sync brings what is missed in pages of 500, and says how far it got', async () => {
  const [me, other] = [someone(), someone()];
  const [mine, theirs] = [await open(me), await open(other)];
  for (let n = 0; n < 620; n += 1)
    theirs.send({ type: 'single', source: other, target: me, msg: { msgId: `s${n}` } });
  const { conversationId } = await theirs.next(({ seq }) => seq === 620);
  await mine.next(({ seq }) => seq === 620);
  const id = conversationId as string;
  const page = async (after: number) => {
    const from = mine.texts.length;
    mine.send({ type: 'sync', cursors: { [id]: after } });
    const end = await mine.next(of('sync'));
    const got = mine.frames
      .slice(from)
      .filter(of('single'))
      .map(({ seq }) => seq as number);
    return { end, got };
  };
  const first = await page(50);
  expect(first.end).toEqual({ type: 'sync', cursors: { [id]: 550 }, hasMore: true });
  expect(first.got).toEqual(Array.from({ length: 500 }, (_, index) => 51 + index));
  const second = await page(550);
  expect(second.end).toEqual({ type: 'sync', cursors: { [id]: 620 }, hasMore: false });
  expect(second.got).toHaveLength(70);
});

describe('presence', () => {
  it('is told of the users that are watched, now and when it changes', async () => {
    const [me, other, nobody] = [someone(), someone(), someone()];
    const mine = await open(me);
    const phone = await open(other, { client: 'phone' });
    mine.send({ type: 'watch', users: [other, nobody] });
    expect([await mine.next(of('presence')), await mine.next(of('presence'))]).toEqual([
      { type: 'presence', user: other, online: true, clients: ['phone'] },
      { type: 'presence', user: nobody, online: false, clients: [] },
    ]);
    await open(other);
    expect(await mine.next(of('presence'))).toMatchObject({ online: true, clients: ['phone', 'pc'] });
    await phone.close();
    expect(await mine.next(of('presence'))).toMatchObject({ user: other, clients: ['pc'] });
    await open(other, { tenant: rival, client: 'spy' });
    mine.send({ type: 'watch', users: [] });
    expect((await mine.settled()).filter(of('presence'))).toHaveLength(4);
  });
});

it('pong tells what has come and is not acknowledged', async () => {
  const [me, other] = [someone(), someone()];
  const [mine, theirs] = [await open(me), await open(other)];
  const { conversationId } = await say(theirs, other, me);
  await mine.next(of('single'));
  mine.send({ type: 'ping' });
  expect(await mine.next(of('pong'))).toEqual({
    type: 'pong',
    conversations: { [conversationId as string]: 1 },
  });
  mine.send({ type: 'ack', conversationId, seq: 1 });
  mine.send({ type: 'ping' });
  expect(await mine.next(of('pong'))).toEqual({ type: 'pong', conversations: {} });
});
