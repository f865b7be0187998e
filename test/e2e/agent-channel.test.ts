import { networkInterfaces } from 'node:os';
import { Sessions } from '../../src/agent-channel/sessions';
import { DemoTenant, UserTokens } from '../../src/tenancy';
import type { ApiKeyId, TenantId } from '../../src/common';
import { ask, bootApp, eventually, says, type TestApp, type TestTenant } from '../support/app';
import {
  Channel,
  away,
  fresh,
  open,
  refusal,
  textOf,
  type ChannelOptions,
  type Frame,
} from '../support/channel';
import { change, imToken, tenantWith } from '../support/im';
import { gate, Upstream, type Exchange } from '../support/upstream';

let app: TestApp;
let upstream: Upstream;
let acme: TestTenant;
let rival: TestTenant;
let models = 0;

beforeAll(async () => {
  [app, upstream] = await Promise.all([
    bootApp({ IM_FRAMES_BURST: '2000', CHANNEL_CONNECTIONS_PER_USER: '1000' }),
    Upstream.start(),
  ]);
  [acme, rival] = await Promise.all([
    app.tenant({ baseUrl: upstream.url, model: 'of-acme' }),
    app.tenant({ baseUrl: upstream.url, model: 'of-the-rival' }),
  ]);
});
afterAll(async () => {
  // Everybody has left: nothing of all these sessions is held any more.
  const sessions: unknown = app.app.nest.get(Sessions);
  const { byName } = sessions as { byName: Map<string, unknown> };
  await eventually(async () => byName.size === 0);
  await app.close();
  await upstream.close();
});

const any = expect.any(String) as unknown;
/** A server's connection, with its key. */
const connect = (options: ChannelOptions = {}, tenant = acme): Promise<Channel> =>
  open(app.url, { key: tenant.apiKey, ...options });
/** A user's connection, with a token. */
const userOf = async (user: string, options: ChannelOptions = {}, tenant = acme): Promise<Channel> =>
  open(app.url, { token: await imToken(app.url, tenant, user), ...options });

interface Scripted {
  readonly modelServiceId: string;
  readonly seen: () => Exchange[];
  /** The conversations that the model was shown, without the system prompt. */
  readonly prompts: () => string[][];
}

/** A model whose answers this test writes; without a script the last message comes back word by word. */
async function scripted(
  script?: (exchange: Exchange) => Promise<unknown>,
  tenant = acme,
  provider = tenant.providerId,
): Promise<Scripted> {
  models += 1;
  const model = `scripted-${models}`;
  if (script) upstream.on(model, script);
  const { body } = await tenant.post('/api/admin/model-services', {
    name: model,
    model,
    providerId: provider,
  });
  const seen = () => upstream.seen(model);
  return {
    modelServiceId: (body as { id: string }).id,
    seen,
    prompts: () =>
      seen().map((exchange) =>
        (exchange.body.messages as { role: string; content: string }[])
          .filter(({ role }) => role !== 'system')
          .map(({ content }) => content),
      ),
  };
}

async function made(tenant: TestTenant, path: string, body?: unknown): Promise<Record<string, string>> {
  const answer = await tenant.post(path, body);
  if (answer.status >= 300) throw new Error(`${path}: ${answer.status} ${answer.text}`);
  return answer.body as Record<string, string>;
}

/** Another agent of the tenant, published unless told otherwise. */
async function agent(
  slug: string,
  { tenant = acme, published = true, ...version }: Frame & { tenant?: TestTenant; published?: boolean } = {},
): Promise<string> {
  const { id } = await made(tenant, '/api/admin/assistants', { slug, name: slug });
  const path = `/api/admin/assistants/${id}/versions`;
  const { id: versionId } = await made(tenant, path, { modelServiceId: tenant.serviceId, ...version });
  if (published) await made(tenant, `${path}/${versionId}/publish`);
  return slug;
}

/** Rows of a dialogue, oldest first. */
async function history(replyOf: Frame, tenant = acme): Promise<Frame[]> {
  const { body } = await tenant.get('/api/copywriting/dialogue/list?pageSize=200');
  for (const { id } of (body as { rows: { id: string }[] }).rows) {
    const { rows } = (await tenant.get(`/api/copywriting/message/list/${id}`)).body as { rows: Frame[] };
    if (rows.some((row) => row.id === replyOf.messageId)) return rows;
  }
  throw new Error('no such reply');
}

