import { bootApp, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import {
  away,
  device,
  fresh,
  group,
  join,
  leave,
  say,
  seqs,
  single,
  tenantWith,
  upTo,
  type ConnectOptions,
  type Device,
  type Frame,
  type TokenOptions,
  type UserId,
} from '../support/im';

let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;

beforeAll(async () => {
  app = await bootApp({ IM_FRAMES_BURST: '2000' });
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
afterAll(() => app.close());

const on = (user: UserId, options: TokenOptions & ConnectOptions = {}, tenant = acme): Promise<Device> =>
  device(app, tenant, user, { rich: true, ...options });
/** Two users of acme and one of the rival, who has the second one's id and does all that the second could. */
const trio = (): Promise<[Device, Device, Device]> => {
  const [a, b] = [fresh('a'), fresh('b')];
  return Promise.all([on(a), on(b), on(b, {}, rival)]);
};
const ready = (peer: Device): Frame => peer.frames[0]!;
const events = (frames: Frame[], type: string): Frame[] => frames.filter((frame) => frame.type === type);

describe('`ready`', () => {
  it('is the first frame and says where things stand: unread is last − read − own', async () => {
    const [a, b, foreign] = await trio();
    const empty = { type: 'ready', user: b.user, client: 'pc', conversations: [], resumed: false };
    expect([ready(b), ready(foreign)]).toEqual([empty, empty]);
    const g = fresh('g');
    const [one] = await say(a, ...upTo(4).map((msgId) => single(a.user, b.user, { msgId })));
    await say(b, single(b.user, a.user, { msgId: 'own' }));
    const id = one!.conversationId as string;
    b.send({ type: 'read', conversationId: id, seq: 2 });
    await a.next({ type: 'read' });
    const [made] = await say(a, join(a.user, g));
    await say(b, join(b.user, g), group(b.user, g, { msgId: 2 }));
    await say(a, group(a.user, g, { msgId: 3 }));
    const back = await on(b.user);
    expect(ready(back)).toEqual({
      ...empty,
      conversations: [
        { id: made!.conversationId, kind: 'group', target: g, lastSeq: 4, readSeq: 2, unread: 1 },
        { id, kind: 'single', target: a.user, lastSeq: 5, readSeq: 2, unread: 2 },
      ],
      resumed: true,
    });
    expect(ready(await on(b.user, {}, rival)).conversations).toEqual([]);
    await away(a, back);
  });

  it('is not `resumed` when everything was acknowledged', async () => {
    const [a, b, foreign] = await trio();
    const [{ conversationId }] = (await say(a, single(a.user, b.user, { msgId: 1 }))) as [Frame];
    expect(await b.next({ type: 'single' })).toMatchObject({ conversationId, timestamp: expect.any(Number) });
    b.send({ type: 'ack', conversationId, seq: 1 });
    await b.ping();
    const back = await on(b.user);
    expect(ready(back)).toMatchObject({ resumed: false, conversations: [{ lastSeq: 1, unread: 1 }] });
    expect(await back.settled()).toEqual([]);
    await away(a, back, foreign);
  });

  it('lists the 500 most recent conversations; what is unacknowledged in an older one follows all the same', async () => {
    const [a, b, foreign] = await trio();
    await say(b, single(b.user, a.user, { msgId: 0 }));
    await say(a, ...upTo(500).map((n) => single(a.user, `${a.user}/${n}`, { msgId: n })));
    const back = await on(a.user);
    const targets = (ready(back).conversations as Frame[]).map(({ target }) => target as string);
    expect(new Set(targets)).toEqual(new Set(upTo(500).map((n) => `${a.user}/${n}`)));
    expect(await back.next({ type: 'single', source: b.user })).toMatchObject({ seq: 1 });
    await away(b, back, foreign);
  });
});

describe('`sent`', () => {
  it('tells the sender of what is durable, and nobody else', async () => {
    const [a, b, foreign] = await trio();
    const before = Date.now();
    const [sent] = await say(a, single(a.user, b.user, { msgId: 'm-1' }));
    expect(sent).toEqual({
      type: 'sent',
      msgId: 'm-1',
      id: expect.stringMatching(/^\d+$/),
      seq: 1,
      conversationId: expect.stringMatching(/^\d+$/),
      timestamp: expect.any(Number),
    });
    expect(Math.abs(sent!.timestamp - before)).toBeLessThan(5_000);
    const { id, seq, conversationId, timestamp } = sent!;
    expect(await b.next({ type: 'single' })).toMatchObject({ id, seq, conversationId, timestamp });
    expect(await say(a, single(a.user, b.user, { msgId: 7 }))).toMatchObject([{ msgId: 7, seq: 2 }]);
    a.send(`{"type":"single","source":"${a.user}","target":"x","msg":{"msgId":9007199254740993}}`);
    await a.next({ type: 'sent' });
    expect(a.texts.at(-1)).toContain('"msgId":9007199254740993,');
    expect(events(await b.settled(), 'sent')).toEqual([]);
    expect(await foreign.settled()).toEqual([]);
    await away(a, b, foreign);
  });

  it('answers joining and leaving, also when nothing changed', async () => {
    const [g, a] = [fresh('g'), await on(fresh('a'))];
    const answers = await say(a, join(a.user, g), join(a.user, g), leave(a.user, g), leave(a.user, g));
    const { conversationId } = answers[0]!;
    expect(answers.map(({ seq }) => seq as unknown)).toEqual([1, undefined, 2, undefined]);
    expect(answers[3]).toEqual({ type: 'sent', conversationId });
    await a.close();
  });

  it('needs a msgId, which the plain dialect does not', async () => {
    const [a, b, foreign] = await trio();
    for (const frame of [single(a.user, b.user, { content: 1 }), group(a.user, 'g')])
      expect(await a.fails(frame)).toMatchObject({ code: 4000, message: expect.stringContaining('msgId') });
    expect(await b.settled()).toEqual([]);
    await away(a, b, foreign);
  });
});

describe('`ack`', () => {
  it('is all that counts: what is acknowledged does not come again, the rest does, pongs or not', async () => {
    const [a, b, foreign] = await trio();
    const [{ conversationId }] = (await say(
      a,
      ...upTo(5).map((msgId) => single(a.user, b.user, { msgId })),
    )) as [Frame];
    await b.take(5, { type: 'single' });
    const acks = [3, 2].map((seq) => ({ type: 'ack', conversationId, seq }));
    expect(await b.send(...acks).ping()).toEqual({ type: 'pong', conversations: { [conversationId]: 5 } });
    foreign.send({ type: 'ack', conversationId, seq: 5 });
    await foreign.ping();
    await b.drop();
    const back = await on(b.user);
    expect(seqs(await back.take(2, { type: 'single' }))).toEqual([4, 5]);
    expect(seqs(await back.settled())).toEqual([4, 5]);
    back.send({ type: 'ack', conversationId, seq: 5 });
    const { conversations } = await back.ping();
    expect(conversations).not.toHaveProperty(conversationId as string);
    await away(a, back, foreign);
  });

  it('past the end does no harm: what comes later is not taken for read', async () => {
    const [a, b, foreign] = await trio();
    const [{ conversationId }] = (await say(a, single(a.user, b.user, { msgId: 1 }))) as [Frame];
    await b.next({ type: 'single' });
    b.send({ type: 'ack', conversationId, seq: 1_000_000 }, { type: 'ack', conversationId: '1', seq: 9 });
    await b.ping();
    await b.drop();
    await say(a, single(a.user, b.user, { msgId: 2 }));
    const back = await on(b.user);
    expect(seqs(await back.settled())).toEqual([2]);
    expect(await back.fails({ type: 'ack', conversationId, seq: -1 })).toMatchObject({ code: 4000 });
    await away(a, back, foreign);
  });
});

describe('`read`', () => {
  it('is told to the other side and the reader’s other devices; grows, and not past the end', async () => {
    const [a, b, foreign] = await trio();
    const phone = await on(b.user, { client: 'phone' });
    const [{ conversationId }] = (await say(
      a,
      ...upTo(3).map((msgId) => single(a.user, b.user, { msgId })),
    )) as [Frame];
    b.send(...[2, 1, 2, 99].map((seq) => ({ type: 'read', conversationId, seq })));
    for (const peer of [a, phone])
      expect(await peer.take(2, { type: 'read' })).toEqual(
        [2, 3].map((seq) => ({ type: 'read', conversationId, seq, source: b.user })),
      );
    a.send({ type: 'read', conversationId, seq: 3 });
    expect(await b.next({ type: 'read' })).toMatchObject({ source: a.user, seq: 3 });
    const stranger = await on(fresh('stranger'));
    for (const peer of [foreign, stranger])
      expect(await peer.fails({ type: 'read', conversationId, seq: 1 })).toMatchObject({ code: 4004 });
    expect(events(await a.settled(), 'read')).toHaveLength(2);
    expect(events(await foreign.settled(), 'read')).toEqual([]);
    await away(a, b, phone, foreign, stranger);
  });

  it('is told to the members of a group', async () => {
    const groupId = [fresh('g')];
    const [a, b, foreign] = [
      await on(fresh('a'), { groupId }),
      await on(fresh('b'), { groupId }),
      await on(fresh('b'), { groupId }, rival),
    ];
    const { conversationId } = await a.next({ type: 'join', source: b.user });
    b.send({ type: 'read', conversationId, seq: 2 });
    await b.ping();
    await say(a, group(a.user, groupId[0]!, { msgId: 1 }));
    b.send({ type: 'read', conversationId, seq: 3 });
    expect(await a.next({ type: 'read' })).toEqual({ type: 'read', conversationId, seq: 3, source: b.user });
    expect(events(await foreign.settled(), 'read')).toEqual([]);
    await away(a, b, foreign);
  });
});

describe('`typing`', () => {
  it('reaches the target or the group’s members, and is not stored', async () => {
    const g = fresh('g');
    const [a, b, foreign] = await trio();
    for (const peer of [a, b, foreign]) await say(peer, join(peer.user, g));
    a.send({ type: 'typing', kind: 'single', target: b.user }, { type: 'typing', kind: 'group', target: g });
    expect(await b.take(2, { type: 'typing' })).toEqual([
      { type: 'typing', source: a.user, target: b.user, kind: 'single' },
      { type: 'typing', source: a.user, target: g, kind: 'group' },
    ]);
    expect(await a.fails({ type: 'typing', kind: 'group', target: 'elsewhere' })).toMatchObject({
      code: 4004,
    });
    for (const wrong of [{ kind: 'all', target: 1 }, { kind: 'single' }])
      expect(await a.fails({ type: 'typing', ...wrong })).toMatchObject({ code: 4000 });
    for (const peer of [a, foreign]) expect(events(await peer.settled(), 'typing')).toEqual([]);
    const sql = `select 1 from messages where frame like '%typing%'`;
    expect(await query(app.databaseUrl, sql)).toEqual([]);
    const back = await on(b.user);
    expect(events(await back.settled(), 'typing')).toEqual([]);
    await away(a, back, foreign);
  });

  it('and `watch` take every digit of a numeric id', async () => {
    const [even, odd, a] = await Promise.all(
      ['9007199254740992', '9007199254740993', fresh('a')].map((user) => on(user)),
    );
    a!.send('{"type":"typing","kind":"single","target":9007199254740993}');
    a!.send('{"type":"watch","users":[9007199254740993]}');
    expect(await a!.next({ type: 'presence' })).toMatchObject({ user: '9007199254740993', online: true });
    expect(events(await odd!.settled(), 'typing')).toHaveLength(1);
    expect(events(await even!.settled(), 'typing')).toEqual([]);
    await away(even!, odd!, a!);
  });
});

describe('`recall`', () => {
  it('makes a tombstone, in what is still to come and in the history; its seq stays', async () => {
    const [a, b, foreign] = await trio();
    const late = await on(b.user, { client: 'phone' });
    await late.drop();
    const frames = upTo(3).map((n) =>
      single(
        a.user,
        b.user,
        { msgId: n, timestamp: 5, content: 'secret' },
        { extra: 'secret', msgType: 'note' },
      ),
    );
    const [, two] = await say(a, ...frames);
    const { conversationId, id, seq } = two!;
    a.send({ type: 'recall', conversationId, seq });
    for (const peer of [a, b])
      expect(await peer.next({ type: 'recall' })).toEqual({
        type: 'recall',
        conversationId,
        seq: 2,
        source: a.user,
      });
    const back = await on(b.user, { client: 'phone' });
    const tomb = (await back.take(3, { type: 'single' }))[1]!;
    expect(tomb).toEqual({
      type: 'single',
      source: a.user,
      target: b.user,
      msgType: 'note',
      msg: { msgId: 2, timestamp: 5 },
      id,
      seq: 2,
      conversationId,
      timestamp: two!.timestamp,
      recalled: true,
    });
    const { body } = await acme.get(`/api/v1/im/conversations/${conversationId}/messages`);
    expect(body.data.map(({ recalled }: Frame) => recalled as boolean)).toEqual([false, true, false]);
    expect(body.data[1]).toMatchObject({ id, seq: 2, msg: { msgId: 2 }, extra: null });
    expect((await rival.get(`/api/v1/im/conversations/${conversationId}/messages`)).status).toBe(404);
    const rows = await query(
      app.databaseUrl,
      `select 1 from messages where id = $1 and frame like '%secret%'`,
      [id],
    );
    expect(rows).toEqual([]);
    expect(await say(a, frames[1]!)).toMatchObject([{ id, seq: 2 }]);
    expect(await foreign.settled()).toEqual([]);
    await away(a, b, back, foreign);
  });

  it('is for one’s own messages: 4005 for somebody else’s, 4004 for what is not there or not one’s to see', async () => {
    const [a, b, foreign] = await trio();
    const stranger = await on(fresh('stranger'));
    const [{ conversationId }] = (await say(a, single(a.user, b.user, { msgId: 1 }))) as [Frame];
    expect(await b.next({ type: 'single' })).toMatchObject({ seq: 1 });
    for (const [peer, seq, code] of [
      [b, 1, 4005],
      [a, 9, 4004],
      [stranger, 1, 4004],
      [foreign, 1, 4004],
    ] as const)
      expect(await peer.fails({ type: 'recall', conversationId, seq })).toMatchObject({ code });
    for (const peer of [a, b]) expect(events(await peer.settled(), 'recall')).toEqual([]);
    await away(a, b, foreign, stranger);
  });

  it('has a window, which the tenant may set', async () => {
    const strict = await tenantWith(app, { limits: { imRecallSeconds: 0 } });
    const [a, b] = await Promise.all([on('a', {}, strict), on('b', {}, strict)]);
    const [{ conversationId }] = (await say(a, single('a', 'b', { msgId: 1 }))) as [Frame];
    await b.next({ type: 'single' });
    expect(await a.fails({ type: 'recall', conversationId, seq: 1 })).toMatchObject({ code: 4005 });
    expect(events(await b.settled(), 'recall')).toEqual([]);
    await away(a, b);
  });
});

describe('`sync`', () => {
  it('sends what comes after the cursors, in pages of 500', async () => {
    const [a, b, foreign] = await trio();
    const [{ conversationId: id }] = (await say(
      a,
      ...upTo(620).map((msgId) => single(a.user, b.user, { msgId })),
    )) as [Frame];
    const [{ conversationId: other }] = (await say(a, single(a.user, fresh('c'), { msgId: 1 }))) as [Frame];
    const sync = async (cursors: object): Promise<[Frame[], Frame]> => {
      const from = a.frames.length;
      const end = await a.send({ type: 'sync', cursors }).next({ type: 'sync' });
      return [events(a.frames.slice(from), 'single'), end];
    };
    const [first, more] = await sync({ [id]: 50, [other]: 0 });
    expect(seqs(first)).toEqual(upTo(550).slice(50));
    expect(more).toEqual({ type: 'sync', cursors: { [id]: 550, [other]: 0 }, hasMore: true });
    const [second, end] = await sync(more.cursors as object);
    expect(seqs(second)).toEqual([...upTo(620).slice(550), 1]);
    expect(end).toEqual({ type: 'sync', cursors: { [id]: 620, [other]: 1 }, hasMore: false });
    for (const cursors of [{ [id]: 0 }, { [other]: 0 }])
      expect(await foreign.fails({ type: 'sync', cursors })).toMatchObject({ code: 4004 });
    for (const cursors of [undefined, [], { x: 1 }, { [id]: -1 }, { [id]: '1' }])
      expect(await a.fails({ type: 'sync', cursors })).toMatchObject({ code: 4000 });
    expect(events(await foreign.settled(), 'single')).toEqual([]);
    await away(a, b, foreign);
  });
});

describe('`watch` and `presence`', () => {
  it('tell of who comes and goes, with the clients; not of a rival’s user of that id', async () => {
    const [a, user] = [await on(fresh('a')), fresh('seen')];
    const seen = (online: boolean, ...clients: string[]): Frame => ({
      type: 'presence',
      user,
      online,
      clients,
    });
    const foreign = await on(user, {}, rival);
    expect(await a.send({ type: 'watch', users: [user] }).next({ type: 'presence' })).toEqual(seen(false));
    const pc = await on(user, { rich: false });
    expect(await a.next({ type: 'presence' })).toEqual(seen(true, 'pc'));
    const phone = await on(user, { client: 'phone' });
    expect(await a.next({ type: 'presence' })).toEqual(seen(true, 'pc', 'phone'));
    await pc.close();
    expect(await a.next({ type: 'presence' })).toEqual(seen(true, 'phone'));
    await phone.drop();
    expect(await a.next({ type: 'presence' })).toEqual(seen(false));
    await foreign.close();
    await a.send({ type: 'watch', users: [] }).ping();
    await away(await on(user));
    expect(events(await a.settled(), 'presence')).toHaveLength(5);
    expect(await a.fails({ type: 'watch', users: 'all' })).toMatchObject({ code: 4000 });
    await a.close();
  });
});

describe('the richer frames', () => {
  it('with an id that no conversation has fail as bad input or as not found, never as a defect of ours', async () => {
    const a = await on(fresh('a'));
    for (const id of ['', '0', 'x', '-1', '1', '9223372036854775808', '9999999999999999999']) {
      for (const type of ['read', 'recall', 'sync']) {
        const { code } = await a.fails({ type, conversationId: id, seq: 1, cursors: { [id]: 0 } });
        expect([id, type, [4000, 4004]]).toEqual([id, type, expect.arrayContaining([code])]);
      }
      await a.send({ type: 'ack', conversationId: id, seq: 1 }).ping();
    }
    expect(events(await a.settled(), 'error').filter(({ code }) => code >= 5_000)).toEqual([]);
    await a.close();
  });

  it.each(['ack', 'read', 'typing', 'recall', 'sync', 'watch'])(
    '`%s` is 4000 on a plain connection',
    async (type) => {
      const plain = await on(fresh('plain'), { rich: false });
      const frame = { type, conversationId: '1', seq: 1, target: 1, kind: 'single', cursors: {}, users: [] };
      expect(await plain.fails(frame)).toMatchObject({
        code: 4000,
        message: expect.stringContaining('type'),
      });
      await plain.close();
    },
  );

  it.each(['ready', 'sent', 'presence', 'stream', 'pong', 'unknown'])(
    '`%s` is not a client’s to send',
    async (type) => {
      const a = await on(fresh('a'));
      expect(await a.fails({ type })).toMatchObject({ code: 4000, message: expect.stringContaining('type') });
      await a.close();
    },
  );
});
