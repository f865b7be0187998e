import { UserTokens } from '../../src/tenancy';
import { ask, bootApp, type TestApp, type TestTenant } from '../support/app';
import {
  away,
  connect,
  device,
  fresh,
  group,
  imToken,
  join,
  leave,
  Peer,
  refusal,
  single,
  tenantWith,
  type ConnectOptions,
  type Device,
  type Frame,
  type TokenOptions,
  type UserId,
} from '../support/im';

const FRAME_BYTES = 32_768;
let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;

beforeAll(async () => {
  app = await bootApp({ IM_HEARTBEAT_SECONDS: '1', IM_MAX_FRAME_BYTES: String(FRAME_BYTES) });
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
afterAll(() => app.close());

const on = (user: UserId, options: TokenOptions & ConnectOptions = {}, tenant = acme): Promise<Device> =>
  device(app, tenant, user, options);
/** Two users of acme with a device each, and one of the rival who has the second one's id. */
async function pair(a: UserId = fresh('a'), b: UserId = fresh('b')): Promise<[Device, Device, Device]> {
  return Promise.all([on(a), on(b), on(b, {}, rival)]);
}

describe('the handshake', () => {
  it('takes the token from the query or as a bearer, on a path that may begin with two slashes', async () => {
    const token = await imToken(app.url, acme, 1);
    for (const path of ['/chat', '//chat', '/chat/']) await (await connect(app.url, token, { path })).close();
    const bearer = new Peer(app.url, null, { headers: { authorization: `Bearer ${token}` } });
    await (await bearer.opened).close();
  });

  it('refuses a wrong credential also beside a good one', async () => {
    const token = await imToken(app.url, acme, 1);
    const good = { authorization: `Bearer ${token}` };
    expect((await refusal(app.url, 'wrong', { headers: good })).status).toBe(401);
    for (const name of ['authorization', 'x-api-key']) {
      const headers = { [name]: 'Bearer wrong' };
      expect((await refusal(app.url, null, { headers })).status).toBe(401);
      expect((await refusal(app.url, token, { headers })).status).toBe(401);
    }
  });

  it('refuses a missing, altered, foreign or expired token, and a key, with 401 and JSON', async () => {
    const token = await imToken(app.url, acme, 1);
    const [head, claims, signature] = token.split('.') as [string, string, string];
    const altered = Buffer.from(
      Buffer.from(claims, 'base64url').toString().replace(acme.id, rival.id),
    ).toString('base64url');
    const unsigned = Buffer.from('{"alg":"none","typ":"JWT"}').toString('base64url');
    const user = { tenantId: acme.id as never, userId: '1', client: 'pc', keyId: null, issuedAt: Date.now() };
    const day = Date.now() + 86_400_000;
    const elsewhere = new UserTokens('another-installation-0123456789abcdef');
    const here = new UserTokens('secret-of-the-tests-0123456789abcdef');
    for (const wrong of [
      null,
      '',
      'nonsense',
      acme.apiKey,
      `${head}.${altered}.${signature}`,
      `${unsigned}.${claims}.`,
      await elsewhere.sign({ ...user, expiresAt: day }),
      await here.sign({ ...user, expiresAt: Date.now() - 1_000 }),
    ]) {
      const { status, body, headers } = await refusal(app.url, wrong);
      expect({ status, body }).toEqual({
        status: 401,
        body: { error: expect.any(String) as unknown, code: 'UNAUTHENTICATED' },
      });
      expect(headers['content-type']).toContain('application/json');
    }
  });

  it('lets any origin in while the allow-list is empty, else only those on it and what is no browser', async () => {
    const listed = await tenantWith(app, { allowedOrigins: ['https://app.example'] });
    const origin = 'https://evil.example';
    const [open, token] = await Promise.all([imToken(app.url, acme, 1), imToken(app.url, listed, 1)]);
    await (await connect(app.url, open, { origin })).close();
    expect(await refusal(app.url, token, { origin })).toMatchObject({
      status: 403,
      body: { code: 'ORIGIN_NOT_ALLOWED' },
    });
    await (await connect(app.url, token, { origin: 'https://app.example' })).close();
    await (await connect(app.url, token)).close();
  });

  it('is 404 elsewhere', async () => {
    const token = await imToken(app.url, acme, 1);
    for (const path of ['/', '/chats', '/chat/oauth/token'])
      expect(await refusal(app.url, token, { path })).toMatchObject({
        status: 404,
        body: { code: 'NOT_FOUND' },
      });
  });

  it('is 429 past the connections of a user or tenant; the same client again takes its own place', async () => {
    const limits = { imConnectionsPerUser: 2, imConnectionsPerTenant: 3 };
    const small = await tenantWith(app, { limits });
    const open = await Promise.all([
      on('u', {}, small),
      on('u', { client: 'web' }, small),
      on('v', {}, small),
    ]);
    for (const [user, client, whose] of [
      ['u', 'tv', 'user'],
      ['w', 'pc', 'tenant'],
    ] as const) {
      const refused = await refusal(app.url, await imToken(app.url, small, user, { client }));
      expect(refused).toMatchObject({ status: 429, body: { code: 'RATE_LIMITED' } });
      expect(refused.body.error).toContain(whose);
      expect(Number(refused.headers['retry-after'])).toBeGreaterThan(0);
    }
    await (await on('u', {}, rival)).close();
    await away(...open);
    const eight = fresh('eight');
    const mine = await Promise.all([...'12345678'].map((client) => on(eight, { client })));
    expect((await refusal(app.url, await imToken(app.url, acme, eight, { client: '9' }))).status).toBe(429);
    await away(...mine);
  });

  it('is 429 past the connections of an address; a server that restarts closes with 1012', async () => {
    const narrow = await bootApp({ IM_CONNECTIONS_PER_ADDRESS: '2' });
    const tenant = await narrow.tenant();
    const [one, two] = await Promise.all([device(narrow, tenant, 1), device(narrow, tenant, 2)]);
    const refused = await refusal(narrow.url, await imToken(narrow.url, tenant, 3));
    expect(refused).toMatchObject({ status: 429, body: { error: expect.stringContaining('address') } });
    await narrow.close();
    for (const peer of [one, two])
      expect(await peer.closed).toMatchObject({ code: 1012, reason: expect.stringMatching(/\w/) });
  });
});

describe('a message', () => {
  it('arrives as the same frame with the same JSON types, and `id` and `seq`', async () => {
    const [a, b, foreign] = await pair(1_001, '1002');
    const sent = { type: 'single', source: 1_001, target: 1_002, msg: { msgId: 1, timestamp: '1611065986' } };
    a.send(sent);
    const got = await b.next({ type: 'single' });
    expect(got).toEqual({ ...sent, id: expect.stringMatching(/^[1-9]\d{0,18}$/), seq: 1 });
    a.send(single('1001', 1002, {}, { msgType: 'map' }));
    expect(await b.next()).toMatchObject({ source: '1001', target: 1002, msgType: 'map', msg: {}, seq: 2 });
    b.send(single(1002, '1001', { n: 1 }));
    expect(await a.next()).toMatchObject({ seq: 3 });
    expect(await foreign.settled()).toEqual([]);
    await away(a, b, foreign);
  });

  it.each([
    ['numbers no double holds', '{"a":9007199254740993,"b":-0,"c":1.0,"d":1e400,"e":0.1000000000000000055}'],
    ['a large msgId', '{"msgId":12345678901234567890,"timestamp":1611065986}'],
    ['any script and emoji', '{"content":"żółć 中文 العربية 👩‍👩‍👧‍👦 \\" \\\\u0000 \\n"}'],
    ['half an emoji', '{"content":"\\ud83d"}'],
    [
      'keys that mean something to JavaScript',
      '{"__proto__":{"a":1},"constructor":null,"":[],"toString":"x"}',
    ],
    ['an object in an array in an object', '{"a":[[[]],{"b":[null,true,false]}]}'],
  ])('keeps %s', async (_, msg) => {
    const [a, b, foreign] = await pair();
    const head = `{"type":"single","source":"${a.user}","target":"${b.user}","msg":${msg},"extra":${msg}`;
    a.send(`${head}}`);
    await b.next({ type: 'single' });
    expect(b.texts.at(-1)).toMatch(/"id":"\d+","seq":1}$/);
    expect(b.texts.at(-1)!.replace(/,"id":"\d+","seq":1}$/, '')).toBe(head);
    expect(await foreign.settled()).toEqual([]);
    await away(a, b, foreign);
  });

  it('may hold any `extra`, and unknown fields of a frame are ignored', async () => {
    const [a, b, foreign] = await pair();
    for (const extra of [null, 0, '', [], false, { deep: [1] }]) {
      a.send(single(a.user, b.user, { n: 1 }, { extra, id: '7', seq: 9, ack: true, version: 2 }));
      const got = await b.next({ type: 'single' });
      expect(got).toEqual({
        type: 'single',
        source: a.user,
        target: b.user,
        msg: { n: 1 },
        extra,
        id: expect.stringMatching(/^\d{2,}$/),
        seq: expect.any(Number),
      });
    }
    await away(a, b, foreign);
  });

  it('goes to every client of the target and to the sender’s other clients, not to the sending one', async () => {
    const [a, b, foreign] = await pair();
    const [a2, b2] = await Promise.all([on(a.user, { client: 'phone' }), on(b.user, { client: 'web' })]);
    a.send(single(a.user, b.user, { n: 1 }));
    const copies = await Promise.all([a2, b, b2].map((peer) => peer.next({ type: 'single' })));
    expect(new Set(copies.map((copy) => JSON.stringify(copy))).size).toBe(1);
    a2.send(single(a.user, a.user, { note: 'to self' }));
    expect(await a.next({ type: 'single' })).toMatchObject({ msg: { note: 'to self' } });
    const all = await Promise.all([a, a2, b, b2, foreign].map((peer) => peer.settled()));
    expect(all.map((frames) => frames.length)).toEqual([1, 1, 1, 1, 0]);
    await away(a, a2, b, b2, foreign);
  });

  it('arrives also when its sender has closed right behind it', async () => {
    const [a, b, foreign] = await pair();
    a.send(single(a.user, b.user, { content: 'bye' }), single(a.user, b.user, { content: 'now' }));
    await a.close();
    await b.next((frame) => frame.msg?.content === 'now');
    expect((await b.settled()).map(({ seq, msg }) => [seq, msg.content])).toEqual([
      [1, 'bye'],
      [2, 'now'],
    ]);
    expect(await foreign.settled()).toEqual([]);
    await away(b, foreign);
  });

  it('compares ids as text, every digit of them', async () => {
    const big = ['9007199254740992', '9007199254740993'] as const;
    const [even, odd] = await Promise.all([on(big[0]), on(big[1])]);
    odd.send(`{"type":"single","source":${big[1]},"target":${big[0]},"msg":{}}`);
    expect(await even.next({ type: 'single' })).toMatchObject({ seq: 1 });
    expect(even.texts.at(-1)).toContain(`"source":${big[1]},"target":${big[0]}`);
    expect(await odd.fails(`{"type":"single","source":${big[0]},"target":"x","msg":{}}`)).toMatchObject({
      code: 4003,
    });
    await away(even, odd);
  });

  it('to an assistant, by `agent:` and slug or by id, gets its reply as a `single` back', async () => {
    const a = await on(fresh('asks'));
    for (const target of ['agent:main', acme.assistantId]) {
      a.send(single(a.user, target, { content: `hello ${target}` }));
      const reply = await a.next({ type: 'single', source: target, target: a.user });
      expect(reply.msg.content).toContain(`hello ${target}`);
    }
    for (const target of ['agent:nobody', `agent:${rival.assistantId}`])
      expect(await a.fails(single(a.user, target, { msgId: 2 }))).toMatchObject({ code: 4004, msgId: 2 });
    await a.close();
  });
});