describe('connecting', () => {
  const bearer = (credential: string, more: object = {}) => ({
    headers: { authorization: `Bearer ${credential}`, ...more },
  });

  it('takes a key as x-api-key or bearer, an IM token or a channel token as ?token= or bearer', async () => {
    const [im, channel] = [
      await imToken(app.url, acme, 'bob'),
      (await made(acme, '/api/v1/tokens', { userId: 'bob' })).token!,
    ];
    const ways: ChannelOptions[] = [
      { key: acme.apiKey },
      { key: `Bearer ${acme.apiKey}` },
      bearer(acme.apiKey),
      { token: im },
      { token: channel },
      bearer(im),
      bearer(channel),
      { ...bearer(im), token: im },
      { ...bearer(im), key: acme.apiKey },
      { key: app.rootKey, headers: { 'tenant-id': acme.id } },
      { key: acme.apiKey, path: '//api/v1/ws' },
    ];
    for (const way of ways) {
      const one = await open(app.url, way);
      expect(textOf(await one.chat('well met'))).toBe('well met');
      await one.close();
    }
  });

  it('refuses everybody else with 401, also who brings a good credential beside a wrong one', async () => {
    const [good, foreign] = [await imToken(app.url, acme, 'bob'), await imToken(app.url, rival, 'bob')];
    const [id] = acme.apiKey.split('_').slice(1);
    const wrong: ChannelOptions[] = [
      {},
      { key: '' },
      { key: 'nonsense' },
      { key: `pk_${id}_${'x'.repeat(40)}` },
      bearer('nonsense'),
      { headers: { authorization: 'Basic YTpi' } },
      { token: '' },
      { token: 'nonsense' },
      { token: `${good.slice(0, -4)}AAAA` },
      // An address ends up in logs: it is for tokens alone.
      { token: acme.apiKey },
      { key: acme.apiKey, token: 'nonsense' },
      { key: acme.apiKey, ...bearer('nonsense') },
      { key: 'nonsense', token: good },
      { token: good, ...bearer('nonsense') },
      { token: good, key: good },
      { token: acme.apiKey, key: acme.apiKey },
      { token: 'nonsense', ...bearer(good) },
      { key: acme.apiKey, token: foreign },
      { key: rival.apiKey, ...bearer(good) },
      { key: acme.apiKey, headers: { 'tenant-id': rival.id } },
      { key: app.rootKey },
    ];
    for (const [index, way] of wrong.entries()) {
      const { status, body } = await refusal(app.url, way);
      expect([index, status, body]).toEqual([index, 401, { error: any, code: any }]);
    }
  });

  it('wants a key that may hold dialogues', async () => {
    const reader = await app.tenant({ scopes: ['usage'] });
    expect(await refusal(app.url, { key: reader.apiKey })).toMatchObject({
      status: 403,
      body: { code: 'FORBIDDEN' },
    });
  });

  it('is of the key’s user-id, in any script', async () => {
    const sessionId = fresh('of');
    const { modelServiceId, prompts } = await scripted();
    for (const user of ['小明', '小红', '小明']) {
      const headers = { 'user-id': Buffer.from(user).toString('latin1') };
      const one = await connect({ headers });
      await one.chat(user, { sessionId, modelServiceId });
      await one.close();
    }
    expect(prompts()).toEqual([['小明'], ['小红'], ['小明', '小明', '小明']]);
  });

  it('greets who names an agent, in the query or the path; frames that name none are for it', async () => {
    const slug = await agent('greeter', { greeting: 'Welcome! 👋', prompt: 'You greet.' });
    for (const path of [`/api/v1/ws?agentId=${slug}`, `/api/v1/agents/${slug}/ws`]) {
      const one = await connect({ path });
      const greeting = await one.next();
      expect(greeting).toEqual({
        type: 'message',
        agentId: slug,
        content: 'Welcome! 👋',
        done: true,
        sessionId: any,
      });
      const frames = await one.chat('hello');
      expect(frames.map(({ agentId }) => agentId as string)).toEqual(frames.map(() => slug));
      expect(frames[0]!.sessionId).toBe(greeting.sessionId);
      expect(upstream.seen('of-acme').at(-1)!.body.messages[0]).toEqual({
        role: 'system',
        content: 'You greet.',
      });
      // Another one may be named all the same.
      expect((await one.chat('hello', { agentId: 'main' }))[0]!.agentId).toBe('main');
      await one.close();
    }
    const silent = await connect();
    expect((await silent.chat('hello'))[0]!.type).toBe('stream');
    await silent.close();
  });

  it('answers 404 for an agent there is none of, for this tenant', async () => {
    await agent('unpublished', { published: false });
    await agent('of-the-rival', { tenant: rival });
    const slugs = ['nobody', 'unpublished', 'of-the-rival', '%00', '%F0%9F%A4%96', 'x'.repeat(400), '%zz'];
    for (const slug of slugs) {
      for (const path of [`/api/v1/ws?agentId=${slug}`, `/api/v1/agents/${slug}/ws`]) {
        const { status, body } = await refusal(app.url, { key: acme.apiKey, path });
        expect([path, status, body]).toMatchObject([path, 404, { code: 'NOT_FOUND', error: any }]);
      }
    }
  });

  it('answers 400 for a user-id that is not UTF-8: several users would be one', async () => {
    for (const userId of ['Andr\xe9', '\xed\xa0\x80'])
      expect(await refusal(app.url, { key: acme.apiKey, headers: { 'user-id': userId } })).toMatchObject({
        status: 400,
        body: { code: 'BAD_INPUT', error: 'user-id: must be UTF-8' },
      });
  });

  it('lets only a tenant’s own pages in where it has a list of them', async () => {
    const strict = await tenantWith(app, { allowedOrigins: ['https://app.acme.example'] });
    const token = await imToken(app.url, strict, 'bob');
    for (const origin of ['https://evil.example', 'null', 'http://app.acme.example', 'http://localhost']) {
      for (const credential of [{ key: strict.apiKey }, { token }]) {
        expect(await refusal(app.url, { ...credential, origin })).toMatchObject({
          status: 403,
          body: { code: 'ORIGIN_NOT_ALLOWED' },
        });
      }
    }
    await away(
      await open(app.url, { token, origin: 'https://app.acme.example' }),
      await open(app.url, { token }),
      // Another tenant's list is not ours.
      await connect({ origin: 'https://evil.example' }),
    );
  });

  it('lets a user have so many connections, and a server as many as it likes', async () => {
    const small = await tenantWith(app, { limits: { channelConnectionsPerUser: 1 } });
    const token = await imToken(app.url, small, 'ann');
    const ann = await open(app.url, { token });
    expect(await refusal(app.url, { token })).toMatchObject({
      status: 429,
      body: { code: 'RATE_LIMITED', error: expect.stringContaining('this user') as unknown },
    });
    const others = [await userOf('bob', {}, small), await connect({}, small), await connect({}, small)];
    await ann.close();
    await away(await eventually(async () => open(app.url, { token }).catch(() => null)), ...others);
  });

  it('lets a tenant, and an address, have so many connections', async () => {
    const small = await tenantWith(app, { limits: { imConnectionsPerTenant: 2 } });
    const held = [await connect({}, small), await connect({}, small)];
    const refused = await refusal(app.url, { key: small.apiKey });
    expect(refused).toMatchObject({ status: 429, body: { code: 'RATE_LIMITED' } });
    expect(Number(refused.headers['retry-after'])).toBeGreaterThan(0);
    await away(await connect());
    await held.pop()!.close();
    await away(await eventually(async () => connect({}, small).catch(() => null)), ...held);

    const narrow = await bootApp({ IM_CONNECTIONS_PER_ADDRESS: '1' });
    try {
      const [one, other] = [await narrow.tenant(), await narrow.tenant()];
      const first = await open(narrow.url, { key: one.apiKey });
      expect(await refusal(narrow.url, { key: other.apiKey })).toMatchObject({ status: 429 });
      await first.close();
    } finally {
      await narrow.close();
    }
  });
});

describe('the quickstart', () => {
  let demo: TestApp;
  const local = (options: ChannelOptions = {}) => open(demo.url, options);
  beforeAll(async () => {
    demo = await bootApp({ HOST: '0.0.0.0' });
    const tenant = await demo.tenant({ baseUrl: upstream.url });
    await demo.tenant({ baseUrl: upstream.url });
    expect((await refusal(demo.url)).status).toBe(401);
    demo.app.nest.get(DemoTenant).open(tenant.apiKey);
  });
  afterAll(() => demo.close());

  it('lets this machine in without a credential, and its own pages', async () => {
    const origins = ['http://localhost:3000', 'https://localhost', 'http://127.0.0.1:8080', 'http://[::1]'];
    for (const origin of [undefined, ...origins]) {
      const one = await local(origin === undefined ? {} : { origin });
      expect(textOf(await one.chat('hello you'))).toBe('hello you');
      await one.close();
    }
  });

  it('refuses foreign pages, who came through a proxy, and a wrong credential', async () => {
    const origins = [
      'null',
      'https://evil.example',
      'http://localhost.evil.example',
      'http://127.0.0.1.evil.example',
      'http://192.0.2.1',
      'file://',
      'nonsense',
    ];
    for (const origin of origins)
      expect([origin, (await refusal(demo.url, { origin })).status]).toEqual([origin, 401]);
    for (const name of ['x-forwarded-for', 'x-real-ip', 'forwarded', 'via'])
      expect([name, (await refusal(demo.url, { headers: { [name]: '192.0.2.7' } })).status]).toEqual([
        name,
        401,
      ]);
    expect((await refusal(demo.url, { key: 'nonsense' })).status).toBe(401);
    expect((await refusal(demo.url, { token: '' })).status).toBe(401);
  });

  it('refuses other machines', async () => {
    const outside = Object.values(networkInterfaces())
      .flatMap((addresses) => addresses ?? [])
      .find(({ family, internal }) => family === 'IPv4' && !internal);
    // A machine without a network can not be reached from another one.
    if (!outside) return;
    const url = demo.url.replace('localhost', outside.address);
    expect((await refusal(url)).status).toBe(401);
  });
});

