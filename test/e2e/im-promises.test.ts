import { bootApp, type TestApp, type TestTenant } from '../support/app';
import { freshDatabase, query } from '../support/database';
import {
  away,
  connect,
  device,
  fresh,
  group,
  imToken,
  join,
  say,
  seqs,
  single,
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
  app = await bootApp({ IM_FRAMES_BURST: '1000' });
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
afterAll(() => app.close());

const on = (user: UserId, options: TokenOptions & ConnectOptions = {}, tenant = acme): Promise<Device> =>
  device(app, tenant, user, options);
const speaker = (user: UserId, options: TokenOptions = {}): Promise<Device> =>
  on(user, { ...options, rich: true });

/** Numbered messages, so that each is one of its own. */
const numbered = (from: UserId, to: UserId, first: number, last: number): Frame[] =>
  Array.from({ length: last - first + 1 }, (_, index) =>
    single(from, to, { msgId: first + index, timestamp: 1_611_065_986, n: first + index }),
  );
const stored = (conversationId: string): Promise<{ id: string; seq: string; frame: string }[]> =>
  query(app.databaseUrl, 'select id, seq, frame from messages where conversation_id = $1 order by seq', [
    conversationId,
  ]);
const told = (frames: Frame[]): unknown[] => frames.map(({ id, seq, msg }) => [id, seq, msg]);

describe('durable before acknowledged', () => {
  it('is in Postgres when `sent` comes, and when it reaches anybody', async () => {
    const [a, b] = await Promise.all([speaker(fresh('a')), on(fresh('b'))]);
    const rowOf = async ({ id, seq }: Frame) => {
      const found = await query<{ seq: string }>(app.databaseUrl, 'select seq from messages where id = $1', [
        id,
      ]);
      return found.map((row) => Number(row.seq) - (seq as number));
    };
    a.send(single(a.user, b.user, { msgId: 1 }));
    expect(await rowOf(await a.next({ type: 'sent' }))).toEqual([0]);
    a.send(single(a.user, b.user, { msgId: 2 }));
    expect(await rowOf(await b.next(({ msg }) => msg?.msgId === 2))).toEqual([0]);
    a.send(join(a.user, 'durable'));
    expect(await rowOf(await a.next({ type: 'sent', seq: 1 }))).toEqual([0]);
    await away(a, b);
  });

  it('outlives the server: who missed it gets it from the next one, and a retry is still known', async () => {
    const { url: databaseUrl, drop } = await freshDatabase();
    const before = await bootApp({}, databaseUrl);
    const tenant = await before.tenant();
    const [a, token] = [
      await device(before, tenant, 'a', { rich: true }),
      await imToken(before.url, tenant, 'b'),
    ];
    const message = single('a', 'b', { msgId: 1, timestamp: 1, content: 'still here' });
    a.send(message);
    const first = await a.next({ type: 'sent' });
    await before.close();
    expect((await a.closed).code).toBe(1012);
    const after = await bootApp({}, databaseUrl);
    try {
      const b = await connect(after.url, token);
      expect(await b.next()).toMatchObject({ id: first.id, seq: 1, msg: message.msg });
      const again = await device(after, tenant, 'a', { rich: true });
      again.send(message);
      expect(await again.next({ type: 'sent' })).toMatchObject({ id: first.id, seq: 1 });
      await Promise.all([again.close(), b.close()]);
    } finally {
      await after.close();
      await drop();
    }
  });
});

describe('in order, without gaps', () => {
  it('each device of a group gets 1, 2, 3 … whoever sends, from however many devices at once', async () => {
    const [g, ...users] = [fresh('g'), fresh('a'), fresh('b'), fresh('c')];
    const groupId = [g];
    const foreign = await on(users[0], { groupId }, rival);
    const speakers: Device[] = [];
    for (const user of users) speakers.push(await speaker(user, { groupId }));
    const listeners = await Promise.all(users.map((user) => on(user, { client: 'plain' })));
    const late = await imToken(app.url, acme, users[1], { client: 'late' });
    await (await connect(app.url, late, { rich: true })).close();
    for (let msgId = 1; msgId <= 100; msgId += 1)
      for (const one of speakers) one.send(group(one.user, g, { msgId }));
    await Promise.all(speakers.map((one) => one.take(100, { type: 'sent' })));
    // A device that comes in the middle or after the end has no gap either.
    const back = await connect(app.url, late);
    for (const peer of [...listeners, back])
      expect(seqs(await peer.take(300, { type: 'group' }))).toEqual(upTo(303).slice(3));
    expect((await foreign.settled()).filter(({ type }) => type === 'group')).toEqual([]);
    await away(foreign, ...speakers, ...listeners, back);
  });

  it('numbers both directions of a one-to-one conversation together', async () => {
    const [a, b] = await Promise.all([speaker(fresh('a')), speaker(fresh('b'))]);
    const sent = await Promise.all(
      [a, b].map((one, index, both) => say(one, ...numbered(one.user, both[1 - index]!.user, 1, 50))),
    );
    expect(seqs(sent.flat()).sort((one, other) => one - other)).toEqual(upTo(100));
    expect(new Set(sent.flat().map(({ conversationId }) => conversationId as string)).size).toBe(1);
    await away(a, b);
  });
});

describe('at least once', () => {
  it('a plain device that answers no ping gets everything again, with the same id and seq', async () => {
    const [a, to] = [await speaker(fresh('a')), fresh('to')];
    const [b, foreign] = await Promise.all([on(to, { autoPong: false }), on(to, {}, rival)]);
    const sent = await say(a, ...numbered(a.user, to, 1, 3));
    const first = await b.take(3, { type: 'single' });
    expect(first.map(({ id }) => id as string)).toEqual(sent.map(({ id }) => id as string));
    await b.pinged();
    await b.drop();
    await say(a, ...numbered(a.user, to, 4, 4));
    const back = await on(to, { autoPong: false });
    const again = await back.take(4, { type: 'single' });
    expect(told(again.slice(0, 3))).toEqual(told(first));
    expect(again[3]).toMatchObject({ seq: 4 });
    expect(await foreign.settled()).toEqual([]);
    await away(a, back, foreign);
  });

  it('a plain device that answered does not: only what came afterwards', async () => {
    const [a, to] = [await speaker(fresh('a')), fresh('to')];
    const b = await on(to);
    await say(a, ...numbered(a.user, to, 1, 3));
    await b.take(3, { type: 'single' });
    await b.pinged();
    await b.ping();
    await b.drop();
    await say(a, ...numbered(a.user, to, 4, 5));
    const back = await on(to);
    expect(seqs(await back.settled())).toEqual([4, 5]);
    await away(a, back);
  });

  it('a pong proves what was written before its ping, and nothing after', async () => {
    const [a, to] = [await speaker(fresh('a')), fresh('to')];
    const b = await on(to, { autoPong: false });
    await say(a, ...numbered(a.user, to, 1, 1));
    await b.next({ seq: 1 });
    const ping = await b.pinged();
    await say(a, ...numbered(a.user, to, 2, 2));
    await b.next({ seq: 2 });
    b.pong(ping);
    await b.ping();
    await b.drop();
    const back = await on(to);
    expect(seqs(await back.settled())).toEqual([2]);
    await away(a, back);
  });

  it('what a device was sent by a ping of its own, or sent itself, is no proof', async () => {
    const [a, to] = [await speaker(fresh('a')), fresh('to')];
    const b = await on(to, { autoPong: false });
    await say(a, ...numbered(a.user, to, 1, 1));
    await b.next({ seq: 1 });
    await b.send(single(to, 'somebody')).ping();
    await b.drop();
    const back = await on(to);
    expect(seqs((await back.settled()).filter(({ source }) => source === a.user))).toEqual([1]);
    await away(a, back);
  });

  it('a user’s very first device gets what was stored before, in order; a further one starts at the present', async () => {
    const [a, to, g] = [await speaker(fresh('a')), fresh('to'), fresh('g')];
    await say(a, join(a.user, g), group(a.user, g, { msgId: 'before' }));
    await imToken(app.url, acme, to, { groupId: [g] });
    await say(a, ...numbered(a.user, to, 1, 5), group(a.user, g, { msgId: 'since' }));
    const first = await on(to);
    const got = await first.settled();
    expect(seqs(got.filter(({ type }) => type === 'single'))).toEqual(upTo(5));
    expect(got.filter(({ target }) => target === g).map(({ type, seq }) => [type, seq])).toEqual([
      ['join', 3],
      ['group', 4],
    ]);
    const second = await on(to, { client: 'phone' });
    await say(a, ...numbered(a.user, to, 6, 6));
    for (const peer of [first, second]) await peer.next({ seq: 6, type: 'single' });
    expect(seqs((await second.settled()).filter(({ target }) => target === to))).toEqual([6]);
    await second.drop();
    await say(a, ...numbered(a.user, to, 7, 7));
    const back = await on(to, { client: 'phone' });
    await back.next({ seq: 7, type: 'single' });
    const foreign = await on(to, {}, rival);
    expect(await foreign.settled()).toEqual([]);
    await away(a, first, back, foreign);
  });

  it('a connection that dies while it sends loses nothing: what is sent again is stored once', async () => {
    const [from, to] = [fresh('from'), fresh('to')];
    const all = numbered(from, to, 1, 100);
    const dying = await speaker(from);
    dying.send(...all);
    await dying.next({ type: 'sent' });
    await dying.drop();
    const back = await speaker(from);
    const sent = await say(back, ...all);
    expect(sent.filter(({ msgId, seq }) => msgId !== seq)).toEqual([]);
    expect(await stored(sent[0]!.conversationId as string)).toHaveLength(100);
    const b = await on(to);
    expect(seqs(await b.take(100, { type: 'single' }))).toEqual(upTo(100));
    await away(back, b);
  });

  it('what was missed comes before what is new, conversation by conversation in order', async () => {
    const [to, ...from] = [fresh('to'), fresh('a'), fresh('b'), fresh('c')];
    const speakers = await Promise.all(from.map((user) => speaker(user)));
    await Promise.all(speakers.map((one) => say(one, ...numbered(one.user, to, 1, 150))));
    const token = await imToken(app.url, acme, to);
    const opening = connect(app.url, token);
    await Promise.all(speakers.map((one) => say(one, ...numbered(one.user, to, 151, 160))));
    const b = await opening;
    const got = await b.take(480, { type: 'single' });
    for (const user of from) {
      const mine = got.filter(({ source }) => source === user);
      expect([seqs(mine), mine.map(({ msg }) => msg.n as number)]).toEqual([upTo(160), upTo(160)]);
    }
    await away(...speakers, b);
  });
});

describe('sent once', () => {
  it('the same msgId and timestamp again gets the first one’s id and seq, and is told to nobody', async () => {
    const [a, b] = await Promise.all([speaker(fresh('a')), on(fresh('b'))]);
    const other = await speaker(a.user, { client: 'phone' });
    const msg = { msgId: 7, timestamp: 1_611_065_986, content: 'once', more: [1, { a: 1, b: 2 }] };
    const [first] = await say(a, single(a.user, b.user, msg));
    await say(a, single(a.user, b.user, { msgId: 8, timestamp: msg.timestamp }));
    for (const again of [
      msg,
      { ...msg, msgId: '7' },
      { ...msg, timestamp: '1611065986' },
      { more: [1, { b: 2, a: 1 }], content: 'once', timestamp: '1611065986', msgId: '7' },
    ]) {
      for (const device of [a, other])
        expect(await say(device, single(a.user, b.user, again))).toMatchObject([
          { msgId: again.msgId, id: first!.id, seq: 1 },
        ]);
    }
    expect(seqs(await b.settled())).toEqual([1, 2]);
    expect(await stored(first!.conversationId as string)).toHaveLength(2);
    await away(a, b, other);
  });

  it('leading zeros of a timestamp make no other message', async () => {
    const [a, to] = [await speaker(fresh('a')), fresh('to')];
    const [first] = await say(a, single(a.user, to, { msgId: 1, timestamp: 1_611_065_986 }));
    a.send(single(a.user, to, { msgId: 1, timestamp: '01611065986' }));
    expect(await a.next()).toMatchObject({ type: 'sent', id: first!.id, seq: 1 });
    await a.close();
  });

  it('sent a hundred times at once it is stored once', async () => {
    const [a, b] = await Promise.all([speaker(fresh('a')), on(fresh('b'))]);
    const copies = Array.from({ length: 100 }, () => single(a.user, b.user, { msgId: 1, timestamp: 1 }));
    expect(new Set((await say(a, ...copies)).map(({ id }) => id as string)).size).toBe(1);
    expect(seqs(await b.settled())).toEqual([1]);
    await away(a, b);
  });

  it.each([
    ['content', { content: 'b' }, {}],
    ['one digit of a number that no double holds', { n: '9007199254740993' }, {}],
    ['kind of message', {}, { msgType: 'voice' }],
    ['extra', {}, { extra: 1 }],
  ])(
    'another %s under the same msgId and timestamp is 4006, and changes nothing',
    async (_, change, more) => {
      const [a, b] = await Promise.all([speaker(fresh('a')), on(fresh('b'))]);
      const text = (msg: Frame, rest: Frame): string =>
        JSON.stringify(single(a.user, b.user, msg, rest)).replace(/"(9\d{15})"/, '$1');
      const msg = { msgId: 'm', timestamp: 1, content: 'a', n: '9007199254740992' };
      await a.send(text(msg, {})).next({ type: 'sent' });
      expect(await a.fails(text({ ...msg, ...change }, more))).toMatchObject({ code: 4006, msgId: 'm' });
      expect(seqs(await b.settled())).toEqual([1]);
      await away(a, b);
    },
  );

  it('it is another message with another timestamp, in another conversation, of another sender or tenant', async () => {
    const [a, b] = await Promise.all([speaker(fresh('a')), speaker(fresh('b'))]);
    const foreign = await on(a.user, { rich: true }, rival);
    const msg = { msgId: 1, timestamp: 1 };
    const ids = new Set<unknown>();
    for (const [from, to, packet] of [
      [a, b.user, msg],
      [a, b.user, { msgId: 1, timestamp: 2 }],
      [a, b.user, { msgId: 1 }],
      [a, b.user, { msgId: 11, timestamp: 1 }],
      [a, 'another', msg],
      [b, a.user, msg],
      [foreign, b.user, msg],
    ] as const)
      ids.add((await say(from, single(from.user, to, packet)))[0]!.id);
    expect(ids.size).toBe(7);
    await away(a, b, foreign);
  });

  it('without a msgId nothing is taken for a retry', async () => {
    const [a, b] = await Promise.all([on(fresh('a')), on(fresh('b'))]);
    const frame = single(a.user, b.user, { timestamp: 1, content: 'again' });
    a.send(frame, frame);
    await a.send(frame).ping();
    expect(seqs(await b.take(3, { type: 'single' }))).toEqual([1, 2, 3]);
    await away(a, b);
  });
});
