import { ask, bootApp, eventually, ROOT_KEY, type TestApp, type TestTenant } from '../support/app';
import { halvesOf, ImSocket, imToken, type Frame } from '../support/im-socket';

let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;

beforeAll(async () => {
  app = await bootApp({ IM_CONNECTIONS_PER_USER: '3' });
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
afterAll(() => app.close());

const request = (body: unknown, headers: Record<string, string> = {}) =>
  ask(app.url, 'POST', '/chat/oauth/token', body, headers);
const tokenOf = (tenant: TestTenant, user: string | number, more = {}) =>
  imToken(app.url, tenant.apiKey, user, more);
const change = (tenant: TestTenant, settings: object) =>
  ask(app.url, 'PATCH', `/api/admin/tenants/${tenant.id}`, settings, { 'x-api-key': ROOT_KEY });

describe('POST /chat/oauth/token', () => {
  it('answers JSON with a token that lives for a day', async () => {
    const { status, body } = await request({ ...halvesOf(acme.apiKey), userId: 1 });
    expect([status, body.code, body.msg]).toEqual([200, 0, 'success']);
    const lifetime = (body.data.expiresAt as number) - Date.now();
    expect(lifetime).toBeGreaterThan(86_300_000);
    expect(lifetime).toBeLessThanOrEqual(86_400_000);
    const socket = await ImSocket.open(app.url, { token: body.data.token as string, rich: true });
    expect(socket.frames[0]).toMatchObject({ type: 'ready', user: '1', client: 'pc' });
    await socket.close();
  });

  it('takes a form, groups repeated or one', async () => {
    const { appKey, appSecret } = halvesOf(acme.apiKey);
    for (const groups of ['groupId=f1&groupId=f2', 'groupId=f1']) {
      const form = `appKey=${appKey}&appSecret=${appSecret}&userId=form-user&client=app&${groups}`;
      const { status, body } = await request(form, { 'content-type': 'application/x-www-form-urlencoded' });
      expect([status, body.code]).toEqual([200, 0]);
    }
    expect((await acme.get('/api/v1/im/groups/f2/members')).body.data).toMatchObject([
      { userId: 'form-user' },
    ]);
  });

  it.each([
    [1001, 400, { userId: undefined }, 'userId'],
    [1001, 400, { userId: '' }, 'userId'],
    [1001, 400, { userId: 1.5 }, 'userId'],
    [1001, 400, { userId: 'a\u0000b' }, 'userId'],
    [1001, 400, { userId: 'system' }, 'userId'],
    [1001, 400, { userId: 'agent:main' }, 'userId'],
    [1001, 400, { appKey: undefined }, 'appKey'],
    [1001, 400, { client: 'x'.repeat(33) }, 'client'],
    [1001, 400, { groupId: ['x'.repeat(129)] }, 'groupId'],
    [1002, 401, { appSecret: 'wrong' }, ''],
    [1002, 401, { appKey: 'pk_1' }, ''],
    [1002, 401, { appKey: 'nonsense' }, ''],
  ])('fails with %i and %i for %j', async (code, status, wrong, field) => {
    const answer = await request({ ...halvesOf(acme.apiKey), userId: 'u', ...wrong });
    expect([answer.status, answer.body.code]).toEqual([status, code]);
    expect(answer.body.msg).toContain(field);
    expect(answer.text).not.toContain(halvesOf(acme.apiKey).appSecret);
  });

  it('fails with 1003 for a key without the scope and for a suspended tenant', async () => {
    const scopeless = await app.tenant({ scopes: ['dialogue'] });
    expect((await request({ ...halvesOf(scopeless.apiKey), userId: 1 })).body.code).toBe(1003);
    const tenant = await app.tenant();
    await change(tenant, { status: 'suspended' });
    await eventually(
      async () => (await request({ ...halvesOf(tenant.apiKey), userId: 1 })).body.code === 1003,
      1_500,
    );
  });

  it("fails with 1004 past the key's rate, which a tenant can have of its own", async () => {
    const tenant = await app.tenant();
    await change(tenant, { limits: { imTokensPerMinute: 2 } });
    await eventually(async () => {
      const { status, body, headers } = await request({ ...halvesOf(tenant.apiKey), userId: 1 });
      return status === 429 && body.code === 1004 && Number(headers['retry-after']) > 0;
    }, 3_000);
    expect((await request({ ...halvesOf(rival.apiKey), userId: 1 })).status).toBe(200);
  });

  it('is offered to servers that hold a key', async () => {
    const { body } = await acme.post('/api/v1/im/tokens', { userId: 'k', client: 'web' });
    const socket = await ImSocket.open(app.url, { token: body.data.token as string, rich: true });
    expect(socket.frames[0]).toMatchObject({ user: 'k', client: 'web' });
    await socket.close();
    const root = (headers: object) =>
      ask(app.url, 'POST', '/api/v1/im/tokens', { userId: 1 }, { 'x-api-key': ROOT_KEY, ...headers });
    expect((await root({})).status).toBe(400);
    expect((await root({ 'tenant-id': acme.id })).status).toBe(200);
  });

  it('makes groups for a tenant that manages them, whose users may not', async () => {
    const tenant = await app.tenant();
    await change(tenant, { groupPolicy: 'managed' });
    const token = await tokenOf(tenant, 'm', { groupId: ['made'] });
    const socket = await ImSocket.open(app.url, { token });
    expect((await tenant.get('/api/v1/im/groups/made/members')).body.data).toMatchObject([{ userId: 'm' }]);
    await eventually(async () => {
      const { code } = await socket.fails({ type: 'join', source: 'm', target: 'own' });
      return code === 4004;
    }, 2_000);
    await socket.close();
  });
});

describe('the handshake', () => {
  it('takes the token from the query or as a bearer', async () => {
    const token = await tokenOf(acme, 'h1');
    const socket = await ImSocket.open(app.url, { headers: { authorization: `Bearer ${token}` } });
    await socket.close();
    await (await ImSocket.open(app.url, { token, path: '//chat' })).close();
  });

  it.each([
    ['no token', {}],
    ['nonsense', { token: 'x' }],
    ['an API key', { token: 'pk_1_abc' }],
    ['a token of another signer', { token: 'eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1In0.' }],
  ])('refuses %s with 401 and JSON', async (_, options) => {
    const { status, body } = await ImSocket.refused(app.url, options);
    expect([status, body.code]).toEqual([401, 'UNAUTHENTICATED']);
  });

  it('knows no other path', async () => {
    const refusal = await ImSocket.refused(app.url, { token: await tokenOf(acme, 'h2'), path: '/other' });
    expect(refusal).toMatchObject({ status: 404, body: { code: 'NOT_FOUND' } });
  });

  it('lets in any origin while the tenant names none, then the named ones alone', async () => {
    const tenant = await app.tenant();
    const token = await tokenOf(tenant, 'h3');
    await (await ImSocket.open(app.url, { token, headers: { origin: 'https://evil.example' } })).close();
    await change(tenant, { allowedOrigins: ['https://app.example'] });
    await eventually(async () => {
      const dialled = ImSocket.dial(app.url, { token, headers: { origin: 'https://evil.example' } });
      return dialled.opened
        .then(() => dialled.close())
        .then(
          () => false,
          () => true,
        );
    }, 2_000);
    const refusal = await ImSocket.refused(app.url, { token, headers: { origin: 'https://evil.example' } });
    expect(refusal).toMatchObject({ status: 403, body: { code: 'ORIGIN_NOT_ALLOWED' } });
    await (await ImSocket.open(app.url, { token, headers: { origin: 'https://app.example' } })).close();
    await (await ImSocket.open(app.url, { token })).close();
  });

  it('allows so many devices a user, and a device to take its own place', async () => {
    const open = async (client: string) =>
      ImSocket.open(app.url, { token: await tokenOf(acme, 'many', { client }) });
    const sockets = [await open('a'), await open('b'), await open('c')];
    const refusal = await ImSocket.refused(app.url, { token: await tokenOf(acme, 'many', { client: 'd' }) });
    expect(refusal).toMatchObject({ status: 429, body: { code: 'RATE_LIMITED' } });
    sockets.push(await open('c'));
    expect(await sockets[2]!.ended()).toMatchObject({
      code: 4409,
      reason: expect.stringContaining('elsewhere'),
    });
    await Promise.all([0, 1, 3].map((index) => sockets[index]!.close()));
  });

  it('allows so many connections a tenant and an address', async () => {
    const tenant = await app.tenant();
    await change(tenant, { limits: { imConnectionsPerTenant: 1 } });
    await eventually(async () => (await tenant.get('/api/v1/im/groups')).status === 200);
    const first = await ImSocket.open(app.url, { token: await tokenOf(tenant, 1) });
    await eventually(async () => {
      const dialled = ImSocket.dial(app.url, { token: await tokenOf(tenant, 2) });
      return dialled.opened
        .then(() => dialled.close())
        .then(
          () => false,
          () => true,
        );
    }, 2_000);
    await first.close();
    const narrow = await bootApp({ IM_CONNECTIONS_PER_ADDRESS: '1' });
    try {
      const narrowed = await narrow.tenant();
      const one = await ImSocket.open(narrow.url, { token: await imToken(narrow.url, narrowed.apiKey, 1) });
      const refusal = await ImSocket.refused(narrow.url, {
        token: await imToken(narrow.url, narrowed.apiKey, 2),
      });
      expect(refusal).toMatchObject({ status: 429, body: { error: expect.stringContaining('address') } });
      await one.close();
    } finally {
      await narrow.close();
    }
  });
});

describe('an open connection', () => {
  const open = async (tenant: TestTenant, user: string, client = 'pc') =>
    ImSocket.open(app.url, { token: await tokenOf(tenant, user, { client }) });

  it('is closed with 4401 when its token is revoked, by user or by device; a new token works', async () => {
    const [phone, pc, foreign] = [
      await open(acme, 'r', 'phone'),
      await open(acme, 'r'),
      await open(rival, 'r'),
    ];
    const token = await tokenOf(acme, 'r', { client: 'phone' });
    await ask(app.url, 'DELETE', '/api/v1/im/users/r/sessions?client=phone', undefined, {
      'x-api-key': acme.apiKey,
    });
    expect(await phone.ended()).toMatchObject({ code: 4401 });
    expect((await ImSocket.refused(app.url, { token })).status).toBe(401);
    await pc.settled();
    await ask(app.url, 'DELETE', '/api/v1/im/users/r/sessions', undefined, { 'x-api-key': acme.apiKey });
    expect(await pc.ended()).toMatchObject({ code: 4401 });
    await foreign.settled();
    await (await open(acme, 'r')).close();
    await foreign.close();
  });

  it('is closed with 4401 when the key of its token is revoked', async () => {
    const tenant = await app.tenant();
    const socket = await open(tenant, 'k');
    const token = await tokenOf(tenant, 'k');
    await ask(app.url, 'DELETE', `/api/admin/tenants/${tenant.id}/api-keys/${tenant.keyId}`, undefined, {
      'x-api-key': ROOT_KEY,
    });
    expect(await socket.ended()).toMatchObject({ code: 4401 });
    expect((await ImSocket.refused(app.url, { token })).status).toBe(401);
  });

  it('is closed with 4403 when its tenant is suspended', async () => {
    const tenant = await app.tenant();
    const socket = await open(tenant, 's');
    await change(tenant, { status: 'suspended' });
    expect(await socket.ended()).toMatchObject({ code: 4403 });
  });

  it('is closed with 1001 when the server restarts, and with 4401 when its token runs out', async () => {
    const short = await bootApp({ IM_TOKEN_TTL_SECONDS: '60', IM_HEARTBEAT_SECONDS: '1' });
    const tenant = await short.tenant();
    const token = await imToken(short.url, tenant.apiKey, 1);
    const [, claims] = token.split('.') as [string, string];
    const { exp } = JSON.parse(Buffer.from(claims, 'base64url').toString()) as Frame;
    expect(exp - Date.now() / 1_000).toBeLessThanOrEqual(60);
    const socket = await ImSocket.open(short.url, { token });
    await short.close();
    expect(await socket.ended()).toMatchObject({ code: 1001 });
  });

  it('is dropped when its peer answers nothing', async () => {
    const quick = await bootApp({ IM_HEARTBEAT_SECONDS: '1' });
    try {
      const tenant = await quick.tenant();
      const silent = await ImSocket.open(quick.url, {
        token: await imToken(quick.url, tenant.apiKey, 'silent'),
        autoPong: false,
      });
      const lively = await ImSocket.open(quick.url, {
        token: await imToken(quick.url, tenant.apiKey, 'lively'),
      });
      expect(await silent.ended()).toMatchObject({ code: 1006 });
      await lively.settled();
      await lively.close();
    } finally {
      await quick.close();
    }
  });
});