describe('chat', () => {
  it('brings the reply piece by piece; pieces, offsets and the end are exactly these', async () => {
    const pieces = ['Hel', 'lo ', '👋', '中文', ' "quoted"\n'];
    const { modelServiceId } = await scripted(async (exchange) => {
      await exchange.pieces(...pieces);
      await exchange.done();
    });
    const [one, sessionId] = [await connect(), fresh('exact')];
    const frames = await one.chat('你好', { agentId: 'main', sessionId, modelServiceId });
    const { messageId } = frames[0]!;
    expect(messageId).toMatch(/^[1-9]\d{10,18}$/);
    const about = { sessionId, messageId: messageId as string };
    const offsets = [0, 3, 6, 8, 10];
    expect(frames).toEqual([
      ...pieces.map((content, index) => ({
        type: 'stream',
        agentId: 'main',
        content,
        done: false,
        ...about,
        offset: offsets[index],
      })),
      {
        type: 'stream',
        agentId: 'main',
        content: '',
        done: true,
        ...about,
        offset: 20,
        status: 'finished',
        usage: { promptTokens: 7, completionTokens: 5, totalTokens: 12, credits: 0 },
      },
    ]);
    expect(await history(frames[0]!)).toMatchObject([
      { role: 'user', content: '你好' },
      { role: 'assistant', content: pieces.join(''), id: messageId as string, status: 'finished' },
    ]);
    await one.close();
  });

  it('is for `main` in a session of the connection’s own, when neither is named', async () => {
    const { modelServiceId, prompts } = await scripted();
    const [one, other] = [await connect(), await connect()];
    const first = await one.chat('one', { modelServiceId });
    const second = await one.chat('two', { modelServiceId, sessionId: null, agentId: null });
    const foreign = await other.chat('three', { modelServiceId });
    const named = [...first, ...second].map(({ agentId, sessionId }) => [agentId, sessionId] as unknown[]);
    expect(named).toEqual(named.map(() => ['main', first[0]!.sessionId]));
    expect(foreign[0]!.sessionId).not.toBe(first[0]!.sessionId);
    expect(prompts()).toEqual([['one'], ['one', 'one', 'two'], ['three']]);
    // The name it was told leads back to it, from another connection, too.
    await other.chat('four', { modelServiceId, sessionId: first[0]!.sessionId as string });
    expect(prompts()[3]).toEqual(['one', 'one', 'two', 'two', 'four']);
    await away(one, other);
  });

  it('goes on in the session of that name, of the same user with the same agent, and in no other', async () => {
    const other = await agent('other-one');
    const { modelServiceId, prompts } = await scripted();
    const ofRival = await scripted(undefined, rival);
    const sessionId = `${'s'.repeat(110)} 会话 "\\/?#`;
    const [bob, eve, server] = [await userOf('bob'), await userOf('eve'), await connect()];
    const [stranger, asBob] = [
      await userOf('bob', {}, rival),
      await connect({ headers: { 'user-id': 'bob' } }),
    ];
    await bob.chat('bob 1', { sessionId, modelServiceId });
    await eve.chat('eve 1', { sessionId, modelServiceId });
    await server.chat('server 1', { sessionId, modelServiceId });
    await bob.chat('bob to other', { sessionId, modelServiceId, agentId: other });
    await stranger.chat('stranger', { sessionId, modelServiceId: ofRival.modelServiceId });
    await asBob.chat('bob 2', { sessionId, modelServiceId });
    expect(prompts()).toEqual([
      ['bob 1'],
      ['eve 1'],
      ['server 1'],
      ['bob to other'],
      ['bob 1', 'bob 1', 'bob 2'],
    ]);
    expect(ofRival.prompts()).toEqual([['stranger']]);
    // In UTF-16 units.
    const [fits, longer] = ['🐱'.repeat(64), 'x' + '🐱'.repeat(64)];
    expect((await eve.chat('fits', { sessionId: fits }))[0]!.sessionId).toBe(fits);
    expect(await eve.fails({ type: 'chat', message: 'x', sessionId: longer })).toMatchObject({
      code: 'bad_request',
      message: expect.stringMatching(/^sessionId: /) as unknown,
    });
    await away(bob, eve, server, stranger, asBob);
  });

  it('takes a dialogue’s id for the name: of that user, and of the tenant’s server', async () => {
    const { modelServiceId, prompts } = await scripted();
    const sse = await acme.send(says('begun', { modelServiceId }), { headers: { 'user-id': 'dora' } });
    await sse.end();
    const sessionId = sse.record.id as string;
    const replyId = sse.events[0]!.id.split(':')[0]!;
    const [dora, server, eve] = [await userOf('dora'), await connect(), await userOf('eve')];
    const stranger = await connect({}, rival);
    await dora.chat('by dora', { sessionId, modelServiceId });
    await server.chat('by the server', { sessionId, modelServiceId });
    expect(prompts().slice(1)).toEqual([
      ['begun', 'begun', 'by dora'],
      ['begun', 'begun', 'by dora', 'by dora', 'by the server'],
    ]);
    // To everybody else it is any name: nothing of the dialogue is behind it.
    const foreign = await connect({ headers: { 'user-id': 'eve' } });
    await foreign.send({ type: 'subscribe', sessionId }).handled();
    for (const other of [eve, stranger]) {
      const refused = { type: 'error', agentId: 'main', code: 'session_not_found', sessionId };
      expect(await other.fails({ type: 'cancel', sessionId })).toMatchObject(refused);
      expect(await other.fails({ type: 'resume', sessionId, messageId: replyId })).toMatchObject(refused);
      await other.send({ type: 'subscribe', sessionId }).handled();
    }
    await eve.chat('mine', { sessionId, modelServiceId });
    expect(prompts().at(-1)).toEqual(['mine']);
    await server.chat('again', { sessionId, modelServiceId });
    for (const other of [eve, stranger]) {
      await other.handled();
      expect(other.texts.filter((text) => text.includes('again'))).toEqual([]);
    }
    const { body } = await acme.get(`/api/copywriting/message/list/${sessionId}`);
    expect((body as { rows: Frame[] }).rows.map(({ content }) => content as string)).not.toContain('mine');
    await away(dora, server, eve, stranger, foreign);
  });

  it('`stream: false` brings one whole message', async () => {
    const one = await connect();
    const sessionId = fresh('whole');
    const frames = await one.chat('all of it, at once 🎉', { sessionId, stream: false, requestId: 'r1' });
    expect(frames).toEqual([
      {
        type: 'message',
        agentId: 'main',
        content: 'all of it, at once 🎉',
        done: true,
        sessionId,
        messageId: any,
        requestId: 'r1',
        offset: 0,
        status: 'finished',
        usage: { promptTokens: 7, completionTokens: 5, totalTokens: 12, credits: 0 },
      },
    ]);
    await one.close();
  });

  it('`requestId` is in every frame that it causes, and in no other', async () => {
    const one = await connect();
    const frames = [
      ...(await one.chat('a b c', { requestId: 'first' })),
      ...(await one.chat('d e')),
      ...(await one.chat('f g', { requestId: '第三' })),
    ];
    const ids = frames.map(({ requestId }) => requestId as string | undefined);
    expect(ids).toEqual([...Array(4).fill('first'), ...Array(3).fill(undefined), ...Array(3).fill('第三')]);
    await one.close();
  });

  it('`modelServiceId` names another model, as a string or a number; a foreign one is refused', async () => {
    const { modelServiceId, seen } = await scripted();
    const one = await connect();
    await one.chat('to another', { modelServiceId });
    expect(seen()).toHaveLength(1);
    for (const wrong of [
      rival.serviceId,
      '1',
      '9999999999999999999',
      '9223372036854775808',
      1e18,
      0,
      'x',
      {},
    ]) {
      const refused = await one.fails({ type: 'chat', message: 'x', modelServiceId: wrong });
      expect([wrong, refused]).toMatchObject([
        wrong,
        { code: 'bad_request', message: expect.stringMatching(/^modelServiceId: /) as unknown },
      ]);
    }
    await one.close();
  });
});

