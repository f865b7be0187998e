import { bootApp, type TestApp, type TestTenant } from '../support/app';
import { away as leaveChannels, open, type Channel } from '../support/channel';
import {
  away,
  device,
  fresh,
  imToken,
  say,
  single,
  tenantWith,
  upTo,
  type ConnectOptions,
  type Device,
  type TokenOptions,
} from '../support/im';
import { gate, Upstream } from '../support/upstream';

const BURST_BYTES = 8_192;
const BUFFER_BYTES = 262_144;

let app: TestApp;
let upstream: Upstream;
let acme: TestTenant;
let rival: TestTenant;

beforeAll(async () => {
  [app, upstream] = await Promise.all([
    bootApp({
      IM_REPLAY_BURST_BYTES: String(BURST_BYTES),
      // So little that a test makes up for nothing.
      IM_REPLAY_BYTES_PER_SECOND: '1024',
      IM_MAX_BUFFERED_BYTES: String(BUFFER_BYTES),
    }),
    Upstream.start(),
  ]);
  [acme, rival] = await Promise.all([
    app.tenant({ baseUrl: upstream.url, model: 'echo' }),
    app.tenant({ baseUrl: upstream.url, model: 'echo' }),
  ]);
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

const on = (
  user: string,
  tenant: TestTenant = acme,
  options: TokenOptions & ConnectOptions = {},
): Promise<Device> => device(app, tenant, user, { rich: true, ...options });

describe('a frame’s cost', () => {
  it('lets a client acknowledge each of 320 messages and go on sending', async () => {
    const [from, to] = [fresh('from'), fresh('to')];
    const reader = await on(to);
    const told = (n: number) =>
      acme.post('/api/v1/im/messages', { type: 'single', source: from, target: to, msg: { msgId: n } });
    const answers = await Promise.all(upTo(320).map(told));
    const { conversationId } = answers[0]!.body as { conversationId: string };
    await reader.take(320, { type: 'single' });
    for (const seq of upTo(320)) reader.send({ type: 'ack', conversationId, seq });
    for (const msgId of upTo(150)) reader.send(single(to, from, { msgId }));
    expect((await reader.take(150, { type: 'sent' })).at(-1)).toMatchObject({ msgId: 150 });
    expect(reader.frames.filter(({ type }) => type === 'error')).toEqual([]);
    await away(reader);
  });

  it('is a small one for pings, which are bounded all the same; what only looks like one is paid for in full', async () => {
    const busy = await tenantWith(app, { limits: { imFramesPerSecond: 0, imFramesBurst: 5 } });
    const [one, other] = await Promise.all([on('one', busy), on('other', busy)]);
    const stranger = await on('one', rival);
    for (const n of upTo(6)) {
      // The type last: a first one would say at once what the frame is.
      const { type, ...rest } = single('one', 'other', { msgId: n, type: 'ping' });
      one.send({ ...rest, type });
    }
    expect(await one.next({ type: 'error' })).toMatchObject({ code: 4029 });
    expect((await other.take(5, { type: 'single' })).map(({ msg }) => msg.msgId as number)).toEqual(upTo(5));
    // Five that were taken for pings at first have cost a twentieth each, too.
    for (let n = 0; n < 93; n += 1) await one.ping();
    for (let n = 0; n < 4; n += 1) one.send({ type: 'ping' });
    expect(await one.next({ type: 'error' })).toMatchObject({ code: 4029 });
    stranger.send(single('one', 'x', { msgId: 1 }));
    expect(await stranger.next({ type: 'sent' })).toMatchObject({ seq: 1 });
    await away(one, other, stranger);
  });
});

describe('what is sent again', () => {
  it('is counted by its bytes: `sync` goes as far as it may, then says when there is more', async () => {
    const [from, to] = [fresh('from'), fresh('to')];
    const [sender, reader] = await Promise.all([on(from), on(to)]);
    const text = 'x'.repeat(1_000);
    const sent = await say(sender, ...upTo(20).map((msgId) => single(from, to, { msgId, text })));
    await reader.take(20, { type: 'single' });
    const { conversationId } = sent[0]!;
    const sync = { type: 'sync', cursors: { [conversationId as string]: 0 } };
    const answer = await reader.send(sync).next({ type: 'sync' });
    const reached = (answer.cursors as Record<string, number>)[conversationId as string]!;
    expect(answer.hasMore).toBe(true);
    // The first that overdraws is the last.
    expect(reached).toBeGreaterThan(4);
    expect(reached).toBeLessThan(10);
    const refused = await reader.fails(sync);
    expect(refused).toMatchObject({ code: 4029, message: expect.stringMatching(/in \d+ s/) });
    // On another connection of the same user, too; not of anybody else.
    const phone = await on(to, acme, { client: 'phone' });
    expect(await phone.fails(sync)).toMatchObject({ code: 4029 });
    expect(await sender.send(sync).next({ type: 'sync' })).toMatchObject({ hasMore: true });
    // Messages go on.
    await say(sender, single(from, to, { msgId: 21 }));
    expect(await reader.next({ type: 'single', seq: 21 })).toMatchObject({ seq: 21 });
    const foreign = await on(to, rival);
    expect(await foreign.fails(sync)).toMatchObject({ code: 4004 });
    await away(sender, reader, phone, foreign);
  });

  it('is refused on the agent channel while it is being shown, and when too much was', async () => {
    const user = fresh('user');
    const token = await imToken(app.url, acme, user);
    const connect = (): Promise<Channel> => open(app.url, { token });
    const { opened, open: goOn } = gate();
    upstream.on('echo', async (exchange) => {
      for (let n = 0; n < 80; n += 1) await exchange.piece('word ');
      await opened;
      await exchange.done();
    });
    const one = await connect();
    one.send({ type: 'chat', message: 'x', sessionId: 's' });
    const { messageId } = await one.next({ offset: 79 * 5 });
    const resume = { type: 'resume', sessionId: 's', messageId, requestId: 'again' };
    const two = await connect();
    two.send(resume, { ...resume, requestId: 'twice' });
    expect(await two.next({ type: 'error' })).toMatchObject({ code: 'busy', requestId: 'twice' });
    goOn();
    await two.until(() => two.frames.some(({ done }) => done === true) || undefined);
    const refused = await two.fails(resume);
    expect(refused).toMatchObject({ code: 'rate_limited', message: expect.stringMatching(/in \d+ s/) });
    const three = await connect();
    expect(await three.fails(resume)).toMatchObject({ code: 'rate_limited' });
    // What is new is shown as ever.
    expect((await three.chat('hello', { sessionId: 's' })).at(-1)).toMatchObject({ status: 'finished' });
    const foreign = await open(app.url, { token: await imToken(app.url, rival, user) });
    expect(await foreign.fails(resume)).toMatchObject({ code: 'session_not_found' });
    await leaveChannels(one, two, three, foreign);
  });
});

describe('a frame that is larger than what may wait', () => {
  it('reaches who is there and who comes later, and what follows it comes after it', async () => {
    const to = fresh('to');
    const reader = await on(to);
    const stranger = await on(to, rival);
    const big = { content: '中'.repeat(65_000) };
    const send = (msgId: string, msg: object, extra?: unknown) =>
      acme.post('/api/v1/im/messages', { type: 'single', target: to, msg: { msgId, ...msg }, extra });
    for (const n of [1, 2]) expect((await send(`big ${n}`, big, '中'.repeat(65_000))).status).toBe(200);
    expect((await send('small', { content: 'after' })).status).toBe(200);
    const later = await on(to, acme, { client: 'phone' });
    const got = await reader.take(3, { type: 'single' });
    expect(got.map(({ seq }) => seq as number)).toEqual([1, 2, 3]);
    expect(Buffer.byteLength(JSON.stringify(got[0]))).toBeGreaterThan(BUFFER_BYTES);
    expect(got[2]!.msg.content).toBe('after');
    expect(reader.frames.filter(({ type }) => type === 'error')).toEqual([]);
    // A further device starts at the present; it gets one of its own.
    expect((await send('big 3', big, '中'.repeat(65_000))).status).toBe(200);
    for (const peer of [reader, later])
      expect(await peer.next({ type: 'single', seq: 4 })).toMatchObject({ seq: 4 });
    await away(reader, later);
    await send('big 4', big, '中'.repeat(65_000));
    await send('big 5', big, '中'.repeat(65_000));
    const back = await on(to, acme, { client: 'phone' });
    // Nothing was acknowledged.
    const caughtUp = await back.take(3, { type: 'single' });
    expect(caughtUp.map(({ seq }) => seq as number)).toEqual([4, 5, 6]);
    await stranger.ping();
    expect(stranger.frames.filter(({ type }) => type === 'single')).toEqual([]);
    await away(back, stranger);
  });
});