describe('a group', () => {
  it('comes into being with its first `join`; its frames go to all members but the sending device', async () => {
    const g = fresh('g');
    const [a, b, foreign] = await pair();
    const [a2, none] = await Promise.all([on(a.user, { client: 'phone' }), on(fresh('outsider'))]);
    await foreign.send(join(foreign.user, g)).ping();
    expect(await a.fails(group(a.user, g, { msgId: 1 }))).toMatchObject({ code: 4004, msgId: 1 });
    await a.send(join(a.user, g)).ping();
    expect(await a2.next({ type: 'join' })).toMatchObject({ source: a.user, target: g, seq: 1 });
    await b.send(join(b.user, g)).ping();
    for (const peer of [a, a2])
      expect(await peer.next({ type: 'join', source: b.user })).toMatchObject({ seq: 2 });
    a.send(group(a.user, g, { n: 1 }));
    for (const peer of [a2, b])
      expect(await peer.next({ type: 'group' })).toMatchObject({ seq: 3, target: g });
    b.send(leave(b.user, g));
    for (const peer of [a, a2])
      expect(await peer.next({ type: 'leave' })).toMatchObject({ source: b.user, target: g, seq: 4 });
    a.send(group(a.user, g, { n: 2 }));
    expect(await a2.next({ type: 'group' })).toMatchObject({ seq: 5 });
    expect(await b.fails(group(b.user, g, { msgId: 'x' }))).toMatchObject({ code: 4004, msgId: 'x' });
    const kinds = await Promise.all([a, b, none, foreign].map((peer) => peer.settled()));
    expect(kinds.map((frames) => frames.map(({ type }) => type as string))).toEqual([
      ['error', 'join', 'leave'],
      ['group', 'error'],
      [],
      [],
    ]);
    await away(a, a2, b, none, foreign);
  });

  it('hears nothing of who joins twice or leaves what they are not in, and that is no error', async () => {
    const g = fresh('g');
    const [a, b, foreign] = await pair();
    for (const peer of [a, foreign]) await peer.send(join(peer.user, g)).ping();
    await a.send(join(a.user, g)).ping();
    await b.send(leave(b.user, g)).ping();
    await b.send(join(b.user, g), join(b.user, g), leave(b.user, g), leave(b.user, g)).ping();
    expect((await a.settled()).map(({ type, seq }) => [type, seq])).toEqual([
      ['join', 2],
      ['leave', 3],
    ]);
    expect(await b.settled()).toEqual([]);
    expect(await foreign.settled()).toEqual([]);
    await away(a, b, foreign);
  });

  it('has a numeric id as well: 7 and "7" are one', async () => {
    const [a, b, foreign] = await pair();
    await a.send(join(a.user, 7)).ping();
    await b.send(join(b.user, '7')).ping();
    b.send(group(b.user, 7));
    expect(await a.next({ type: 'group' })).toMatchObject({ target: 7, seq: 3 });
    expect(await foreign.fails(group(foreign.user, 7))).toMatchObject({ code: 4004 });
    await away(a, b, foreign);
  });

  it('is the server’s affair where the tenant manages its groups: `join` is 4004', async () => {
    const managed = await tenantWith(app, { groupPolicy: 'managed' });
    await imToken(app.url, managed, 'founder', { groupId: ['made'] });
    const peer = await on('m', {}, managed);
    for (const g of ['made', 'own'])
      expect(await peer.fails(join('m', g))).toMatchObject({
        code: 4004,
        message: expect.stringContaining('target'),
      });
    await peer.close();
  });

  it('that muted somebody refuses their frames with 4005', async () => {
    const g = fresh('g');
    const [a, b, foreign] = await pair();
    for (const peer of [a, b]) await peer.send(join(peer.user, g)).ping();
    const path = `/api/v1/im/groups/${encodeURIComponent(g)}/members/${encodeURIComponent(b.user)}`;
    await ask(app.url, 'PATCH', path, { mutedSeconds: 60 }, { 'x-api-key': acme.apiKey });
    expect(await b.fails(group(b.user, g, { msgId: 5 }))).toMatchObject({ code: 4005, msgId: 5 });
    expect((await a.settled()).map(({ type }) => type as string)).toEqual(['join']);
    await away(a, b, foreign);
  });
});