describe('what is wrong', () => {
  /** The error is all there is of it: the connection goes on. */
  async function error(one: Channel, frame: Frame | string | Buffer): Promise<Frame> {
    const before = one.frames.length;
    const told = await one.fails(frame);
    await one.send({ type: 'ping' }).next({ type: 'pong' });
    expect(one.frames.slice(before)).toEqual([told, { type: 'pong' }]);
    expect(told).toMatchObject({ type: 'error', agentId: any, code: any, message: any });
    return told;
  }

  it.each([
    ['{', 'the frame'],
    ['', 'the frame'],
    ['[]', 'the frame'],
    ['null', 'the frame'],
    ['"chat"', 'the frame'],
    [Buffer.from('{"type":"ping"}'), 'the frame'],
    [{}, 'type'],
    [{ type: 'shout' }, 'type'],
    [{ type: ['ping'] }, 'type'],
    [{ type: '__proto__' }, 'type'],
    [{ type: 'chat' }, 'message'],
    [{ type: 'chat', message: '' }, 'message'],
    [{ type: 'chat', message: 1 }, 'message'],
    [{ type: 'chat', message: null }, 'message'],
    [{ type: 'chat', message: 'a\0b' }, 'message'],
    [{ type: 'chat', message: 'x'.repeat(32_001) }, 'message'],
    [{ type: 'chat', message: '🎉'.repeat(16_001) }, 'message'],
    [{ type: 'chat', message: 'x', agentId: 1 }, 'agentId'],
    [{ type: 'chat', message: 'x', agentId: '' }, 'agentId'],
    [{ type: 'chat', message: 'x', agentId: 'a\0' }, 'agentId'],
    [{ type: 'chat', message: 'x', sessionId: 1 }, 'sessionId'],
    [{ type: 'chat', message: 'x', sessionId: '' }, 'sessionId'],
    [{ type: 'chat', message: 'x', sessionId: '\0' }, 'sessionId'],
    [{ type: 'chat', message: 'x', stream: 'no' }, 'stream'],
    [{ type: 'chat', message: 'x', requestId: 1 }, 'requestId'],
    [{ type: 'chat', message: 'x', requestId: 'x'.repeat(129) }, 'requestId'],
    [{ type: 'ping', requestId: {} }, 'requestId'],
    [{ type: 'subscribe', sessionId: {} }, 'sessionId'],
    [{ type: 'cancel', sessionId: [] }, 'sessionId'],
    [{ type: 'resume' }, 'messageId'],
    [{ type: 'resume', messageId: 'x' }, 'messageId'],
    [{ type: 'resume', messageId: '1', offset: -1 }, 'offset'],
    [{ type: 'resume', messageId: '1', offset: 1.5 }, 'offset'],
    [{ type: 'resume', messageId: '1', offset: '1' }, 'offset'],
  ] as [Frame | string | Buffer, string][])('bad_request %#: names what it is', async (frame, field) => {
    const one = await connect();
    expect(await error(one, frame)).toMatchObject({
      code: 'bad_request',
      agentId: 'main',
      message: expect.stringMatching(new RegExp(`^${field}\\b`)) as unknown,
    });
    await one.close();
  });

  it('carries the requestId and the names that it was about', async () => {
    const one = await connect();
    const about = { agentId: 'nobody', sessionId: 's', requestId: 'r' };
    expect(await error(one, { type: 'chat', message: 'x', ...about })).toEqual({
      type: 'error',
      code: 'agent_not_found',
      message: any,
      ...about,
    });
    expect(await error(one, { type: 'chat', requestId: 'r2' })).toMatchObject({ requestId: 'r2' });
    await one.close();
  });

  it('ignores fields it does not know', async () => {
    const one = await connect();
    const frames = await one.chat('hello', { token: 'x', attachments: [{}], __proto__: null });
    expect(textOf(frames)).toBe('hello');
    await one.close();
  });

  it('agent_not_found: of another tenant, unpublished, not there', async () => {
    await agent('hidden', { published: false });
    await agent('only-the-rivals', { tenant: rival });
    const one = await connect();
    for (const agentId of ['hidden', 'only-the-rivals', 'nobody'])
      for (const frame of [{ type: 'chat', message: 'x' }, { type: 'subscribe' }, { type: 'cancel' }])
        expect(await error(one, { ...frame, agentId })).toMatchObject({ code: 'agent_not_found', agentId });
    await one.close();
  });

  it('session_not_found: nothing was said in it, the reply is not of it, or it is somebody else’s', async () => {
    const [one, other, sessionId] = [await connect(), await userOf('bob'), fresh('found')];
    const said = await one.chat('x', { sessionId });
    const [, foreign] = [await one.chat('y', { sessionId: fresh('found') }), one.frames.at(-1)!];
    const { messageId } = said[0]!;
    const rows = await history(said[0]!);
    const frames: [Channel, Frame][] = [
      [one, { type: 'cancel' }],
      [one, { type: 'cancel', sessionId: fresh('never') }],
      [one, { type: 'resume', messageId: messageId as string }],
      [one, { type: 'resume', sessionId: fresh('never'), messageId: messageId as string }],
      [one, { type: 'resume', sessionId, messageId: foreign.messageId as string }],
      [one, { type: 'resume', sessionId, messageId: rows[0]!.id as string }],
      [one, { type: 'resume', sessionId, messageId: '1' }],
      [one, { type: 'resume', sessionId, messageId: 1 }],
      [one, { type: 'resume', sessionId, messageId: '9999999999999999999' }],
      [one, { type: 'resume', sessionId, messageId: 1e300 }],
      [other, { type: 'cancel', sessionId }],
      [other, { type: 'resume', sessionId, messageId: messageId as string }],
    ];
    for (const [index, [from, frame]] of frames.entries())
      expect([index, await error(from, frame)]).toMatchObject([index, { code: 'session_not_found' }]);
    await away(one, other);
  });

  it('busy: past 16 that wait for their turn; those get theirs', async () => {
    const { opened, open: go } = gate();
    const { modelServiceId, prompts } = await scripted(async (exchange) => {
      await opened;
      await exchange.piece('ok');
      await exchange.done();
    });
    const [one, sessionId] = [await connect(), fresh('busy')];
    const chat = (n: number) => ({
      type: 'chat',
      message: `${n}`,
      sessionId,
      modelServiceId,
      requestId: `${n}`,
    });
    for (let n = 1; n <= 20; n += 1) one.send(chat(n));
    const refused = [await one.next(), await one.next(), await one.next()];
    expect(refused.map(({ code, requestId }) => [code, requestId] as unknown[])).toEqual([
      ['busy', '18'],
      ['busy', '19'],
      ['busy', '20'],
    ]);
    go();
    for (let n = 1; n <= 17; n += 1)
      expect((await one.reply()).at(-1)).toMatchObject({ requestId: `${n}`, done: true });
    expect(prompts()).toHaveLength(17);
    expect(
      prompts()
        .at(-1)!
        .filter((said) => said !== 'ok'),
    ).toEqual(Array.from({ length: 17 }, (_, n) => `${n + 1}`));
    await one.close();
  });

  it('busy: the server writes as many replies as it may', async () => {
    const small = await bootApp({ MAX_CONCURRENT_REPLIES: '1' });
    const { opened, open: go } = gate();
    upstream.on('one-at-a-time', async (exchange) => {
      await opened;
      await exchange.done();
    });
    try {
      const tenant = await small.tenant({ baseUrl: upstream.url, model: 'one-at-a-time' });
      const one = await open(small.url, { key: tenant.apiKey });
      one.send({ type: 'chat', message: 'x', sessionId: 'a' });
      await eventually(async () => upstream.seen('one-at-a-time').length > 0);
      expect(await one.fails({ type: 'chat', message: 'x', sessionId: 'b' })).toMatchObject({
        code: 'busy',
        sessionId: 'b',
      });
      go();
      await one.next({ done: true });
      await one.close();
    } finally {
      await small.close();
    }
  });

  it('rate_limited: frames over the rate are refused; who goes on regardless is closed with 4029', async () => {
    const slow = await tenantWith(app, { limits: { imFramesBurst: 3, imFramesPerSecond: 0 } });
    const one = await connect({}, slow);
    const unknown = { type: 'nothing' };
    const refused = { type: 'error', code: 'bad_request' };
    for (let n = 0; n < 3; n += 1) expect(await one.send(unknown).next()).toMatchObject(refused);
    expect(await one.send(unknown).next()).toMatchObject({ type: 'error', code: 'rate_limited' });
    // Pings have a budget of their own.
    expect(await one.send({ type: 'ping' }).next()).toEqual({ type: 'pong' });
    for (let n = 0; n < 200; n += 1) one.send(unknown);
    expect((await one.closed).code).toBe(4029);
    expect(one.frames.filter(({ code }) => code === 'bad_request')).toHaveLength(3);
  });

  it('rate_limited: the provider’s own limit', async () => {
    const { modelServiceId } = await scripted(async (exchange) =>
      exchange.fail(429, '{"error":{"message":"slow down"}}', { 'retry-after': '60' }),
    );
    const one = await connect();
    const [told, ...rest] = await one.chat('x', { modelServiceId, requestId: 'r' });
    expect(rest).toEqual([]);
    expect(told).toMatchObject({ type: 'error', code: 'rate_limited', requestId: 'r', sessionId: any });
    await one.close();
  });

  it('takes 32,000 characters of any script, however they are escaped', async () => {
    const { modelServiceId, prompts } = await scripted(async (exchange) => {
      await exchange.piece('read');
      await exchange.done();
    });
    const one = await connect();
    const message = '长'.repeat(32_000);
    await one.chat(message, { modelServiceId, sessionId: fresh('long') });
    const escaped = { type: 'chat', message, modelServiceId, sessionId: fresh('escaped'), requestId: 'e' };
    one.send(JSON.stringify(escaped).replaceAll('长', '\\u957f'));
    await eventually(async () => one.frames.some(({ done, requestId }) => done && requestId === 'e'));
    expect(prompts()).toEqual([[message], [message]]);
    await one.close();
  });

  it('too_large: a frame over the tenant’s limit; over the installation’s the connection ends with 1009', async () => {
    const small = await tenantWith(app, { limits: { channelMaxFrameBytes: 2_000 } });
    const one = await connect({}, small);
    const frame = (bytes: number) => {
      const empty = JSON.stringify({ type: 'ping', pad: '' });
      return { type: 'ping', pad: 'x'.repeat(bytes - empty.length) };
    };
    expect(await one.send(frame(2_000)).next()).toEqual({ type: 'pong' });
    expect(await one.fails(frame(2_001))).toMatchObject({ code: 'too_large', agentId: 'main' });
    expect(await one.send(frame(2_000)).next()).toEqual({ type: 'pong' });
    one.send(frame(270_000));
    expect((await one.closed).code).toBe(1009);
  });

  it('provider_error: before the text, and in the middle of it; no `done` follows, the session goes on', async () => {
    const { modelServiceId, prompts } = await scripted(async (exchange) => {
      if (exchange.attempt === 1) return exchange.fail(400, '{"error":{"message":"no such thing"}}');
      if (exchange.attempt > 2) {
        await exchange.piece('fine');
        return exchange.done();
      }
      await exchange.pieces('half ', 'of');
      return exchange.chunk({ error: { message: 'broke' } });
    });
    const [one, sessionId] = [await connect(), fresh('broken')];
    const chat = { sessionId, modelServiceId };
    const before = await one.chat('one', { ...chat, requestId: 'r1' });
    expect(before).toEqual([
      {
        type: 'error',
        agentId: 'main',
        code: 'provider_error',
        message: expect.stringContaining('no such thing') as unknown,
        sessionId,
        messageId: any,
        requestId: 'r1',
      },
    ]);
    const middle = await one.chat('two', chat);
    expect(middle).toMatchObject([
      { type: 'stream', content: 'half ' },
      { type: 'stream', content: 'of' },
      { type: 'error', code: 'provider_error', messageId: middle[0]!.messageId as string },
    ]);
    expect(textOf(await one.chat('three', chat))).toBe('fine');
    expect(prompts().at(-1)!.slice(-2)).toEqual(['half of', 'three']);
    expect(one.frames.filter(({ done }) => done === true)).toHaveLength(1);
    expect((await history(middle[0]!)).map(({ status }) => status as string)).toContain('failed');
    await one.close();
  });

  it('provider_timeout: the provider is too slow', async () => {
    const provider = await made(acme, '/api/admin/model-providers', {
      name: fresh('slow'),
      kind: 'openai-compatible',
      baseUrl: upstream.url,
      credentials: [{ apiKey: 'upstream-secret' }],
      firstPieceTimeoutMs: 1_000,
      idleTimeoutMs: 1_000,
    });
    const { modelServiceId } = await scripted(async (exchange) => exchange.start(), acme, provider.id);
    const one = await connect();
    expect(await one.chat('x', { modelServiceId })).toMatchObject([
      { type: 'error', code: 'provider_timeout' },
    ]);
    await one.close();
  });
});

