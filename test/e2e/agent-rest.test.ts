import { UserTokens } from '../../src/tenancy';
import {
  ask,
  bootApp,
  eventually,
  ROOT_KEY,
  says,
  type Answer,
  type TestApp,
  type TestTenant,
} from '../support/app';
import { query } from '../support/database';
import { away, change, connect, fresh, imToken, Peer, refusal, tenantWith, type Frame } from '../support/im';
import { gate, Upstream } from '../support/upstream';

let upstream: Upstream;
let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;

beforeAll(async () => {
  upstream = await Upstream.start();
  app = await bootApp({ IM_HEARTBEAT_SECONDS: '1', PRIVATE_PROVIDER_ADDRESSES: 'allow' });
  [acme, rival] = await Promise.all([app.tenant({ baseUrl: upstream.url }), app.tenant()]);
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

const CHANNEL = '/api/v1/ws';
const ID = expect.stringMatching(/^[1-9]\d+$/) as string;
const TIME = expect.any(Number) as number;
const failure = (about: RegExp) => ({ error: expect.stringMatching(about) as string });

const headersOf = ({ apiKey }: { readonly apiKey: string }, user?: string): Record<string, string> => ({
  'x-api-key': apiKey,
  ...(user !== undefined && { 'user-id': Buffer.from(user).toString('latin1') }),
});
const send = (
  method: string,
  path: string,
  body?: unknown,
  tenant: { readonly apiKey: string } = acme,
): Promise<Answer> => ask(app.url, method, path, body, headersOf(tenant));
const as = (user: string, path: string, tenant = acme): Promise<Answer> =>
  ask(app.url, 'GET', path, undefined, headersOf(tenant, user));

/** A key of the tenant's with these scopes alone. */
async function keyWith(tenant: TestTenant, ...scopes: string[]): Promise<{ id: string; apiKey: string }> {
  const { body } = await tenant.post(`/api/admin/tenants/${tenant.id}/api-keys`, { name: 'k', scopes });
  return { id: body.id as string, apiKey: body.key as string };
}
const drop = (tenant: TestTenant, keyId: string): Promise<Answer> =>
  ask(app.url, 'DELETE', `/api/admin/tenants/${tenant.id}/api-keys/${keyId}`, undefined, {
    'x-api-key': ROOT_KEY,
  });

const token = async (
  userId: string | number,
  more: object = {},
  by: { readonly apiKey: string } = acme,
): Promise<string> => {
  const answer = await send('POST', '/api/v1/tokens', { userId, ...more }, by);
  if (answer.status !== 200) throw new Error(answer.text);
  return answer.body.token as string;
};
const byToken = (of: string, path = CHANNEL): Promise<Peer> => connect(app.url, of, { path });
const byKey = (user: string, tenant: { readonly apiKey: string } = acme): Promise<Peer> =>
  new Peer(app.url, null, { path: CHANNEL, headers: headersOf(tenant, user) }).opened;

/** Says something and waits for the whole answer. */
async function chat(peer: Peer, sessionId: string, message: string, more: object = {}): Promise<Frame> {
  peer.send({ type: 'chat', sessionId, message, ...more });
  return peer.next((frame) => frame.type === 'error' || frame.done === true);
}

interface Page {
  data: Frame[];
  total: number;
  page: number;
  size: number;
}
const sessions = async (user: string, more = '', tenant = acme): Promise<Frame[]> =>
  ((await as(user, `/api/v1/sessions${more}`, tenant)).body as Page).data;
const history = (user: string, name: string, more = '', tenant = acme): Promise<Answer> =>
  as(user, `/api/v1/sessions/${encodeURIComponent(name)}/messages${more}`, tenant);
const clear = (user: string, sessionKey: unknown, more: object = {}, tenant = acme): Promise<Answer> =>
  ask(app.url, 'POST', '/api/v1/sessions/clear', { sessionKey, ...more }, headersOf(tenant, user));
const contents = ({ body }: Answer): unknown[] => (body as Page).data.map(({ content }) => content);

let slugs = 0;
const freshSlug = (): string => `agent-${(slugs += 1)}`;
const make = async (input: object = {}, tenant = acme): Promise<Frame> => {
  const answer = await send('POST', '/api/v1/agents', { id: freshSlug(), name: 'Agent', ...input }, tenant);
  if (answer.status !== 201) throw new Error(answer.text);
  return answer.body as Frame;
};

describe('a channel token', () => {
  it.each<[string | number, string]>([
    ['bob', 'bob'],
    [71, '71'],
    [-7, '-7'],
    ['Зоя 🐱', 'Зоя 🐱'],
  ])('for %p opens the agent channel in the name of %p', async (userId, user) => {
    const asked = Date.now();
    const answer = await send('POST', '/api/v1/tokens', { userId, unknown: 1 });
    expect([answer.status, answer.body]).toEqual([
      200,
      { token: expect.any(String) as string, expiresAt: TIME },
    ]);
    expect(Math.abs((answer.body.expiresAt as number) - asked - 900_000)).toBeLessThan(3_000);
    const peer = await byToken(answer.body.token as string);
    expect(await chat(peer, 'by token', 'hello')).toMatchObject({ status: 'finished' });
    await peer.close();
    expect(await sessions(user)).toMatchObject([{ id: 'by token', userId: user }]);
    expect(await sessions(user, '', rival)).toEqual([]);
  });

  it('opens it as Bearer, on an agent of the path, and after a second slash', async () => {
    const { id } = await make({ greeting: 'welcome' });
    const { body } = await send('POST', '//api//v1/tokens', { userId: 'slashes' });
    const of = body.token as string;
    const bearer = await new Peer(app.url, null, {
      path: CHANNEL,
      headers: { authorization: `Bearer ${of}` },
    }).opened;
    const named = await byToken(of, `/api/v1/agents/${id}/ws`);
    expect(await named.next({ type: 'message' })).toMatchObject({ agentId: id, content: 'welcome' });
    await away(bearer, named);
  });

  it('lives for as long as is asked, 60 s to a day', async () => {
    for (const expiresIn of [60, 3_600, 86_400]) {
      const { body } = await send('POST', '/api/v1/tokens', { userId: 'u', expiresIn });
      const left = (body.expiresAt as number) - Date.now();
      expect([expiresIn, Math.abs(left - expiresIn * 1_000) < 3_000]).toEqual([expiresIn, true]);
    }
    for (const expiresIn of [null, undefined])
      expect((await send('POST', '/api/v1/tokens', { userId: 'u', expiresIn })).status).toBe(200);
  });

  it('never lives longer than the tokens of the installation', async () => {
    const brief = await bootApp({ IM_TOKEN_TTL_SECONDS: '120' });
    try {
      const tenant = await brief.tenant();
      const { body } = await tenant.post('/api/v1/tokens', { userId: 'u', expiresIn: 86_400 });
      expect((body.expiresAt as number) - Date.now()).toBeLessThanOrEqual(120_000);
    } finally {
      await brief.close();
    }
  });

  it('does not open instant messaging, while an IM token opens both', async () => {
    const of = await token('both');
    for (const refused of [
      refusal(app.url, of),
      refusal(app.url, null, { headers: { authorization: `Bearer ${of}` } }),
    ])
      expect(await refused).toMatchObject({ status: 401, body: { code: 'UNAUTHENTICATED' } });
    // A device kind says nothing about what a token opens.
    const im = await imToken(app.url, acme, 'both', { client: 'channel' });
    await away(await connect(app.url, im, { rich: true }), await byToken(im));
  });

  it('opens nothing over HTTP', async () => {
    const of = await token('http');
    for (const headers of <Record<string, string>[]>[{ 'x-api-key': of }, { authorization: `Bearer ${of}` }])
      expect((await ask(app.url, 'GET', '/api/v1/agents', undefined, headers)).status).toBe(401);
  });

  it.each<[string, object]>([
    ['userId', {}],
    ['userId', { userId: '' }],
    ['userId', { userId: null }],
    ['userId', { userId: 1.5 }],
    ['userId', { userId: true }],
    ['userId', { userId: ['u'] }],
    ['userId', { userId: 'x'.repeat(129) }],
    ['userId', { userId: 'a\u0000b' }],
    ['userId', { userId: 'a\nb' }],
    ['userId', { userId: '\ud800' }],
    ['expiresIn', { userId: 'u', expiresIn: 59 }],
    ['expiresIn', { userId: 'u', expiresIn: 86_401 }],
    ['expiresIn', { userId: 'u', expiresIn: 90.5 }],
    ['expiresIn', { userId: 'u', expiresIn: '900' }],
    ['expiresIn', { userId: 'u', expiresIn: -1 }],
  ])('is refused with 400 that names %s: case %#', async (field, input) => {
    const answer = await send('POST', '/api/v1/tokens', input);
    expect([answer.status, answer.body]).toEqual([400, failure(new RegExp(`^${field}\\b`))]);
  });

  it('is refused for what is no JSON object, too large, or of another kind', async () => {
    for (const [status, body, headers] of [
      [400, '{"userId":', {}],
      [400, '[]', {}],
      [400, 'null', {}],
      [413, JSON.stringify({ userId: 'x'.repeat(1_100_000) }), {}],
      [415, 'userId', { 'content-type': 'text/csv' }],
    ] as const) {
      const answer = await ask(app.url, 'POST', '/api/v1/tokens', body, { ...headersOf(acme), ...headers });
      expect([answer.status, answer.body]).toEqual([status, failure(/./)]);
    }
  });

  it('needs a key with the scope `dialogue`, and the tenant with the root key', async () => {
    const scopeless = await keyWith(acme, 'im', 'admin');
    for (const [status, headers] of [
      [401, {}],
      [401, { 'x-api-key': 'pk_1_x' }],
      [401, { ...headersOf(acme), 'tenant-id': rival.id }],
      [403, headersOf(scopeless)],
      [400, { 'x-api-key': ROOT_KEY }],
      [200, { 'x-api-key': ROOT_KEY, 'tenant-id': acme.id }],
      [200, { authorization: `Bearer ${acme.apiKey}` }],
    ] as const) {
      const answer = await ask(app.url, 'POST', '/api/v1/tokens', { userId: 'u' }, { ...headers });
      expect([answer.status, answer.body]).toEqual([
        status,
        status === 200 ? expect.objectContaining({ expiresAt: TIME }) : failure(/\w/),
      ]);
    }
    const suspended = await tenantWith(app, { status: 'suspended' });
    for (const headers of [headersOf(suspended), { 'x-api-key': ROOT_KEY, 'tenant-id': suspended.id }])
      expect(await ask(app.url, 'POST', '/api/v1/tokens', { userId: 'u' }, headers)).toMatchObject({
        status: 401,
        body: failure(/suspended/),
      });
  });

  it('is refused past as many a minute and key as the tenant says', async () => {
    const tenant = await tenantWith(app, { limits: { imTokensPerMinute: 3 } });
    const another = await keyWith(tenant, 'dialogue');
    const answers = await Promise.all(
      Array.from({ length: 5 }, () => send('POST', '/api/v1/tokens', { userId: 'u' }, tenant)),
    );
    const refused = answers.filter(({ status }) => status === 429);
    expect(answers.length - refused.length).toBeGreaterThanOrEqual(3);
    expect(refused.length).toBeGreaterThanOrEqual(1);
    expect(refused[0]!.body).toEqual(failure(/\w/));
    expect(Number(refused[0]!.headers['retry-after'])).toBeGreaterThanOrEqual(1);
    for (const other of [another, rival])
      expect((await send('POST', '/api/v1/tokens', { userId: 'u' }, other)).status).toBe(200);
  });

  it('that expires while connected ends the connection with 4401, and lets nobody in any more', async () => {
    const tokens = new UserTokens('secret-of-the-tests-0123456789abcdef');
    const now = Date.now();
    const claims = { tenantId: acme.id as never, userId: 'brief', client: 'channel' };
    const of = await tokens.sign(
      { ...claims, keyId: acme.keyId as never, issuedAt: now, expiresAt: now + 1_000 },
      'channel',
    );
    const peer = await byToken(of);
    expect(await peer.closed).toMatchObject({
      code: 4401,
      reason: expect.stringMatching(/expired/) as string,
    });
    expect(await refusal(app.url, of, { path: CHANNEL })).toMatchObject({
      status: 401,
      body: { code: 'UNAUTHENTICATED' },
    });
  });

  it('falls with a revocation of its user or its device kind, open connections too; what comes after works', async () => {
    const revoke = (user: string, more = '') => send('DELETE', `/api/v1/im/users/${user}/sessions${more}`);
    for (const [user, more] of [
      ['gone', ''],
      ['left', '?client=channel'],
    ] as const) {
      const [mine, foreign, other] = [await token(user), await token(user, {}, rival), await token('stays')];
      const [peer, kept, neighbour] = await Promise.all([mine, foreign, other].map((of) => byToken(of)));
      const keyed = await byKey(user);
      await revoke(user, '?client=pc');
      await peer!.ping();
      await revoke(user, more);
      const revokedAt = Date.now();
      expect((await peer!.closed).code).toBe(4401);
      expect(Date.now() - revokedAt).toBeLessThan(1_000);
      expect((await refusal(app.url, mine, { path: CHANNEL })).status).toBe(401);
      const again = await byToken(await token(user));
      for (const open of [kept!, neighbour!, keyed, again]) await open.ping();
      await away(kept!, neighbour!, keyed, again);
    }
  });

  it('falls with its key, open connections too; other keys’ tokens go on', async () => {
    const [one, two] = [await keyWith(acme, 'dialogue'), await keyWith(acme, 'dialogue')];
    const [lost, kept] = [await token('k', {}, one), await token('k', {}, two)];
    const [peer, other] = [await byToken(lost), await byToken(kept)];
    await drop(acme, one.id);
    expect((await peer.closed).code).toBe(4401);
    expect((await refusal(app.url, lost, { path: CHANNEL })).status).toBe(401);
    await other.ping();
    await other.close();
  });

  it('is worth nothing while its tenant is suspended', async () => {
    const tenant = await app.tenant();
    const of = await token('s', {}, tenant);
    const peer = await byToken(of);
    await change(app, tenant, { status: 'suspended' });
    expect((await peer.closed).code).toBe(4403);
    const isRefused = (): Promise<boolean> =>
      refusal(app.url, of, { path: CHANNEL }).then(
        ({ status }) => status === 401,
        () => false,
      );
    await eventually(isRefused, 1_000);
  });

  it("reaches its own tenant's agents alone, and its own user's dialogues", async () => {
    const { id } = await make();
    const foreign = await token('mallory', {}, rival);
    expect(await refusal(app.url, foreign, { path: `/api/v1/agents/${id}/ws` })).toMatchObject({
      status: 404,
    });
    expect(await refusal(app.url, foreign, { path: CHANNEL, headers: headersOf(acme) })).toMatchObject({
      status: 401,
    });
    const owner = await byToken(await token('owner'));
    await chat(owner, 'private', 'secret words', { agentId: 'main' });
    const [{ dialogueId } = {}] = await sessions('owner');
    for (const [of, agentId, code] of [
      [await token('mallory'), 'main', 'session_not_found'],
      [foreign, 'main', 'session_not_found'],
      [foreign, id, 'agent_not_found'],
    ] as const) {
      const peer = await byToken(of);
      const frame = { type: 'cancel', agentId, sessionId: dialogueId as string };
      expect(await peer.fails(frame)).toMatchObject({ code });
      await peer.close();
    }
    await owner.close();
  });
});

describe('agents', () => {
  it('are made, published at once, and are assistants on the admin wire', async () => {
    const id = freshSlug();
    const input = {
      id,
      name: '客服 🐱',
      prompt: 'You answer.',
      greeting: 'Hi!',
      description: 'd',
      avatar: 'https://example.com/a.png',
      suggestedQuestions: ['What?', 'Why?'],
      parameters: { temperature: 0.5, nested: { stop: ['x'] } },
      modelServiceId: acme.serviceId,
      somethingElse: true,
    };
    const made = await send('POST', '/api/v1/agents', input);
    expect(made.status).toBe(201);
    const { somethingElse, ...kept } = input;
    expect(somethingElse).toBe(true);
    expect(made.body).toEqual({
      ...kept,
      assistantId: ID,
      versionId: ID,
      published: true,
      createdAt: TIME,
      updatedAt: TIME,
    });
    expect(Math.abs(Date.now() - (made.body.createdAt as number))).toBeLessThan(10_000);
    expect((await send('GET', `/api/v1/agents/${id}`)).body).toEqual(made.body);
    const { assistantId, versionId } = made.body as Record<string, string>;
    expect((await acme.get(`/api/admin/assistants/${assistantId}`)).body).toMatchObject({
      slug: id,
      publishedVersionId: versionId,
    });
    const { body } = await acme.get(`/api/admin/assistants/${assistantId}/versions`);
    expect(body.data).toMatchObject([
      { number: 1, prompt: 'You answer.', publishedAt: expect.any(String) as string },
    ]);
    const peer = await byKey('maker');
    expect(await chat(peer, fresh('s'), 'hello', { agentId: id })).toMatchObject({ agentId: id, done: true });
    expect(upstream.seen('echo').at(-1)!.body).toMatchObject({
      temperature: 0.5,
      messages: [
        { role: 'system', content: 'You answer.' },
        { role: 'user', content: 'hello' },
      ],
    });
    await peer.close();
  });

  it('need an id and a name alone: the rest has defaults, the first text service among them', async () => {
    const tenant = await app.tenant();
    const service = (orderNum: number, type = 0) =>
      tenant.post('/api/admin/model-services', {
        name: `s${orderNum}`,
        model: 'echo',
        providerId: tenant.providerId,
        orderNum,
        type,
      });
    await service(-9, 1);
    const first = (await service(-5)).body.id as string;
    const nulls = { prompt: null, greeting: null, modelServiceId: null, parameters: null, avatar: null };
    for (const more of [{}, nulls]) {
      expect(await make(more, tenant)).toEqual({
        id: expect.stringMatching(/^agent-/) as string,
        assistantId: ID,
        name: 'Agent',
        description: '',
        avatar: '',
        prompt: '',
        greeting: '',
        suggestedQuestions: [],
        modelServiceId: first,
        parameters: {},
        published: true,
        versionId: ID,
        createdAt: TIME,
        updatedAt: TIME,
      });
    }
  });

  it('without any text service are refused', async () => {
    const tenant = await app.tenant();
    await query(app.databaseUrl, 'delete from model_services where tenant_id = $1', [tenant.id]);
    const answer = await send('POST', '/api/v1/agents', { id: 'x', name: 'X' }, tenant);
    expect([answer.status, answer.body]).toEqual([400, failure(/^modelServiceId/)]);
    expect((await send('GET', '/api/v1/agents/x', undefined, tenant)).status).toBe(404);
  });

  it('with a taken id are 409, which changes nothing; a rival may have the same id', async () => {
    const { id, ...made } = await make({ prompt: 'first' });
    const again = await send('POST', '/api/v1/agents', { id, name: 'Again' });
    expect([again.status, again.body]).toEqual([409, failure(/^id: is already taken/)]);
    expect((await send('GET', `/api/v1/agents/${id}`)).body).toEqual({ id, ...made });
    const other = await send('POST', '/api/v1/agents', { id, name: 'Rival' }, rival);
    expect([other.status, other.body.id]).toEqual([201, id]);
    const slug = freshSlug();
    const race = await Promise.all(
      Array.from({ length: 4 }, () => send('POST', '/api/v1/agents', { id: slug, name: 'Race' })),
    );
    expect(race.map(({ status }) => status).sort()).toEqual([201, 409, 409, 409]);
  });

  it.each<[string, object]>([
    ['id', { id: undefined }],
    ['id', { id: '' }],
    ['id', { id: 7 }],
    ['id', { id: 'Main' }],
    ['id', { id: '-a' }],
    ['id', { id: 'a b' }],
    ['id', { id: 'a/b' }],
    ['id', { id: '客服' }],
    ['id', { id: 'a'.repeat(64) }],
    ['name', { name: undefined }],
    ['name', { name: '' }],
    ['name', { name: 'x'.repeat(201) }],
    ['name', { name: 'a\u0000b' }],
    ['prompt', { prompt: 7 }],
    ['prompt', { prompt: 'x'.repeat(200_001) }],
    ['greeting', { greeting: 'x'.repeat(4_001) }],
    ['greeting', { greeting: '\u0000' }],
    ['description', { description: 'x'.repeat(2_001) }],
    ['avatar', { avatar: {} }],
    ['suggestedQuestions', { suggestedQuestions: 'why' }],
    ['suggestedQuestions', { suggestedQuestions: Array.from({ length: 21 }, () => 'x') }],
    ['suggestedQuestions', { suggestedQuestions: [7] }],
    ['suggestedQuestions', { suggestedQuestions: ['a\u0000'] }],
    ['parameters', { parameters: [] }],
    ['parameters', { parameters: { a: '\u0000' } }],
    ['parameters', { parameters: { a: 'x'.repeat(20_000) } }],
    ['modelServiceId', { modelServiceId: 'x' }],
    ['modelServiceId', { modelServiceId: '' }],
    ['modelServiceId', { modelServiceId: '99999' }],
  ])('with a bad %s are 400 that names it: case %#', async (field, wrong) => {
    const id = freshSlug();
    const answer = await send('POST', '/api/v1/agents', { id, name: 'Agent', ...wrong });
    expect([answer.status, answer.body]).toEqual([400, failure(new RegExp(`^(each value in )?${field}\\b`))]);
    expect((await send('GET', `/api/v1/agents/${id}`)).status).toBe(404);
    if ('id' in wrong) return;
    const { id: there, ...before } = await make();
    if (wrong && Object.values(wrong)[0] !== undefined) {
      const put = await send('PUT', `/api/v1/agents/${there}`, { prompt: 'new', ...wrong });
      expect([put.status, put.body]).toEqual([400, failure(new RegExp(`^(each value in )?${field}\\b`))]);
    }
    expect((await send('GET', `/api/v1/agents/${there}`)).body).toEqual({ id: there, ...before });
  });

  it("can't be given a rival's model service, nor one that is not for text", async () => {
    const image = await acme.post('/api/admin/model-services', {
      name: 'image',
      model: 'i',
      providerId: acme.providerId,
      type: 1,
    });
    const { id } = await make();
    for (const modelServiceId of [rival.serviceId, image.body.id as string]) {
      const made = await send('POST', '/api/v1/agents', { id: freshSlug(), name: 'X', modelServiceId });
      const put = await send('PUT', `/api/v1/agents/${id}`, { name: 'X', modelServiceId });
      for (const { status, body } of [made, put])
        expect([status, body]).toEqual([400, failure(/^modelServiceId/)]);
    }
    expect((await send('GET', `/api/v1/agents/${id}`)).body).toMatchObject({ name: 'Agent' });
  });

  it('change in what is given: the face on the assistant, the rest as a version that is published at once', async () => {
    const { id, ...before } = await make({ prompt: 'one', greeting: 'hello', parameters: { top_p: 0.5 } });
    const put = (body?: unknown) => send('PUT', `/api/v1/agents/${id}`, body);
    const versions = async () =>
      (await acme.get(`/api/admin/assistants/${before.assistantId}/versions`)).body.data as Frame[];

    const face = await put({ name: 'Renamed', description: '', avatar: 'a' });
    expect([face.status, face.body]).toEqual([
      200,
      { ...before, id, name: 'Renamed', avatar: 'a', updatedAt: TIME },
    ]);
    expect(await versions()).toHaveLength(1);

    const prompt = await put({ prompt: 'two' });
    expect(prompt.body).toEqual({
      ...(face.body as object),
      prompt: 'two',
      versionId: ID,
      updatedAt: TIME,
    });
    expect(prompt.body.versionId).not.toBe(before.versionId);
    expect(prompt.body.updatedAt).toBeGreaterThanOrEqual(face.body.updatedAt as number);
    expect((await put({ greeting: '', suggestedQuestions: ['?'], parameters: {} })).body).toMatchObject({
      prompt: 'two',
      greeting: '',
      suggestedQuestions: ['?'],
      parameters: {},
    });
    expect((await versions()).map(({ number, prompt: text }) => [number, text])).toEqual([
      [1, 'one'],
      [2, 'two'],
      [3, 'two'],
    ]);
    expect((await send('GET', '/api/v1/agents?size=200')).body.data).toContainEqual(
      (await send('GET', `/api/v1/agents/${id}`)).body,
    );
  });

  it('stay as they are when nothing is given, and when a record that was read is sent back', async () => {
    const { id, ...made } = await make({ prompt: 'p', parameters: { a: 1, b: 2 } });
    for (const body of [undefined, {}, { id: null, prompt: null, name: null }, { other: 1 }]) {
      const answer = await send('PUT', `/api/v1/agents/${id}`, body);
      expect([answer.status, answer.body]).toEqual([200, { id, ...made }]);
    }
    const back = await send('PUT', `/api/v1/agents/${id}`, { id, ...made });
    expect(back.body).toEqual({ id, ...made, updatedAt: TIME });
    const renamed = await send('PUT', `/api/v1/agents/${id}`, { id: freshSlug() });
    expect([renamed.status, renamed.body]).toEqual([400, failure(/^id: /)]);
    for (const body of ['[]', 'null', '7', '{"name":']) {
      const { status, body: told } = await send('PUT', `/api/v1/agents/${id}`, body);
      expect([body, status]).toEqual([body, body === 'null' ? expect.any(Number) : 400]);
      if (status === 400) expect(told).toEqual(failure(/./));
    }
    expect((await send('GET', `/api/v1/agents/${id}`)).body.versionId).toBe(made.versionId);
  });

  it('lose no change of two at once', async () => {
    const { id, assistantId } = await make({ prompt: '', greeting: '' });
    const put = (body: object) => send('PUT', `/api/v1/agents/${id}`, body);
    const changes = [
      { prompt: 'p' },
      { greeting: 'g' },
      { suggestedQuestions: ['q'] },
      { parameters: { seed: 1 } },
    ];
    expect((await Promise.all(changes.map(put))).map(({ status }) => status)).toEqual([200, 200, 200, 200]);
    expect((await send('GET', `/api/v1/agents/${id}`)).body).toMatchObject(Object.assign({}, ...changes));
    const { body } = await acme.get(`/api/admin/assistants/${assistantId}/versions`);
    expect(body.data).toHaveLength(5);
  });

  it('keep what only the admin wire sets: tools and the context policy', async () => {
    const { id, assistantId } = await make();
    const source = {
      type: 'mcp',
      name: 'tools',
      url: 'http://127.0.0.1:9/mcp',
      headers: { authorization: 'Bearer very-secret-tool' },
    };
    const versions = `/api/admin/assistants/${assistantId}/versions`;
    const version = await acme.post(versions, {
      modelServiceId: acme.serviceId,
      contextPolicy: { keep: 3 },
      tools: [source],
    });
    expect(version.status).toBe(201);
    await acme.post(`${versions}/${version.body.id}/publish`);
    const changed = await send('PUT', `/api/v1/agents/${id}`, { prompt: 'with tools' });
    expect(changed.body).toMatchObject({ prompt: 'with tools' });
    const stored = await query<{ tools: unknown; context_policy: unknown }>(
      app.databaseUrl,
      'select tools, context_policy from assistant_versions where id = any($1::bigint[]) order by id',
      [[version.body.id, changed.body.versionId]],
    );
    expect(stored).toHaveLength(2);
    expect(stored[1]).toEqual(stored[0]);
    const log = await query(app.databaseUrl, 'select after::text from audit_log where tenant_id = $1', [
      acme.id,
    ]);
    expect(JSON.stringify(log)).not.toMatch(/very-secret-tool/);
    expect(changed.text).not.toMatch(/very-secret-tool|sealed/);
  });

  it('that nobody published are shown as such, and answer once they are given something', async () => {
    const slug = freshSlug();
    const made = await acme.post('/api/admin/assistants', { slug, name: 'Draft' });
    const draft = {
      id: slug,
      assistantId: made.body.id as string,
      name: 'Draft',
      description: '',
      avatar: '',
      prompt: '',
      greeting: '',
      suggestedQuestions: [],
      modelServiceId: null,
      parameters: {},
      published: false,
      versionId: null,
      createdAt: TIME,
      updatedAt: TIME,
    };
    expect((await send('GET', `/api/v1/agents/${slug}`)).body).toEqual(draft);
    expect((await send('PUT', `/api/v1/agents/${slug}`, { name: 'Still' })).body).toEqual({
      ...draft,
      name: 'Still',
    });
    expect((await send('PUT', `/api/v1/agents/${slug}`, { prompt: 'now' })).body).toMatchObject({
      published: true,
      prompt: 'now',
      modelServiceId: acme.serviceId,
      versionId: ID,
    });
  });

  it('are deleted; the dialogues held with them stay', async () => {
    const { id } = await make();
    const peer = await byKey('deleter');
    await chat(peer, 'to be kept', 'remember me', { agentId: id });
    const [{ dialogueId } = {}] = await sessions('deleter', `?agentId=${id}`);
    const gone = await send('DELETE', `/api/v1/agents/${id}`);
    expect([gone.status, gone.body]).toEqual([200, { success: true }]);
    for (const method of ['GET', 'PUT', 'DELETE'])
      expect([
        method,
        (await send(method, `/api/v1/agents/${id}`, method === 'PUT' ? {} : undefined)).status,
      ]).toEqual([method, 404]);
    await eventually(
      async () => (await as('deleter', `/api/v1/sessions?agentId=${id}`)).status === 404,
      2_000,
    );
    expect(await chat(peer, 'to be kept', 'and now?', { agentId: id })).toMatchObject({
      type: 'error',
      code: 'agent_not_found',
    });
    const kept = await acme.get(`/api/copywriting/message/list/${dialogueId}`);
    expect(kept.text).toContain('remember me');
    expect((await send('POST', '/api/v1/agents', { id, name: 'New' })).status).toBe(201);
    await peer.close();
  });

  it('are listed by id in pages that say how many there are', async () => {
    const tenant = await app.tenant();
    for (const id of ['delta', 'alpha', 'echo', 'bravo']) await make({ id }, tenant);
    await tenant.post('/api/admin/assistants', { slug: 'zulu', name: 'Unpublished' });
    const list = async (more: string) => {
      const { body } = await send('GET', `/api/v1/agents${more}`, undefined, tenant);
      const { data, ...rest } = body as Page;
      return [data.map(({ id }) => id as string).join(' '), rest];
    };
    expect(await list('')).toEqual(['alpha bravo delta echo main zulu', { total: 6, page: 1, size: 20 }]);
    expect(await list('?size=4')).toEqual(['alpha bravo delta echo', { total: 6, page: 1, size: 4 }]);
    expect(await list('?page=2&size=4')).toEqual(['main zulu', { total: 6, page: 2, size: 4 }]);
    expect(await list('?page=3&size=4')).toEqual(['', { total: 6, page: 3, size: 4 }]);
    expect(await list('?page=1000000&size=200')).toEqual(['', { total: 6, page: 1_000_000, size: 200 }]);
    const { body } = await send('GET', '/api/v1/agents?size=200', undefined, tenant);
    const [alpha, , , , , zulu] = (body as Page).data;
    expect([alpha!.published, zulu!.published, zulu!.versionId]).toEqual([true, false, null]);
    for (const [field, more] of [
      ['page', '?page=0'],
      ['page', '?page=-1'],
      ['page', '?page=x'],
      ['page', '?page='],
      ['page', '?page=1.5'],
      ['page', '?page=1000001'],
      ['page', '?page=1&page=2'],
      ['size', '?size=0'],
      ['size', '?size=201'],
      ['size', '?size=many'],
    ] as const) {
      const answer = await send('GET', `/api/v1/agents${more}`);
      expect([more, answer.status, answer.body]).toEqual([more, 400, failure(new RegExp(`^${field}\\b`))]);
    }
  });

  it('are read with the scope `dialogue` or `admin`, and written with `admin` alone', async () => {
    const { id } = await make();
    const [reader, writer, neither] = [
      await keyWith(acme, 'dialogue'),
      await keyWith(acme, 'admin'),
      await keyWith(acme, 'im', 'models', 'usage'),
    ];
    const statuses = async (key: { apiKey: string }) => {
      const made = freshSlug();
      const calls: [string, string, unknown?][] = [
        ['GET', ''],
        ['GET', `/${id}`],
        ['POST', '', { id: made, name: 'X' }],
        ['PUT', `/${id}`, { name: 'X' }],
        ['DELETE', `/${made}`],
      ];
      const found: number[] = [];
      for (const [method, path, body] of calls) {
        const answer = await send(method, `/api/v1/agents${path}`, body, key);
        if (answer.status >= 400) expect(answer.body).toEqual(failure(/\w/));
        found.push(answer.status);
      }
      return found;
    };
    expect(await statuses(reader)).toEqual([200, 200, 403, 403, 403]);
    expect(await statuses(writer)).toEqual([200, 200, 201, 200, 200]);
    expect(await statuses(neither)).toEqual([403, 403, 403, 403, 403]);
    expect(await statuses({ apiKey: 'pk_1_wrong' })).toEqual([401, 401, 401, 401, 401]);
    expect(await statuses({ apiKey: ROOT_KEY })).toEqual([400, 400, 400, 400, 400]);
    const root = { 'x-api-key': ROOT_KEY, 'tenant-id': acme.id };
    const byRoot = await ask(app.url, 'PUT', `/api/v1/agents/${id}`, { name: 'Root' }, root);
    expect([byRoot.status, byRoot.body.name]).toEqual([200, 'Root']);
  });

  it('of another tenant are 404, whatever is done, and stay as they were', async () => {
    const { id, ...made } = await make({ prompt: 'acme-only-words' });
    for (const method of ['GET', 'PUT', 'DELETE']) {
      const body = method === 'PUT' ? { name: 'taken over', prompt: 'mine' } : undefined;
      const answer = await send(method, `/api/v1/agents/${id}`, body, rival);
      expect([method, answer.status, answer.body]).toEqual([method, 404, failure(/agent/)]);
    }
    const { text } = await send('GET', '/api/v1/agents?size=200', undefined, rival);
    expect(text).not.toMatch(/acme-only-words/);
    const foreign = { ...headersOf(rival), 'tenant-id': acme.id };
    expect((await ask(app.url, 'GET', `/api/v1/agents/${id}`, undefined, foreign)).status).toBe(401);
    expect((await send('GET', `/api/v1/agents/${id}`)).body).toEqual({ id, ...made });
    // The id of the assistant is no agent's id.
    expect((await send('GET', `/api/v1/agents/${made.assistantId}`)).status).toBe(404);
  });

  it('of ids that nobody can have are 404', async () => {
    for (const id of ['nobody', 'MAIN', 'a b', 'a/b', '客服 🐱', '%', 'a\u0000b', '..', "'; --"]) {
      const path = `/api/v1/agents/${encodeURIComponent(id)}`;
      for (const method of ['GET', 'DELETE', 'PUT']) {
        const answer = await send(method, path, method === 'PUT' ? {} : undefined);
        expect([id, method, answer.status, answer.body]).toEqual([id, method, 404, failure(/\w/)]);
      }
    }
    for (const id of ['x'.repeat(600), '%ff', '%'])
      expect([id, await send('GET', `/api/v1/agents/${id}`)]).toMatchObject([
        id,
        { status: id.length > 512 ? 404 : 400, body: failure(/./) },
      ]);
  });

  it('are reached with a second slash, and fail in the same shape there', async () => {
    for (const path of ['//api/v1/agents/main', '/api//v1//agents/main'])
      expect([path, (await send('GET', path)).body.id]).toEqual([path, 'main']);
    const missing = await send('GET', '//api/v1//agents/nobody');
    expect([missing.status, missing.body]).toEqual([404, failure(/nobody/)]);
    for (const path of [
      '/api/v1/agents/main/ws',
      '/api/v1/agents/main/else',
      '/api/v1/tokens',
      '/api/v1/sessions/x',
    ]) {
      const answer = await send('GET', path);
      expect([path, answer.status, answer.body]).toEqual([path, 404, failure(/./)]);
    }
  });

  it('leave an entry of every change in the audit log', async () => {
    const tenant = await app.tenant();
    const { id, assistantId, versionId } = await make({ prompt: 'p' }, tenant);
    await send('PUT', `/api/v1/agents/${id}`, { name: 'Renamed', prompt: 'p2' }, tenant);
    await send('PUT', `/api/v1/agents/${id}`, {}, tenant);
    await send('DELETE', `/api/v1/agents/${id}`, undefined, tenant);
    const { body } = await tenant.get('/api/admin/audit-log?limit=7');
    const entries = (body.data as Frame[]).reverse();
    expect(entries.map(({ action, resource }) => `${action} ${resource}`)).toEqual([
      'create assistant',
      'create assistant-version',
      'publish assistant-version',
      'update assistant',
      'create assistant-version',
      'publish assistant-version',
      'delete assistant',
    ]);
    expect(entries[0]).toMatchObject({
      resourceId: assistantId,
      actorKeyId: tenant.keyId,
      address: '127.0.0.1',
      before: null,
      after: { slug: id, name: 'Agent' },
    });
    expect(entries[1]).toMatchObject({ resourceId: versionId, after: { prompt: 'p', number: 1 } });
    expect(entries[3]).toMatchObject({ before: { name: 'Agent' }, after: { name: 'Renamed' } });
    expect(entries[6]).toMatchObject({ resourceId: assistantId, before: { name: 'Renamed' }, after: null });
  });
});

describe('sessions', () => {
  it('of a user are listed, newest first; of every user where none is named', async () => {
    const { id: agentId } = await make();
    const [ann, ben] = [await byKey('ann'), await byKey('ben')];
    await chat(ann, 'first', 'hello there', { agentId });
    await chat(ann, 'second', 'hi', { agentId });
    await chat(ben, 'first', 'I am ben', { agentId });
    await chat(ann, 'first', 'again', { agentId });
    const answer = await as('ann', `/api/v1/sessions?agentId=${agentId}`);
    expect([answer.status, answer.body]).toEqual([
      200,
      {
        data: [
          {
            id: 'first',
            dialogueId: ID,
            agentId,
            userId: 'ann',
            title: 'hello there',
            messageCount: 4,
            createdAt: TIME,
            updatedAt: TIME,
          },
          expect.objectContaining({ id: 'second', messageCount: 2 }),
        ],
        total: 2,
        page: 1,
        size: 20,
      },
    ]);
    const [{ createdAt, updatedAt } = {}] = (answer.body as Page).data;
    expect(updatedAt).toBeGreaterThan(createdAt as number);
    expect(Math.abs(Date.now() - (createdAt as number))).toBeLessThan(60_000);
    const names = async (more: string, user?: string) => {
      const headers = headersOf(acme, user);
      const { body } = await ask(
        app.url,
        'GET',
        `/api/v1/sessions?agentId=${agentId}${more}`,
        undefined,
        headers,
      );
      const { data, ...rest } = body as Page;
      return [data.map(({ id, userId }) => `${userId}:${id}`).join(' '), rest];
    };
    expect(await names('')).toEqual(['ann:first ben:first ann:second', { total: 3, page: 1, size: 20 }]);
    expect(await names('&size=2&page=2')).toEqual(['ann:second', { total: 3, page: 2, size: 2 }]);
    expect(await names('&page=9')).toEqual(['', { total: 3, page: 9, size: 20 }]);
    expect(await names('', 'ben')).toEqual(['ben:first', { total: 1, page: 1, size: 20 }]);
    expect(await names('', 'nobody')).toEqual(['', { total: 0, page: 1, size: 20 }]);
    // An empty header names nobody, as everywhere.
    expect((await names('', ''))[1]).toMatchObject({ total: 3 });
    await away(ann, ben);
  });

  it('are those with `main` where no agent is named', async () => {
    const { id } = await make();
    const peer = await byKey('defaulter');
    await chat(peer, 'with main', 'x');
    await chat(peer, 'with another', 'x', { agentId: id });
    for (const more of ['', '?agentId=', '?agentId=main'])
      expect([
        more,
        (await sessions('defaulter', more)).map(({ id: name, agentId }) => [name, agentId]),
      ]).toEqual([more, [['with main', 'main']]]);
    expect((await history('defaulter', 'with main')).status).toBe(200);
    expect((await history('defaulter', 'with another')).status).toBe(404);
    expect((await history('defaulter', 'with another', `?agentId=${id}`)).status).toBe(200);
    await peer.close();
  });

  it('have messages, oldest first, in pages, by the session’s name or its dialogue’s id', async () => {
    const peer = await byKey('reader');
    for (const message of ['one', '二 🐱', 'three']) await chat(peer, 'talk', message);
    const answer = await history('reader', 'talk');
    expect([answer.status, answer.body]).toEqual([
      200,
      {
        data: ['one', 'one', '二 🐱', '二 🐱', 'three', 'three'].map((content, index) => ({
          id: ID,
          role: index % 2 === 0 ? 'user' : 'assistant',
          content,
          status: 'finished',
          createdAt: TIME,
        })),
        total: 6,
        page: 1,
        size: 20,
      },
    ]);
    const page = await history('reader', 'talk', '?page=2&size=4');
    expect([contents(page), { ...(page.body as Page), data: null }]).toEqual([
      ['three', 'three'],
      { data: null, total: 6, page: 2, size: 4 },
    ]);
    expect(contents(await history('reader', 'talk', '?page=3&size=4'))).toEqual([]);
    const [{ dialogueId } = {}] = await sessions('reader');
    expect((await history('reader', dialogueId as string)).body).toEqual(answer.body);
    // The name is its user's; the dialogue's id is the tenant's.
    expect((await history('somebody else', 'talk')).status).toBe(404);
    expect((await history('somebody else', dialogueId as string)).body).toEqual(answer.body);
    const platform = await acme.get(`/api/copywriting/message/list/${dialogueId}`);
    expect(platform.text).toContain('二 🐱');
    await peer.close();
  });

  it.each([
    'with spaces and+plus',
    'a/b//c',
    '/',
    '会话 — 🐱👩‍👩‍👧',
    '%20 %2F 100%',
    '?x=1&y#z;w',
    '..',
    'clear',
    'messages',
    'line\nbreak\ttab',
    '12345678901234567890',
    "'; drop table dialogues; --",
    '\u0130ß',
    '🐱'.repeat(64),
    'x'.repeat(128),
  ])('may be called %j', async (name) => {
    const peer = await byKey('namer');
    expect(await chat(peer, name, 'what a name')).toMatchObject({ sessionId: name, done: true });
    expect((await sessions('namer')).map(({ id }) => id as string)).toEqual([name]);
    for (const path of ['/api/v1/sessions', '//api/v1//sessions']) {
      const answer = await as('namer', `${path}/${encodeURIComponent(name)}/messages`);
      expect([path, answer.status, contents(answer)]).toEqual([path, 200, ['what a name', 'what a name']]);
    }
    const cleared = await clear('namer', name);
    expect([cleared.status, cleared.body]).toEqual([
      200,
      { success: true, message: expect.stringContaining(name) as string },
    ]);
    expect(await sessions('namer')).toEqual([]);
    await peer.close();
  });

  it('that are not there are 404, also where the name can be nobody’s', async () => {
    for (const name of ['nothing', '1810970515641233410', '0', 'x'.repeat(129), 'a\u0000b', '🐱'.repeat(65)])
      for (const more of ['', '?agentId=main']) {
        const answer = await history('nobody', name, more);
        expect([name, answer.status, answer.body]).toEqual([name, 404, failure(/\w/)]);
      }
    for (const path of ['/api/v1/sessions?agentId=none', '/api/v1/sessions/x/messages?agentId=none']) {
      const answer = await as('nobody', path);
      expect([path, answer.status, answer.body]).toEqual([path, 404, failure(/agent none/)]);
    }
    for (const [field, path] of [
      ['page', '/api/v1/sessions?page=0'],
      ['size', '/api/v1/sessions?size=201'],
      ['agentId', `/api/v1/sessions?agentId=${'x'.repeat(129)}`],
      ['agentId', '/api/v1/sessions?agentId=a%00b'],
      ['agentId', '/api/v1/sessions?agentId=a&agentId=b'],
      ['size', '/api/v1/sessions/x/messages?size=0'],
      ['page', '/api/v1/sessions/x/messages?page=x'],
      ['user-id', '/api/v1/sessions'],
    ] as const) {
      const answer = await as(field === 'user-id' ? 'x'.repeat(129) : 'nobody', path);
      expect([path, answer.status, answer.body]).toEqual([path, 400, failure(new RegExp(`^${field}\\b`))]);
    }
  });

  it('are cleared: the name is free again, the dialogue and what was said in it stay', async () => {
    const peer = await byKey('clearer');
    await chat(peer, 'work', 'old words');
    const [{ dialogueId: old } = {}] = await sessions('clearer');
    const answer = await clear('clearer', 'work', { unknown: 1 });
    expect([answer.status, answer.body]).toEqual([
      200,
      { success: true, message: expect.stringMatching(/^The session work is cleared/) as string },
    ]);
    expect(await sessions('clearer')).toEqual([]);
    expect((await history('clearer', 'work')).status).toBe(404);
    expect(contents(await history('clearer', old as string))).toEqual(['old words', 'old words']);
    expect((await acme.get(`/api/copywriting/message/list/${old}`)).text).toContain('old words');
    // On the connection that had it open, too.
    await chat(peer, 'work', 'new words');
    expect(upstream.seen('echo').at(-1)!.body.messages).not.toContainEqual(
      expect.objectContaining({ content: 'old words' }),
    );
    const [{ dialogueId } = {}] = await sessions('clearer');
    expect(dialogueId).not.toBe(old);
    expect(contents(await history('clearer', 'work'))).toEqual(['new words', 'new words']);
    await chat(peer, old as string, 'goes on');
    expect(contents(await history('clearer', old as string))).toHaveLength(4);
    await peer.close();
  });

  it('are cleared under the eyes of who watches, and the watchers go on with the name', async () => {
    const [peer, watcher] = [await byKey('watched'), await byKey('watched')];
    await chat(peer, 'show', 'one');
    await chat(watcher, 'show', 'two');
    await clear('watched', 'show');
    const third = ({ requestId, done }: Frame): boolean => requestId === 'third' && done === true;
    peer.send({ type: 'chat', sessionId: 'show', message: 'three', requestId: 'third' });
    const [said, seen] = await Promise.all([peer.next(third), watcher.next(third)]);
    expect(seen).toEqual(said);
    expect(contents(await history('watched', 'show'))).toEqual(['three', 'three']);
    await Promise.all([peer.close(), watcher.close()]);
  });

  it('are cleared for their own user and agent alone', async () => {
    const { id: agentId } = await make();
    const [ann, ben] = [await byKey('ann 2'), await byKey('ben 2')];
    await chat(ann, 'shared', 'x');
    await chat(ann, 'shared', 'x', { agentId });
    await chat(ben, 'shared', 'x');
    await clear('ann 2', 'shared');
    const count = async (user: string, more = '') => (await sessions(user, more)).length;
    expect([await count('ann 2'), await count('ann 2', `?agentId=${agentId}`), await count('ben 2')]).toEqual(
      [0, 1, 1],
    );
    await clear('ann 2', 'shared', { agentId });
    expect(await count('ann 2', `?agentId=${agentId}`)).toBe(0);
    await away(ann, ben);
  });

  it('that are not there are cleared with success, and the message says so', async () => {
    for (let times = 0; times < 2; times += 1) {
      const answer = await clear('nobody', 'never was');
      expect([answer.status, answer.body]).toEqual([
        200,
        { success: true, message: expect.stringMatching(/no session never was/) as string },
      ]);
    }
    expect(await clear('nobody', 'x', { agentId: 'none' })).toMatchObject({
      status: 404,
      body: failure(/agent none/),
    });
  });

  it('have the reply in progress stopped when they are cleared', async () => {
    const tenant = await app.tenant({ baseUrl: upstream.url, model: 'slow' });
    const begun = gate();
    upstream.on('slow', async (exchange) => {
      await exchange.piece('The beginning');
      begun.open();
      await exchange.aborted;
    });
    const peer = await byKey('stopper', tenant);
    const watcher = await byKey('stopper', tenant);
    peer.send({ type: 'chat', sessionId: 'long', message: 'talk' });
    await peer.next({ content: 'The beginning' });
    await begun.opened;
    await watcher.send({ type: 'subscribe', sessionId: 'long' }).next({ content: 'The beginning' });
    const [{ dialogueId } = {}] = await sessions('stopper', '', tenant);
    expect((await clear('stopper', 'long', {}, rival)).body).toMatchObject({
      message: expect.stringMatching(/no session/) as string,
    });
    const answer = await clear('stopper', 'long', {}, tenant);
    expect(answer.body).toMatchObject({ success: true });
    for (const one of [peer, watcher])
      expect(await one.next({ done: true })).toMatchObject({ status: 'stopped' });
    const stored = await history('stopper', dialogueId as string, '', tenant);
    expect((stored.body as Page).data).toMatchObject([
      { role: 'user', content: 'talk', status: 'finished' },
      { role: 'assistant', content: 'The beginning', status: 'stopped' },
    ]);
    await away(peer, watcher);
  });

  it('called by their dialogue’s id are stopped, and that id leads to it as before', async () => {
    const peer = await byKey('by id');
    await chat(peer, 'named', 'x');
    const [{ dialogueId } = {}] = await sessions('by id');
    expect((await clear('by id', dialogueId)).body).toEqual({
      success: true,
      message: expect.stringMatching(/dialogue's id/) as string,
    });
    expect((await history('by id', dialogueId as string)).status).toBe(200);
    expect(await sessions('by id')).toHaveLength(1);
    await peer.close();
  });

  it.each<[string, object]>([
    ['sessionKey', {}],
    ['sessionKey', { sessionKey: '' }],
    ['sessionKey', { sessionKey: null }],
    ['sessionKey', { sessionKey: 7 }],
    ['sessionKey', { sessionKey: 'x'.repeat(129) }],
    ['sessionKey', { sessionKey: 'a\u0000b' }],
    ['agentId', { sessionKey: 'x', agentId: 7 }],
    ['agentId', { sessionKey: 'x', agentId: 'x'.repeat(129) }],
    ['agentId', { sessionKey: 'x', agentId: 'a\u0000b' }],
  ])('are cleared with a good %s only: case %#', async (field, input) => {
    const answer = await ask(app.url, 'POST', '/api/v1/sessions/clear', input, headersOf(acme));
    expect([answer.status, answer.body]).toEqual([400, failure(new RegExp(`^${field}\\b`))]);
  });

  it('need the scope `dialogue`, and the tenant with the root key', async () => {
    const key = await keyWith(acme, 'im', 'models', 'usage', 'admin');
    const root = { 'x-api-key': ROOT_KEY };
    for (const [method, path, body] of [
      ['GET', '/api/v1/sessions', undefined],
      ['GET', '/api/v1/sessions/x/messages', undefined],
      ['POST', '/api/v1/sessions/clear', { sessionKey: 'x' }],
    ] as const) {
      for (const [status, headers] of [
        [401, {}],
        [401, { 'x-api-key': 'wrong' }],
        [403, headersOf(key)],
        [400, root],
      ] as const) {
        const answer = await ask(app.url, method, path, body, { ...headers });
        expect([path, answer.status, answer.body]).toEqual([path, status, failure(/\w/)]);
      }
      const named = await ask(app.url, method, path, body, { ...root, 'tenant-id': acme.id });
      expect([path, named.status]).toEqual([path, path.endsWith('messages') ? 404 : 200]);
    }
  });

  it('of another tenant are not there, by name or by id, with its key or its user’s name', async () => {
    const peer = await byKey('victim');
    await chat(peer, 'mine', 'acme-only-words');
    const [{ dialogueId } = {}] = await sessions('victim');
    for (const name of ['mine', dialogueId as string]) {
      const answer = await history('victim', name, '', rival);
      expect([answer.status, answer.text]).toEqual([404, expect.not.stringContaining('acme-only-words')]);
      expect((await clear('victim', name, {}, rival)).body).toMatchObject({
        success: true,
        message: expect.stringMatching(/no session/) as string,
      });
    }
    expect(await sessions('victim', '', rival)).toEqual([]);
    expect(contents(await history('victim', 'mine'))).toHaveLength(2);
    await peer.close();
  });

  it('are only those that have a name: a dialogue of another wire is reached by its id', async () => {
    const client = await acme.send(says('from the platform wire'), { headers: headersOf(acme, 'elsewhere') });
    await client.end();
    expect(await sessions('elsewhere')).toEqual([]);
    const answer = await history('elsewhere', client.record.id as string);
    expect(contents(answer)).toEqual(['from the platform wire', 'from the platform wire']);
  });

  it('of a connection that named none are there under the name its replies have', async () => {
    const peer = await byKey('unnamed');
    peer.send({ type: 'chat', message: 'hello' });
    const { sessionId } = await peer.next({ done: true });
    expect(await sessions('unnamed')).toMatchObject([{ id: sessionId as string, title: 'hello' }]);
    await peer.close();
  });
});

it('GET /health says that the process lives', async () => {
  for (const path of ['/health', '//health'])
    expect(await ask(app.url, 'GET', path)).toMatchObject({ status: 200, body: { status: 'ok' } });
});
