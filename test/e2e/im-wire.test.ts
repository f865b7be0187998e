import { bootApp, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { ImSocket, imToken, type Frame, type SocketOptions } from '../support/im-socket';

let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;
const sockets: ImSocket[] = [];

beforeAll(async () => {
  app = await bootApp();
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
afterEach(async () => {
  await Promise.all(sockets.splice(0).map((socket) => socket.close()));
});
afterAll(() => app.close());

let users = 0;
/** A user of the test's own. */
const someone = (): number => (users += 1) + 1_000;

async function open(
  user: string | number,
  {
    client,
    groups,
    tenant = acme,
    ...options
  }: SocketOptions & { client?: string; groups?: string[]; tenant?: TestTenant } = {},
): Promise<ImSocket> {
  const token = await imToken(app.url, tenant.apiKey, user, {
    ...(client && { client }),
    ...(groups && { groupId: groups }),
  });
  const socket = await ImSocket.open(app.url, { token, rich: true, ...options });
  sockets.push(socket);
  return socket;
}

const content = ({ msg }: Frame): unknown => (msg as Frame | undefined)?.content;
const single = ({ type }: Frame): boolean => type === 'single';
const says = (source: unknown, target: unknown, text: string, more = {}) => ({
  type: 'single',
  source,
  target,
  msg: { msgId: `${text}-${Math.random()}`, content: text },
  ...more,
});

describe('a single frame', () => {
  it('arrives as it was sent, types and all, with id and seq', async () => {
    const [a, b] = [someone(), someone()];
    const [from, to] = [await open(a, { rich: false }), await open(b, { rich: false })];
    await open(b, { client: 'ready' });
    const sent = { type: 'single', source: a, target: b, msg: { msgId: 1, timestamp: '1611065986' } };
    from.send(sent);
    const got = await to.next();
    expect(got).toEqual({ ...sent, id: expect.stringMatching(/^\d+$/), seq: 1 });
    const rich = {
      type: 'single',
      source: `${a}`,
      target: b,
      msgType: 'map',
      msg: { at: [1.5, 2] },
      extra: [null, 'x'],
    };
    from.send(rich);
    expect(await to.next()).toEqual({ ...rich, id: expect.any(String), seq: 2 });
  });

  it('keeps its text byte for byte: large and odd numbers, any script', async () => {
    const [a, b] = [someone(), someone()];
    const [from, to] = [await open(a, { rich: false }), await open(b)];
    const text = `{"type":"single","source":${a},"target":${b},"msg":{"msgId":12345678901234567890,"n":[1.0,1e3,-0.10],"s":"中国必胜 🎉 \\"q\\""},"extra":9007199254740993}`;
    from.send(text);
    await to.next(single);
    expect(to.texts.at(-1)).toContain(text.slice(0, -1));
  });

  it('drops unknown fields, and sets id and seq itself', async () => {
    const [a, b] = [someone(), someone()];
    const [from, to] = [await open(a, { rich: false }), await open(b)];
    from.send({ ...says(a, b, 'x'), id: 'forged', seq: 99, junk: 1 });
    const got = await to.next(single);
    expect(got).toMatchObject({ seq: 1 });
    expect(got.id).not.toBe('forged');
    expect(got).not.toHaveProperty('junk');
  });

  it("goes to every client of the target and to the sender's other clients, not to the sending one", async () => {
    const [a, b] = [someone(), someone()];
    const own = [await open(a, { client: 'pc' }), await open(a, { client: 'phone' })];
    const theirs = [
      await open(b, { client: 'pc' }),
      await open(b, { client: 'phone' }),
      await open(b, { client: 'web' }),
    ];
    own[0]!.send(says(a, `${b}`, 'sync'));
    for (const socket of [own[1]!, ...theirs]) expect(content(await socket.next(single))).toBe('sync');
    expect((await own[0]!.settled()).filter(single)).toEqual([]);
  });

  it('to oneself reaches the other devices once', async () => {
    const a = someone();
    const [pc, phone] = [await open(a), await open(a, { client: 'phone' })];
    pc.send(says(a, a, 'note'));
    await phone.next(single);
    expect((await phone.settled()).filter(single)).toHaveLength(1);
    expect((await pc.settled()).filter(single)).toEqual([]);
  });

  it('reaches nobody of another tenant, whose users have the same ids', async () => {
    const [a, b] = [someone(), someone()];
    const [from, to] = [await open(a), await open(b)];
    const foreign = [await open(b, { tenant: rival }), await open(a, { tenant: rival, client: 'phone' })];
    from.send(says(a, b, 'ours'));
    await to.next(single);
    const own = await open(a, { tenant: rival });
    own.send(says(a, b, 'theirs'));
    for (const socket of foreign) {
      expect(content(await socket.next(single))).toBe('theirs');
      expect(socket.texts.join()).not.toContain('ours');
    }
    expect((await to.settled()).filter(single)).toHaveLength(1);
  });
});

describe('groups', () => {
  it('come into being with their first join, and tell their members who comes and goes', async () => {
    const [a, b] = [someone(), someone()];
    const group = `g${a}`;
    const [first, second] = [await open(a, { rich: false }), await open(b, { rich: false })];
    first.send({ type: 'join', source: a, target: group });
    await first.settled();
    second.send({ type: 'join', source: b, target: group, extra: 'hello' });
    expect(await first.next()).toEqual({
      type: 'join',
      source: b,
      target: group,
      extra: 'hello',
      id: expect.any(String),
      seq: 2,
    });
    second.send({ type: 'join', source: b, target: group });
    second.send({ type: 'group', source: b, target: group, msg: { content: 'hi' } });
    expect(await first.next()).toMatchObject({ type: 'group', seq: 3 });
    second.send({ type: 'leave', source: b, target: group });
    second.send({ type: 'leave', source: b, target: group });
    expect(await first.next()).toMatchObject({ type: 'leave', source: b, seq: 4 });
    expect(await second.fails({ type: 'group', source: b, target: group, msg: {} })).toMatchObject({
      code: 4004,
    });
    first.send({ type: 'group', source: a, target: group, msg: { content: 'alone' } });
    await first.settled();
    expect(second.texts.join()).not.toContain('alone');
    expect(first.frames.filter(({ type }) => type === 'leave')).toHaveLength(1);
  });

  it('send to every member but the sending device', async () => {
    const members = [someone(), someone(), someone()];
    const groups = [`g${members[0]}`];
    const devices = await Promise.all(members.map((user) => open(user, { groups })));
    const phone = await open(members[0]!, { client: 'phone' });
    devices[0]!.send({
      type: 'group',
      source: members[0],
      target: groups[0],
      msg: { msgId: 1, content: 'all' },
    });
    const isGroup = ({ type }: Frame) => type === 'group';
    for (const device of [devices[1]!, devices[2]!, phone])
      expect(content(await device.next(isGroup))).toBe('all');
    expect((await devices[0]!.settled()).filter(isGroup)).toEqual([]);
  });

  it('of the same id are each tenant’s own', async () => {
    const [a, b] = [someone(), someone()];
    const groups = [`g${a}`];
    const ours = await open(a, { groups });
    const theirs = await open(b, { groups, tenant: rival });
    ours.send({ type: 'group', source: a, target: groups[0], msg: { msgId: 1, content: 'ours' } });
    await ours.next(({ type }) => type === 'sent');
    expect(JSON.stringify(await theirs.settled())).not.toContain('ours');
    const outsider = await open(someone(), { tenant: rival });
    expect(
      await outsider.fails({ type: 'group', source: users + 1_000, target: groups[0], msg: { msgId: 1 } }),
    ).toMatchObject({ code: 4004 });
  });
});

describe('an error', () => {
  it.each([
    ['{', 4000, 'JSON'],
    ['[]', 4000, 'object'],
    ['"x"', 4000, 'object'],
    [{ source: 1 }, 4000, 'type'],
    [{ type: 'single', source: 1, target: 2 }, 4000, 'msg'],
    [{ type: 'single', source: 1, target: {}, msg: {} }, 4000, 'target'],
    [{ type: 'group', source: 1, target: 'nowhere', msg: { msgId: 7 } }, 4004, 'target'],
    [{ type: 'leave', source: 1, target: 'nowhere' }, 4004, 'target'],
    [{ type: 'single', source: 2, target: 1, msg: { msgId: 7 } }, 4003, 'source'],
    [{ type: 'single', source: 1, target: 'agent:nobody', msg: { msgId: 7 } }, 4004, 'target'],
    [
      { type: 'single', source: 1, target: 2, msg: { msgId: 7, timestamp: Date.now() + 40 * 86_400_000 } },
      4000,
      'timestamp',
    ],
    ['{"type":"single","source":1,"target":2,"msg":{"content":"a\\u0000"}}', 4000, 'NUL'],
    [{ type: 'ack', conversationId: '1', seq: 1 }, 4000, 'type'],
  ])('for %j is %i and names the field', async (frame, code, named) => {
    const socket = await open(1, { rich: false });
    const error = await socket.fails(frame);
    expect(error).toMatchObject({ type: 'error', code, message: expect.stringContaining(named) });
    if (typeof frame === 'object' && 'msg' in frame && 'msgId' in frame.msg) expect(error.msgId).toBe(7);
    expect(Object.keys(error).every((key) => ['type', 'code', 'message', 'msgId'].includes(key))).toBe(true);
    await socket.settled();
  });

  it('is told to the sender alone, and nothing is stored', async () => {
    const [a, b] = [someone(), someone()];
    const [from, to] = [await open(a), await open(b)];
    await from.fails(says(b, a, 'forged'));
    from.send(says(a, b, 'honest'));
    expect(content(await to.next(single))).toBe('honest');
    const rows = await query(app.databaseUrl, `select 1 from messages where frame like '%forged%'`);
    expect(rows).toEqual([]);
  });

  it('is 4006 for a used msgId and timestamp with another content', async () => {
    const [a, b] = [someone(), someone()];
    const from = await open(a);
    const frame = (text: string) => ({ ...says(a, b, text), msg: { msgId: 1, timestamp: 1, content: text } });
    from.send(frame('one'));
    await from.next(({ type }) => type === 'sent');
    expect(await from.fails(frame('two'))).toMatchObject({ code: 4006, msgId: 1 });
  });

  it('answers a binary frame, and what is nested beyond reason, and the connection stays', async () => {
    const a = someone();
    const socket = await open(a);
    socket.ws.send(Buffer.from('{"type":"ping"}'));
    expect(await socket.next()).toMatchObject({ type: 'error', code: 4000 });
    const deep = `{"type":"single","source":${a},"target":2,"msg":{"msgId":1,"x":${'['.repeat(20_000)}${']'.repeat(20_000)}}}`;
    expect(['error', 'sent']).toContain((await socket.send(deep).next(({ type }) => type !== 'pong')).type);
    await socket.settled();
  });
});

describe('limits', () => {
  it('a frame over the size closes with 1009', async () => {
    const a = someone();
    const socket = await open(a);
    socket.send(says(a, 2, 'x'.repeat(70_000)));
    expect(await socket.ended()).toMatchObject({ code: 1009 });
  });

  it('too many frames are 4029, and the connection is closed when it goes on', async () => {
    const a = someone();
    const socket = await open(a, { rich: false });
    for (let n = 0; n < 240; n += 1) socket.send({ type: 'ping' });
    expect(await socket.next(({ type }) => type === 'error')).toMatchObject({ code: 4029 });
    expect(socket.closed).toBeUndefined();
    for (let n = 0; n < 400; n += 1) socket.send({ type: 'ping' });
    expect(await socket.ended()).toMatchObject({ code: 4029 });
  });
});

it('a plain client sees the four types, errors and pongs, and nothing else', async () => {
  const [a, b] = [someone(), someone()];
  const groups = [`g${a}`];
  const plain = await open(a, { rich: false, groups });
  const rich = await open(b, { groups });
  rich.send({ type: 'watch', users: [a] });
  rich.send({ type: 'typing', target: a, kind: 'single' });
  rich.send({ type: 'typing', target: groups[0], kind: 'group' });
  rich.send(says(b, a, 'one'));
  const { conversationId } = await rich.next(({ type }) => type === 'sent');
  await plain.next(single);
  plain.send(says(a, b, 'two'));
  await rich.next(single);
  rich.send({ type: 'read', conversationId, seq: 2 });
  rich.send({ type: 'recall', conversationId, seq: 1 });
  rich.send(says(b, a, 'three'));
  await plain.next((frame) => content(frame) === 'three');
  await plain.fails('{');
  await plain.settled();
  const seen = new Set(plain.frames.map(({ type }) => type as string));
  for (const type of seen) expect(['single', 'group', 'join', 'leave', 'error', 'pong']).toContain(type);
});