it('a ping gets a pong, and nothing else', async () => {
  const one = await connect();
  one.send({ type: 'ping' }, { type: 'ping', requestId: 'p' });
  expect(await one.take(2)).toEqual([{ type: 'pong' }, { type: 'pong', requestId: 'p' }]);
  expect(one.frames).toHaveLength(2);
  await one.close();
});

describe('a session that several watch', () => {
  it('shows the same frames in the same order to all, whoever asks; each has its turn', async () => {
    const gates = [gate(), gate(), gate()];
    const { modelServiceId, prompts, seen } = await scripted(async (exchange) => {
      const n = exchange.attempt;
      await exchange.piece(`reply ${n} `);
      await gates[n - 1]!.opened;
      await exchange.pieces('goes ', 'on');
      await exchange.done();
    });
    const sessionId = fresh('shared');
    const [one, other, watcher] = [
      await userOf('bob'),
      await connect({ headers: { 'user-id': 'bob' } }),
      await userOf('bob'),
    ];
    const [eve, stranger] = [await userOf('eve'), await userOf('bob', {}, rival)];
    for (const each of [watcher, eve, stranger]) await each.send({ type: 'subscribe', sessionId }).handled();
    await other.send({ type: 'subscribe', sessionId }).handled();
    const chat = (message: string, more = {}) => ({
      type: 'chat',
      message,
      sessionId,
      modelServiceId,
      ...more,
    });
    one.send(chat('first', { requestId: 'r1' }));
    await one.next({ content: 'reply 1 ' });
    other.send(chat('second', { requestId: 'r2' }));
    await other.handled();
    await one.send(chat('third', { stream: false })).handled();
    expect(seen()).toHaveLength(1);
    gates[0]!.open();
    await watcher.next({ content: 'reply 2 ' });
    expect(watcher.frames.filter(({ done }) => done === true)).toHaveLength(1);
    expect(seen()).toHaveLength(2);
    gates[1]!.open();
    gates[2]!.open();
    for (const each of [one, other, watcher]) await each.next({ type: 'message', done: true });
    const shown = ({ texts }: Channel) => texts.filter((text) => /"type":"(stream|message)"/.test(text));
    expect(shown(one)).toHaveLength(9);
    expect(shown(other)).toEqual(shown(one));
    expect(shown(watcher)).toEqual(shown(one));
    expect(prompts().map((said) => said.at(-1))).toEqual(['first', 'second', 'third']);
    for (const each of [eve, stranger]) {
      await each.handled();
      expect(shown(each)).toEqual([]);
    }
    await away(one, other, watcher, eve, stranger);
  });

  it('shows who comes in the middle of a reply all of it, from the start', async () => {
    const { opened, open: go } = gate();
    const { modelServiceId } = await scripted(async (exchange) => {
      await exchange.pieces('so ', 'far ');
      await opened;
      await exchange.piece('so good');
      await exchange.done();
    });
    const [one, late, sessionId] = [await userOf('bob'), await userOf('bob'), fresh('late')];
    one.send({ type: 'chat', message: 'x', sessionId, modelServiceId, requestId: 'r' });
    await one.next({ content: 'far ' });
    await late.send({ type: 'subscribe', sessionId }).next({ content: 'far ' });
    // A second time shows nothing twice.
    await late.send({ type: 'subscribe', sessionId }).handled();
    go();
    await Promise.all([one, late].map((each) => each.next({ done: true })));
    expect(late.texts).toEqual(one.texts);
    // The next one is shown live, once.
    await one.chat('next', { sessionId });
    expect(textOf(await late.reply())).toBe('next');
    await away(one, late);
  });

  it('greets who comes before anything was said, and nobody later', async () => {
    const slug = await agent('host', { greeting: 'Come in.' });
    const [one, sessionId] = [await connect(), fresh('greeted')];
    const about = { agentId: slug, sessionId };
    expect(await one.send({ type: 'subscribe', ...about }).next()).toEqual({
      type: 'message',
      content: 'Come in.',
      done: true,
      ...about,
    });
    await one.chat('hi', about);
    const later = await connect();
    await later.send({ type: 'subscribe', ...about }).handled();
    expect(later.frames.filter(({ type }) => type === 'message')).toEqual([]);
    await away(one, later);
  });

  it('does not end with who asked: the reply goes on for the others', async () => {
    const { opened, open: go } = gate();
    const { modelServiceId } = await scripted(async (exchange) => {
      await exchange.piece('go');
      await opened;
      await exchange.piece('ing on');
      await exchange.done();
    });
    const [one, other, sessionId] = [await userOf('bob'), await userOf('bob'), fresh('left')];
    await other.send({ type: 'subscribe', sessionId }).handled();
    one.send({ type: 'chat', message: 'x', sessionId, modelServiceId });
    await one.next({ content: 'go' });
    await one.drop();
    go();
    expect(textOf(await other.reply())).toBe('going on');
    await other.close();
  });
});