describe('what is wrong', () => {
  it.each<[number, string, Frame | string | Buffer]>([
    [4000, 'JSON', '{"type":"single"'],
    [4000, 'JSON', ''],
    [4000, 'object', '[]'],
    [4000, 'object', 'null'],
    [4000, 'object', '"single"'],
    [4000, 'text', Buffer.from('{"type":"ping"}')],
    [4000, 'type', { source: 'me', target: 2, msg: {} }],
    [4000, 'type', { ...single('me', 2), type: 'Single' }],
    [4000, 'type', { ...single('me', 2), type: 7 }],
    [4000, 'type', { ...single('me', 2), type: 'constructor' }],
    [4000, 'source', { type: 'single', target: 2, msg: { msgId: 1 } }],
    [4000, 'source', { ...single('me', 2), source: true }],
    [4000, 'source', { ...single('me', 2), source: null }],
    [4000, 'target', { type: 'single', source: 'me', msg: {} }],
    [4000, 'target', { ...single('me', ''), msg: { msgId: 'a' } }],
    [4000, 'target', single('me', 'x'.repeat(129))],
    [4000, 'target', single('me', '\ud800')],
    [4000, 'target', join('me', 'a\nb')],
    [4000, 'msg', { type: 'group', source: 'me', target: 2 }],
    [4000, 'msg', { ...single('me', 2), msg: 'text' }],
    [4000, 'msg', { ...single('me', 2), msg: [] }],
    [4000, 'msg.msgId', single('me', 2, { msgId: {} })],
    [4000, 'msg.msgId', single('me', 2, { msgId: '\udc00' })],
    [4000, 'msg.msgId', { ...join('me', 'g'), msg: { msgId: [] } }],
    [4000, 'msg.timestamp', single('me', 2, { msgId: 1, timestamp: 'yesterday' })],
    [4000, 'msg.timestamp', single('me', 2, { msgId: 1, timestamp: 1.5 })],
    [4000, 'msg.timestamp', single('me', 2, { msgId: 1, timestamp: -1 })],
    [4000, 'msgType', single('me', 2, { msgId: 1 }, { msgType: 7 })],
    [4000, 'NUL', single('me', 2, { msgId: 1, content: 'a\u0000b' })],
    [4000, 'NUL', single('me', 2, { msgId: 1 }, { extra: { 'a\u0000': 1 } })],
    [4003, 'source', single('you', 2, { msgId: 1 })],
    [4003, 'source', join('you', 'g')],
    [4004, 'target', group('me', 'nowhere', { msgId: 1 })],
  ])('is told with %i and %s to the sender alone, who may go on: case %#', async (code, named, frame) => {
    const me = await on('me', { client: fresh('case') });
    const error = await me.fails(frame);
    expect(error).toMatchObject({ type: 'error', code, message: expect.stringContaining(named) });
    const msgId = (frame as Frame).msg?.msgId as unknown;
    const legible = typeof msgId === 'number' || msgId === 'a';
    if (legible) expect(error.msgId).toBe(msgId);
    await me.ping();
    await me.close();
  });

  it('reaches nobody', async () => {
    const [a, b, foreign] = await pair();
    const a2 = await on(a.user, { client: 'phone' });
    await a.fails({ ...single(a.user, b.user), msg: null });
    await a.fails(single(b.user, a.user));
    for (const peer of [a2, b, foreign]) expect(await peer.settled()).toEqual([]);
    await away(a, a2, b, foreign);
  });

  it.each([500, 1_500, 2_000, 2_500, 3_000, 6_000, 15_000])(
    'however deep: %i levels are stored or 4000',
    async (levels) => {
      const sender = await on(fresh('deep'), { rich: true });
      const outcomes: unknown[] = [];
      for (const n of [1, 2]) {
        const msg = `{"msgId":1,"content":${'['.repeat(levels)}1.0${']'.repeat(levels)},"n":${n}}`;
        sender.send(`{"type":"single","source":"${sender.user}","target":"t","msg":${msg}}`);
        const { type, code, msgId } = await sender.next(({ type }) => type === 'sent' || type === 'error');
        expect(msgId).toBe(1);
        outcomes.push(code ?? type);
      }
      expect([
        [4000, 4000],
        ['sent', 4006],
      ]).toContainEqual(outcomes);
      await sender.close();
    },
  );

  it('of over the size limit closes with 1009, and the tenant’s own, lower one is 4000', async () => {
    const [a, b, foreign] = await pair();
    const content = 'x'.repeat(FRAME_BYTES);
    expect((await a.send(single(a.user, b.user, { content })).closed).code).toBe(1009);
    const tight = await on('t', {}, await tenantWith(app, { limits: { imMaxFrameBytes: 2_000 } }));
    expect(await tight.fails(single('t', 2, { content: content.slice(0, 2_000) }))).toMatchObject({
      code: 4000,
    });
    expect([await b.settled(), await foreign.settled()]).toEqual([[], []]);
    await away(b, foreign, tight);
  });
});