it('a session that is cleared begins anew for who watches it; its dialogue’s id leads to what was', async () => {
  const { modelServiceId, prompts } = await scripted();
  const [bob, sessionId] = [await userOf('bob'), fresh('cleared')];
  const [watcher, byId] = [await userOf('bob'), await connect()];
  await watcher.send({ type: 'subscribe', sessionId }).handled();
  await bob.chat('one', { sessionId, modelServiceId });
  const { body } = await acme.get('/api/v1/sessions', { 'user-id': 'bob' });
  const { dialogueId } = (body.data as Frame[]).find(({ id }) => id === sessionId)!;
  await byId.chat('by its id', { sessionId: dialogueId as string, modelServiceId });
  for (let n = 0; n < 2; n += 1) {
    await acme.post('/api/v1/sessions/clear', { sessionKey: sessionId }, { 'user-id': 'bob' });
    await acme.post('/api/v1/sessions/clear', { sessionKey: dialogueId as string }, { 'user-id': 'bob' });
  }
  await bob.reply();
  await bob.chat('anew', { sessionId, modelServiceId });
  await byId.chat('as before', { sessionId: dialogueId as string, modelServiceId });
  expect(prompts().slice(2)).toEqual([['anew'], ['one', 'one', 'by its id', 'by its id', 'as before']]);
  for (const what of ['one', 'by its id', 'anew']) expect(textOf(await watcher.reply(), 0)).toBe(what);
  await watcher.handled();
  expect(watcher.frames.some(({ content }) => content === 'as before')).toBe(false);
  await away(bob, watcher, byId);
});

describe('cancel', () => {
  it('stops the reply: the provider is let go, what came is kept, every watcher is told', async () => {
    const exchanges: Exchange[] = [];
    const { modelServiceId } = await scripted(async (exchange) => {
      exchanges.push(exchange);
      if (exchange.attempt === 1) return exchange.pieces('half', ' of');
      await exchange.piece('whole');
      return exchange.done();
    });
    const [one, other, sessionId] = [await userOf('bob'), await userOf('bob'), fresh('stopped')];
    one.send({ type: 'chat', message: 'x', sessionId, modelServiceId, requestId: 'r' });
    await one.next({ content: ' of' });
    await other.send({ type: 'subscribe', sessionId }).next({ content: ' of' });
    other.send({ type: 'cancel', sessionId });
    await exchanges[0]!.aborted;
    for (const each of [one, other])
      expect(await each.next({ done: true })).toEqual({
        type: 'stream',
        agentId: 'main',
        content: '',
        done: true,
        sessionId,
        messageId: each.frames[0]!.messageId as string,
        requestId: 'r',
        offset: 7,
        status: 'stopped',
        usage: {
          promptTokens: any_number,
          completionTokens: any_number,
          totalTokens: any_number,
          credits: 0,
        },
      });
    expect((await history(one.frames[0]!)).at(-1)).toMatchObject({ content: 'half of', status: 'stopped' });
    // Nothing is left to stop, and the session goes on.
    const before = other.frames.length;
    await other.send({ type: 'cancel', sessionId }).handled();
    expect(other.frames.slice(before)).toEqual([]);
    expect(textOf(await one.chat('on', { sessionId, modelServiceId }))).toBe('whole');
    await away(one, other);
  });

  it('stops the reply of the connection’s own session when none is named, and lets the next one have its turn', async () => {
    const { modelServiceId } = await scripted(async (exchange) => {
      await exchange.piece(`reply ${exchange.attempt}`);
      if (exchange.attempt > 1) await exchange.done();
    });
    const one = await connect();
    one.send({ type: 'chat', message: 'first', modelServiceId });
    await one.next({ content: 'reply 1' });
    one.send({ type: 'chat', message: 'second', modelServiceId }, { type: 'cancel' });
    expect(await one.reply()).toMatchObject([{ done: true, status: 'stopped' }]);
    expect(await one.reply()).toMatchObject([{ content: 'reply 2' }, { done: true, status: 'finished' }]);
    await one.close();
  });
});

const any_number = expect.any(Number) as unknown;

describe('resume', () => {
  const PIECES = ['a', '😀b', '👩‍🚀', ' 中文 ', 'e\u0301\n', 'end 🎉'];
  const TEXT = PIECES.join('');
  const PLACES = Array.from({ length: TEXT.length + 3 }, (_, offset) => offset);
  /** A place in the middle of a character counts as before it. */
  const from = (offset: number): number =>
    /[\udc00-\udfff]/.test(TEXT[offset] ?? '') ? offset - 1 : Math.min(offset, TEXT.length);
  const check = (offset: number, frames: Frame[]): void => {
    expect([offset, textOf(frames, from(offset))]).toEqual([offset, TEXT.slice(from(offset))]);
    expect(frames.at(-1)).toMatchObject({ content: '', done: true, status: 'finished', offset: TEXT.length });
    expect(frames.map(({ requestId }) => requestId as string)).toEqual(frames.map(() => `at ${offset}`));
  };

  it('at every place gives each character once, while it is written and after', async () => {
    const { opened, open: go } = gate();
    const { modelServiceId } = await scripted(async (exchange) => {
      await exchange.pieces(...PIECES.slice(0, 3));
      await opened;
      await exchange.pieces(...PIECES.slice(3));
      await exchange.done();
    });
    const [one, sessionId] = [await userOf('bob'), fresh('resumed')];
    one.send({ type: 'chat', message: 'x', sessionId, modelServiceId });
    const { messageId } = await one.next({ content: PIECES[2] });
    const ask = (offset: number) => ({
      type: 'resume',
      sessionId,
      messageId,
      offset,
      requestId: `at ${offset}`,
    });
    const during = await Promise.all(PLACES.map(() => userOf('bob')));
    for (const offset of PLACES) await during[offset]!.send(ask(offset)).handled();
    go();
    await one.next({ done: true });
    for (const offset of PLACES) {
      await during[offset]!.next({ done: true });
      check(offset, during[offset]!.frames);
    }
    await away(...during);
    // One after the other on one connection, messageId as a string and the offset left out.
    const after = await connect({ headers: { 'user-id': 'bob' } });
    for (const offset of PLACES) check(offset, await after.send(ask(offset)).reply());
    const { offset: _, ...whole } = { ...ask(0), messageId: String(messageId) };
    check(0, await after.send(whole).reply());
    await away(one, after);
  });

  it('and once the pieces are forgotten, from what is stored', async () => {
    const forgetful = await bootApp({ STREAM_LOG_RETENTION_MS: '1000' });
    upstream.on('forgotten', async (exchange) => {
      await exchange.pieces(...PIECES);
      await exchange.done();
    });
    try {
      const tenant = await forgetful.tenant({ baseUrl: upstream.url, model: 'forgotten' });
      const one = await open(forgetful.url, { key: tenant.apiKey });
      const [{ messageId }] = (await one.chat('x', { sessionId: 's' })) as [Frame];
      const ask = (offset: number) =>
        one.send({ type: 'resume', sessionId: 's', messageId, offset, requestId: `at ${offset}` }).reply();
      await eventually(async () => (await ask(0)).length === 2);
      for (const offset of PLACES) check(offset, await ask(offset));
      await one.close();
    } finally {
      await forgetful.close();
    }
  });

  it('of a failed reply brings what came of it, and the error', async () => {
    const { modelServiceId } = await scripted(async (exchange) => {
      await exchange.pieces('some', 'thing');
      await exchange.chunk({ error: { message: 'broke' } });
    });
    const [one, sessionId] = [await connect(), fresh('failed')];
    const [{ messageId }] = (await one.chat('x', { sessionId, modelServiceId })) as [Frame];
    const again = await one.send({ type: 'resume', sessionId, messageId, offset: 2 }).reply();
    expect(again).toMatchObject([
      { content: 'me', offset: 2 },
      { content: 'thing', offset: 4 },
      { type: 'error', code: 'provider_error' },
    ]);
    await one.close();
  });
});

describe('the event view', () => {
  const think = (exchange: Exchange, text: string) =>
    exchange.chunk({ choices: [{ index: 0, delta: { reasoning_content: text } }] });
  const time = any_number;

  it('tells the same as events: status, think, text, done', async () => {
    const sessionId = fresh('events');
    const { modelServiceId } = await scripted(async (exchange) => {
      await think(exchange, 'Hm, ');
      await one.next({ type: 'think' });
      await think(exchange, 'let me see.');
      await one.next({ type: 'think' });
      await exchange.pieces('Hel', 'lo 👋');
      await exchange.done();
    });
    const [one, plain] = [await connect({ events: true }), await connect()];
    expect([one.protocol, plain.protocol]).toEqual(['agent.events.v1', '']);
    await plain.send({ type: 'subscribe', sessionId }).handled();
    const began = Date.now();
    one.send({ type: 'chat', message: 'x', sessionId, modelServiceId, requestId: 'r' });
    await one.until(() => one.frames.some(({ type }) => type === 'done') || undefined);
    await one.next({ type: 'done' });
    const events = [...one.frames];
    const { taskId } = events[0]!;
    expect(taskId).toMatch(/^\d+$/);
    const event = (type: string, payload: object) => ({
      id: any,
      type,
      agentId: 'main',
      taskId: taskId as string,
      timestamp: time,
      payload,
      sessionId,
      requestId: 'r',
    });
    expect(events).toEqual([
      event('status', { status: 'started' }),
      event('think', { content: 'Hm, ' }),
      event('think', { content: 'let me see.' }),
      event('text', { content: 'Hel' }),
      event('text', { content: 'lo 👋' }),
      event('done', {
        status: 'finished',
        usage: { promptTokens: 7, completionTokens: 5, totalTokens: 12, credits: 0 },
      }),
    ]);
    expect(new Set(events.map(({ id }) => id as string)).size).toBe(events.length);
    for (const { timestamp } of events) expect(Math.abs((timestamp as number) - began)).toBeLessThan(10_000);
    // The plain protocol has no thoughts.
    const frames = await plain.reply();
    expect(frames.map(({ type, content }) => [type, content] as unknown[])).toEqual([
      ['stream', 'Hel'],
      ['stream', 'lo 👋'],
      ['stream', ''],
    ]);
    expect(frames[0]).toMatchObject({ messageId: taskId as string });
    // What happened can be told again, under the same ids.
    const again = await one
      .send({ type: 'resume', sessionId, messageId: taskId as string, requestId: 'r' })
      .reply();
    const told = ({ timestamp: _, ...rest }: Frame): Frame => rest;
    expect(again.map(told)).toEqual(events.map(told));
    await away(one, plain);
  });

  it('tells what was thought between pieces where it was, to who resumes at any place', async () => {
    const [one, sessionId] = [await connect({ events: true }), fresh('thought')];
    const { modelServiceId } = await scripted(async (exchange) => {
      // What comes in one read is told as thoughts first, then text: one at a time.
      for (const [index, text] of ['1', 'ab', '2', 'cd', '3'].entries()) {
        await (index % 2 === 0 ? think(exchange, text) : exchange.piece(text));
        await one.until(() => summary(one.frames).length > index || undefined);
      }
      await exchange.done();
    });
    const summary = (events: Frame[]) =>
      events
        .filter(({ type }) => type === 'think' || type === 'text')
        .map(({ payload }) => (payload as Frame).content as string);
    const [{ taskId }, ...rest] = (await one.chat('x', { sessionId, modelServiceId })) as [Frame, ...Frame[]];
    expect(summary(rest)).toEqual(['1', 'ab', '2', 'cd', '3']);
    const expected = [
      ['1', 'ab', '2', 'cd', '3'],
      ['b', '2', 'cd', '3'],
      ['2', 'cd', '3'],
      ['d', '3'],
      ['3'],
      [],
    ];
    for (const [offset, told] of expected.entries()) {
      const events = await one
        .send({ type: 'resume', sessionId, messageId: taskId as string, offset })
        .reply();
      expect([offset, summary(events)]).toEqual([offset, told]);
    }
    await one.close();
  });

  it('`stream: false` has the text as one; an error ends a task, or stands alone', async () => {
    const { modelServiceId } = await scripted(async (exchange) => {
      if (exchange.attempt === 1) {
        await exchange.pieces('a', 'b');
        return exchange.done();
      }
      return exchange.fail(400, '{"error":{"message":"no"}}');
    });
    const [one, sessionId] = [await connect({ events: true }), fresh('events')];
    const chat = { sessionId, modelServiceId };
    const whole = await one.chat('x', { ...chat, stream: false });
    expect(whole.map(({ type, payload }) => [type, payload] as unknown[])).toMatchObject([
      ['status', { status: 'started' }],
      ['text', { content: 'ab' }],
      ['done', { status: 'finished' }],
    ]);
    expect(await one.chat('x', { ...chat, requestId: 'r' })).toMatchObject([
      { type: 'status' },
      { type: 'error', requestId: 'r', taskId: any, payload: { message: any, code: 'provider_error' } },
    ]);
    expect(await one.fails({ type: 'chat', agentId: 'nobody', message: 'x', sessionId })).toEqual({
      id: any,
      type: 'error',
      agentId: 'nobody',
      taskId: null,
      timestamp: time,
      payload: { code: 'agent_not_found', message: any },
      sessionId,
    });
    await one.close();
  });

  it('tells of subscribing, cancelling and pings as status; a greeting is text', async () => {
    const { modelServiceId } = await scripted(async (exchange) => exchange.piece('half'));
    const slug = await agent('event-host', { greeting: 'Come in.' });
    const one = await connect({ events: true, path: `/api/v1/ws?agentId=${slug}` });
    expect(await one.next()).toMatchObject({ type: 'text', agentId: slug, payload: { content: 'Come in.' } });
    const [status, sessionId] = [
      (name: string) => ({ type: 'status', payload: { status: name } }),
      fresh('status'),
    ];
    const about = { agentId: 'main', sessionId };
    expect(await one.send({ type: 'subscribe', requestId: 's', ...about }).next()).toMatchObject({
      ...status('subscribed'),
      ...about,
      requestId: 's',
    });
    one.send({ type: 'chat', message: 'x', modelServiceId, ...about });
    await one.next({ type: 'text' });
    one.send({ type: 'cancel', requestId: 'c', ...about });
    const last = [await one.next(), await one.next()];
    expect(last.sort((a, b) => String(a.type).localeCompare(String(b.type)))).toMatchObject([
      { type: 'done', payload: { status: 'stopped' } },
      { ...status('cancelled'), ...about, requestId: 'c' },
    ]);
    expect(await one.send({ type: 'ping', requestId: 'p' }).next()).toMatchObject({
      ...status('pong'),
      requestId: 'p',
    });
    await one.close();
  });
});