describe('a connection', () => {
  it('gets `pong` for `ping`', async () => {
    const a = await on(fresh('a'));
    expect(await a.send('{"type":"ping","time":1}').next()).toEqual({ type: 'pong' });
    await a.close();
  });

  it('is told 4029 past the rate, and closed with 4029 when it goes on', async () => {
    const busy = await tenantWith(app, { limits: { imFramesPerSecond: 1, imFramesBurst: 5 } });
    const [a, b] = await Promise.all([on('a', {}, busy), on('b', {}, busy)]);
    for (let msgId = 1; msgId <= 6; msgId += 1) a.send(single('a', 'b', { msgId }));
    expect(await a.next({ type: 'error' })).toMatchObject({ code: 4029, msgId: 6 });
    expect((await b.take(5, { type: 'single' })).map(({ msg }) => msg.msgId as number)).toEqual([
      1, 2, 3, 4, 5,
    ]);
    for (let msgId = 7; msgId <= 110; msgId += 1) a.send(single('a', 'b', { msgId }));
    expect((await a.closed).code).toBe(4029);
    await b.ping();
    await b.close();
  });

  it('may send 200 frames at once', async () => {
    const [a, b, foreign] = await pair();
    for (let n = 1; n <= 200; n += 1) a.send(single(a.user, b.user, { n }));
    expect((await b.take(200, { type: 'single' })).at(-1)).toMatchObject({ seq: 200, msg: { n: 200 } });
    expect(await a.settled()).toEqual([]);
    await away(a, b, foreign);
  });

  it('gives way to a new one of the same user and client with 4409 and a reason; not to a rival’s', async () => {
    const [first, foreign] = await Promise.all([on(31_337), on(31_337, {}, rival)]);
    const second = await on('31337');
    expect(await first.closed).toMatchObject({ code: 4409, reason: expect.stringContaining('elsewhere') });
    await Promise.all([second.ping(), foreign.ping()]);
    await away(second, foreign);
  });

  it('is pinged, and dropped when its peer stays silent', async () => {
    const [silent, lively] = await Promise.all([
      on(fresh('silent'), { autoPong: false }),
      on(fresh('lively')),
    ]);
    await silent.pinged();
    expect((await silent.closed).code).toBe(1006);
    await lively.ping();
    await lively.close();
  });

  it('of the plain dialect sees the four types, `error` and `pong`, nothing else', async () => {
    const g = fresh('g');
    const [plain, foreign] = await Promise.all([on(fresh('plain')), on(fresh('plain'), {}, rival)]);
    const rich = await on(fresh('rich'), { rich: true, groupId: [g] });
    await plain.send(join(plain.user, g)).ping();
    const { conversationId } = await rich.next({ type: 'join', source: plain.user });
    rich.send(single(rich.user, plain.user, { msgId: 1 }), group(rich.user, g, { msgId: 2 }));
    const [sent] = await rich.take(2, { type: 'sent' });
    rich.send(
      { type: 'watch', users: [plain.user] },
      { type: 'typing', kind: 'single', target: plain.user },
      { type: 'typing', kind: 'group', target: g },
      { type: 'read', conversationId, seq: 2 },
      { type: 'recall', conversationId: sent!.conversationId, seq: sent!.seq },
    );
    await rich.next({ type: 'recall' });
    rich.send(leave(rich.user, g));
    await plain.next({ type: 'leave' });
    await plain.fails({ type: 'read', conversationId, seq: 1 });
    await plain.settled();
    expect(new Set(plain.frames.map(({ type }) => type as string))).toEqual(
      new Set(['pong', 'single', 'group', 'leave', 'error']),
    );
    for (const frame of plain.frames.filter(({ seq }) => seq !== undefined))
      expect(Object.keys(frame)).toEqual(
        expect.not.arrayContaining(['conversationId', 'timestamp', 'recalled']),
      );
    await away(plain, foreign, rich);
  });
});