describe('a connection', () => {
  it('is pinged, and dropped when nothing comes of it', async () => {
    const quick = await bootApp({ IM_HEARTBEAT_SECONDS: '1' });
    try {
      const tenant = await quick.tenant();
      const [dead, talking, answering] = await Promise.all([
        open(quick.url, { key: tenant.apiKey, autoPong: false }),
        open(quick.url, { key: tenant.apiKey, autoPong: false }),
        open(quick.url, { key: tenant.apiKey }),
      ]);
      const talk = setInterval(() => talking.send({ type: 'ping' }), 200);
      expect((await dead.closed).code).toBe(1006);
      expect(dead.pings).toBe(1);
      await Promise.all([talking.pinged(2), answering.pinged(2)]);
      clearInterval(talk);
      expect(await answering.send({ type: 'ping' }).next()).toEqual({ type: 'pong' });
      await away(talking, answering);
    } finally {
      await quick.close();
    }
  });

  it('ends with its token', async () => {
    const quick = await bootApp({ IM_HEARTBEAT_SECONDS: '1' });
    try {
      const tenant = await quick.tenant();
      const now = Date.now();
      const token = await quick.app.nest.get(UserTokens).sign({
        tenantId: tenant.id as TenantId,
        userId: 'bob',
        client: 'pc',
        keyId: tenant.keyId as ApiKeyId,
        issuedAt: now,
        expiresAt: now + 2_000,
      });
      const one = await open(quick.url, { token });
      expect((await one.closed).code).toBe(4401);
      expect((await refusal(quick.url, { token })).status).toBe(401);
    } finally {
      await quick.close();
    }
  });

  it('ends within a second when its key is revoked; those of other keys go on', async () => {
    const tenant = await app.tenant({ baseUrl: upstream.url });
    const keys = `/api/admin/tenants/${tenant.id}/api-keys`;
    const root = { 'x-api-key': app.rootKey };
    const { key, id } = (
      await ask(app.url, 'POST', keys, { name: 'second', scopes: ['dialogue', 'im'] }, root)
    ).body as { key: string; id: string };
    const token = await imToken(app.url, { apiKey: key }, 'bob');
    const [first, second, user] = [
      await connect({}, tenant),
      await open(app.url, { key }),
      await open(app.url, { token }),
    ];
    await ask(app.url, 'DELETE', `${keys}/${id}`, undefined, root);
    const revoked = Date.now();
    for (const one of [second, user]) expect((await one.closed).code).toBe(4401);
    expect(Date.now() - revoked).toBeLessThan(1_500);
    expect((await refusal(app.url, { key })).status).toBe(401);
    expect((await refusal(app.url, { token })).status).toBe(401);
    expect(textOf(await first.chat('still here'))).toBe('still here');
    await first.close();
  });

  it('takes with it what it still had to say, when its key is revoked', async () => {
    const { opened, open: go } = gate();
    upstream.on('revoked', async (exchange) => {
      await exchange.piece('well …');
      await opened;
      await exchange.done();
    });
    const tenant = await app.tenant({ baseUrl: upstream.url, model: 'revoked' });
    const keys = `/api/admin/tenants/${tenant.id}/api-keys`;
    const root = { 'x-api-key': app.rootKey };
    const { body } = await ask(app.url, 'POST', keys, { name: 'second', scopes: ['dialogue'] }, root);
    const [own, sessionId] = [await connect({ headers: { 'user-id': 'bob' } }, tenant), fresh('revoked')];
    const revoked = await open(app.url, { key: body.key as string, headers: { 'user-id': 'bob' } });
    await own.send({ type: 'subscribe', sessionId }).handled();
    const chat = (message: string) => ({ type: 'chat', sessionId, message });
    revoked.send(chat('said'));
    await own.next({ content: 'well …' });
    await revoked.send(chat('waits'), chat('waits, too')).handled();
    await ask(app.url, 'DELETE', `${keys}/${body.id as string}`, undefined, root);
    await revoked.closed;
    await own.send(chat('next')).handled();
    go();
    await own.next({ done: true });
    await own.next({ done: true });
    const said = upstream.seen('revoked').map((one) => one.body.messages.at(-1).content as string);
    expect(said).toEqual(['said', 'next']);
    await own.close();
  });

  it('ends when its user’s tokens are revoked; a server’s for that user goes on', async () => {
    const [one, eve, server] = [
      await userOf('revoked'),
      await userOf('eve'),
      await connect({ headers: { 'user-id': 'revoked' } }),
    ];
    await ask(app.url, 'DELETE', '/api/v1/im/users/revoked/sessions', undefined, {
      'x-api-key': acme.apiKey,
    });
    expect((await one.closed).code).toBe(4401);
    for (const other of [eve, server])
      expect(await other.send({ type: 'ping' }).next()).toEqual({ type: 'pong' });
    await away(eve, server);
  });

  it('ends within a second when its tenant is suspended', async () => {
    const tenant = await app.tenant({ baseUrl: upstream.url });
    const [one, user, stranger] = [
      await connect({}, tenant),
      await userOf('bob', {}, tenant),
      await connect({}, rival),
    ];
    await change(app, tenant, { status: 'suspended' });
    const suspended = Date.now();
    for (const each of [one, user]) expect((await each.closed).code).toBe(4403);
    expect(Date.now() - suspended).toBeLessThan(1_500);
    await eventually(async () => {
      const back = new Channel(app.url, { key: tenant.apiKey });
      return back.refused.then(({ status }) => status === 401).catch(() => back.close().then(() => false));
    });
    expect(await stranger.send({ type: 'ping' }).next()).toEqual({ type: 'pong' });
    await stranger.close();
  });

  it('ends with 1012 when the server stops, after its reply has ended as interrupted', async () => {
    const stopping = await bootApp();
    upstream.on('endless', async (exchange) => exchange.piece('so far'));
    const tenant = await stopping.tenant({ baseUrl: upstream.url, model: 'endless' });
    const one = await open(stopping.url, { key: tenant.apiKey });
    one.send({ type: 'chat', message: 'x' });
    await one.next({ content: 'so far' });
    await stopping.close();
    expect((await one.closed).code).toBe(1012);
    expect(one.frames.at(-1)).toMatchObject({ done: true, status: 'interrupted' });
  });
});
