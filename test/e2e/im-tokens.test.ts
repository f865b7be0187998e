import { UserTokens } from '../../src/tenancy';
import { ask, bootApp, ROOT_KEY, type TestApp, type TestTenant } from '../support/app';
import {
  away,
  change,
  connect,
  device,
  halves,
  imToken,
  join,
  refusal,
  single,
  tenantWith,
} from '../support/im';

const PER_MINUTE = 40;
let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;

beforeAll(async () => {
  app = await bootApp({ IM_TOKENS_PER_MINUTE: String(PER_MINUTE) });
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
afterAll(() => app.close());

const request = (body: unknown, headers: Record<string, string> = {}) =>
  ask(app.url, 'POST', '/chat/oauth/token', body, headers);
const form = (text: string) => request(text, { 'content-type': 'application/x-www-form-urlencoded' });
const served = (body: unknown, headers: Record<string, string>) =>
  ask(app.url, 'POST', '/api/v1/im/tokens', body, headers);
const members = async (tenant: TestTenant, group: string): Promise<string[]> => {
  const { body } = await tenant.get(`/api/v1/im/groups/${encodeURIComponent(group)}/members`);
  return ((body.data ?? []) as { userId: string }[]).map(({ userId }) => userId);
};
/** Whose token it is, as the server says after connecting with it. */
const owner = async (token: string): Promise<{ user: string; client: string }> => {
  const peer = await connect(app.url, token, { rich: true });
  const { user, client } = peer.frames[0]!;
  await peer.close();
  return { user, client };
};

describe('POST /chat/oauth/token', () => {
  it('answers JSON, for a user whose id is a number or a string, on the client `pc` unless another is named', async () => {
    for (const [input, expected] of [
      [{ userId: 1 }, { user: '1', client: 'pc' }],
      [{ userId: '1' }, { user: '1', client: 'pc' }],
      [
        { userId: 'Зоя 🐱', client: 'phone' },
        { user: 'Зоя 🐱', client: 'phone' },
      ],
      [{ userId: -7 }, { user: '-7', client: 'pc' }],
    ] as const) {
      const { status, body } = await request({ ...halves(acme), ...input });
      expect({ status, body }).toEqual({
        status: 200,
        body: {
          code: 0,
          msg: 'success',
          data: { token: expect.any(String) as unknown, expiresAt: expect.any(Number) as unknown },
        },
      });
      expect(await owner(body.data.token as string)).toEqual(expected);
    }
  });

  it('answers a form, in which groups are repeated', async () => {
    const { appKey, appSecret } = halves(acme);
    const user = encodeURIComponent('Ünal');
    for (const groups of ['groupId=f1', 'groupId=f1&groupId=f2', 'groupId[]=f3&groupId[]=f4']) {
      const answer = await form(`appKey=${appKey}&appSecret=${appSecret}&userId=${user}&client=tv&${groups}`);
      expect([answer.status, answer.body.code]).toEqual([200, 0]);
      expect(await owner(answer.body.data.token as string)).toEqual({ user: 'Ünal', client: 'tv' });
    }
    for (const group of ['f1', 'f2', 'f3', 'f4'])
      expect([group, await members(acme, group)]).toEqual([group, ['Ünal']]);
  });

  it('ignores unknown fields and a second slash, and needs no credential but refuses a wrong one', async () => {
    const input = { ...halves(acme), userId: 1, deviceModel: 'X', version: 3 };
    expect((await request(input)).status).toBe(200);
    expect((await ask(app.url, 'POST', '//chat/oauth/token', input)).status).toBe(200);
    expect((await request(input, { 'x-api-key': 'pk_1_wrong' })).status).toBe(401);
  });

  it('puts the user into the groups it names, makes those that are not there, and tells the others once', async () => {
    const other = await device(app, acme, 'other');
    const foreign = await device(app, rival, 'other', { groupId: ['team', 'new'] });
    await other.send(join('other', 'team')).ping();
    await imToken(app.url, acme, 5, { groupId: ['team', 'new', 'new'] });
    expect(await other.next({ type: 'join' })).toMatchObject({ source: 5, target: 'team', seq: 2 });
    await imToken(app.url, acme, 5, { groupId: ['team', 'new'] });
    expect(await other.settled()).toHaveLength(1);
    expect(await members(acme, 'team')).toEqual(['5', 'other']);
    expect(await members(acme, 'new')).toEqual(['5']);
    expect(await members(rival, 'team')).toEqual(['other']);
    expect((await foreign.settled()).filter(({ source }) => source !== 'other')).toEqual([]);
    await away(other, foreign);
  });

  it('makes groups also where only the server may', async () => {
    const managed = await tenantWith(app, { groupPolicy: 'managed' });
    const peer = await device(app, managed, 'm', { groupId: ['staff'] });
    expect(await members(managed, 'staff')).toEqual(['m']);
    expect(await peer.fails(join('m', 'own'))).toMatchObject({ code: 4004 });
    await peer.close();
  });

  it.each<[string, number, object]>([
    ['userId', 400, { userId: undefined }],
    ['userId', 400, { userId: '' }],
    ['userId', 400, { userId: 1.5 }],
    ['userId', 400, { userId: null }],
    ['userId', 400, { userId: true }],
    ['userId', 400, { userId: [1] }],
    ['userId', 400, { userId: 'a\u0000b' }],
    ['userId', 400, { userId: 'x'.repeat(129) }],
    ['userId', 400, { userId: '\ud800' }],
    ['userId', 400, { userId: 'system' }],
    ['userId', 400, { userId: 'agent:main' }],
    ['appKey', 400, { appKey: undefined }],
    ['appKey', 400, { appKey: 7 }],
    ['appSecret', 400, { appSecret: undefined }],
    ['client', 400, { client: 7 }],
    ['client', 400, { client: '' }],
    ['client', 400, { client: 'x'.repeat(33) }],
    ['client', 400, { client: 'p\u0000c' }],
    ['groupId', 400, { groupId: [1] }],
    ['groupId', 400, { groupId: [''] }],
    ['groupId', 400, { groupId: { a: 'b' } }],
    ['groupId', 400, { groupId: ['a\u0000b'] }],
    ['groupId', 400, { groupId: ['x'.repeat(129)] }],
    ['groupId', 400, { groupId: Array.from({ length: 501 }, (_, index) => `many ${index}`) }],
  ])('fails with 1001 and names %s with %i: case %#', async (field, status, wrong) => {
    const answer = await request({ ...halves(acme), userId: 'u', ...wrong });
    expect([answer.status, answer.body]).toEqual([
      status,
      { code: 1001, msg: expect.stringMatching(new RegExp(`^(each value in )?${field}\\b`)) as unknown },
    ]);
    expect(answer.text).not.toContain(halves(acme).appSecret);
  });

  it('fails with 1001 for what is no JSON, no object, too large or of another kind', async () => {
    for (const [status, body, headers] of [
      [400, '{"appKey":', {}],
      [400, '[]', {}],
      [400, 'null', {}],
      [413, JSON.stringify({ appKey: 'x'.repeat(1_100_000) }), {}],
      [415, 'appKey', { 'content-type': 'text/csv' }],
    ] as const) {
      const answer = await request(body, headers);
      expect([answer.status, answer.body]).toEqual([
        status,
        { code: 1001, msg: expect.any(String) as unknown },
      ]);
    }
  });

  it('looks at a key in a header, where there is one, before the body', async () => {
    const body = { ...halves(acme), userId: 1 };
    for (const header of ['x-api-key', 'authorization']) {
      const refused = await request(body, { [header]: 'pk_1_wrong' });
      expect([refused.status, refused.body.code]).toEqual([401, 1002]);
      expect((await request(body, { [header]: acme.apiKey })).status).toBe(200);
    }
  });

  it('fails with 1002 for an unknown app and a wrong secret, and does not tell which', async () => {
    const { appKey, appSecret } = halves(acme);
    const answers = await Promise.all(
      [
        { appKey, appSecret: halves(rival).appSecret },
        { appKey: halves(rival).appKey, appSecret },
        { appKey, appSecret: appSecret.slice(1) },
        { appKey: 'pk_1', appSecret },
        { appKey: 'nonsense', appSecret },
        { appKey: "pk_1' or true", appSecret },
      ].map((pair) => request({ ...pair, userId: 1 })),
    );
    for (const { status, body, text } of answers) {
      expect([status, body.code]).toEqual([401, 1002]);
      expect(text).not.toContain(appSecret);
    }
  });

  it('fails with 1003 for a key without the scope `im`, and for a suspended tenant', async () => {
    const scopeless = await app.tenant({ scopes: ['dialogue', 'admin'] });
    const suspended = await tenantWith(app, { status: 'suspended' });
    const answers = await Promise.all(
      [scopeless, suspended].map((tenant) => request({ ...halves(tenant), userId: 1 })),
    );
    expect(answers.map(({ status, body }) => [status, body.code])).toEqual([
      [403, 1003],
      [401, 1003],
    ]);
  });

  it.each([
    ['the installation says', PER_MINUTE, {}],
    ['the tenant says', 3, { limits: { imTokensPerMinute: 3 } }],
  ])('fails with 1004 past as many tokens a minute and key as %s', async (_, limit, settings) => {
    const tenant = await tenantWith(app, settings);
    const second = await tenant.post(`/api/admin/tenants/${tenant.id}/api-keys`, {
      name: '2',
      scopes: ['im'],
    });
    const answers = await Promise.all(
      Array.from({ length: limit + 2 }, () => request({ ...halves(tenant), userId: 1 })),
    );
    const refused = answers.filter(({ status }) => status === 429);
    expect(refused.length).toBeGreaterThanOrEqual(1);
    expect(answers.filter(({ status }) => status === 200).length).toBeGreaterThanOrEqual(limit);
    expect(refused[0]!.body.code).toBe(1004);
    expect(Number(refused[0]!.headers['retry-after'])).toBeGreaterThanOrEqual(1);
    const another = { apiKey: second.body.key as string };
    expect((await request({ ...halves(another), userId: 1 })).status).toBe(200);
    expect((await request({ ...halves(rival), userId: 1 })).status).toBe(200);
  });
});

describe('POST /api/v1/im/tokens', () => {
  it('is the same call for a server that holds a key', async () => {
    const { body } = await acme.post('/api/v1/im/tokens', { userId: 9, client: 'web', groupId: ['k1'] });
    expect(body).toMatchObject({
      code: 0,
      msg: 'success',
      data: { expiresAt: expect.any(Number) as unknown },
    });
    expect(await owner(body.data.token as string)).toEqual({ user: '9', client: 'web' });
    expect(await members(acme, 'k1')).toEqual(['9']);
    const named = { 'x-api-key': acme.apiKey, 'tenant-id': acme.id };
    expect((await served({ userId: 9 }, named)).status).toBe(200);
  });

  it('needs a tenant with the root key, and takes the one that is named', async () => {
    expect(await served({ userId: 1 }, { 'x-api-key': ROOT_KEY })).toMatchObject({
      status: 400,
      body: { error: expect.stringContaining('tenant-id') as unknown },
    });
    const { body } = await served(
      { userId: 'by root', groupId: ['r1'] },
      { 'x-api-key': ROOT_KEY, 'tenant-id': rival.id },
    );
    expect(body.code).toBe(0);
    expect([await members(rival, 'r1'), await members(acme, 'r1')]).toEqual([['by root'], []]);
  });

  it('refuses a missing or foreign key, one without the scope, and wrong fields, in the shape of REST', async () => {
    const scopeless = await app.tenant({ scopes: ['dialogue'] });
    for (const [status, headers, input] of [
      [401, {}, { userId: 1 }],
      [401, { 'x-api-key': 'pk_1_x' }, { userId: 1 }],
      [401, { 'x-api-key': acme.apiKey, 'tenant-id': rival.id }, { userId: 1 }],
      [403, { 'x-api-key': scopeless.apiKey }, { userId: 1 }],
      [400, { 'x-api-key': acme.apiKey }, { userId: 'agent:x' }],
      [400, { 'x-api-key': acme.apiKey }, {}],
    ] as const) {
      const answer = await served(input, headers);
      expect([answer.status, answer.body]).toEqual([
        status,
        expect.objectContaining({
          error: expect.any(String) as unknown,
          code: expect.any(String) as unknown,
        }),
      ]);
    }
  });
});

describe('a token', () => {
  it('lives for 24 hours, and says until when', async () => {
    const { body } = await request({ ...halves(acme), userId: 1 });
    const left = (body.data.expiresAt as number) - Date.now();
    expect(left).toBeGreaterThan(86_300_000);
    expect(left).toBeLessThanOrEqual(86_400_000);
  });

  it('that expires while connected ends the connection with 4401, and lets nobody in any more', async () => {
    const tokens = new UserTokens('secret-of-the-tests-0123456789abcdef');
    const now = Date.now();
    const token = await tokens.sign({
      tenantId: acme.id as never,
      userId: 'brief',
      client: 'pc',
      keyId: acme.keyId as never,
      issuedAt: now,
      expiresAt: now + 1_000,
    });
    const peer = await connect(app.url, token);
    expect((await peer.closed).code).toBe(4401);
    expect(await refusal(app.url, token)).toMatchObject({ status: 401, body: { code: 'UNAUTHENTICATED' } });
  });

  it('stops within a second when its key is revoked; other keys’ tokens go on', async () => {
    const tenant = await app.tenant();
    const second = await tenant.post(`/api/admin/tenants/${tenant.id}/api-keys`, {
      name: '2',
      scopes: ['im'],
    });
    const token = await imToken(app.url, tenant, 1);
    const [peer, kept] = await Promise.all([
      connect(app.url, token),
      connect(app.url, await imToken(app.url, { apiKey: second.body.key as string }, 2)),
    ]);
    const path = `/api/admin/tenants/${tenant.id}/api-keys/${tenant.keyId}`;
    await ask(app.url, 'DELETE', path, undefined, { 'x-api-key': ROOT_KEY });
    const revokedAt = Date.now();
    expect(await peer.closed).toMatchObject({ code: 4401, reason: expect.stringMatching(/\w/) as unknown });
    expect(Date.now() - revokedAt).toBeLessThan(1_500);
    expect((await refusal(app.url, token)).status).toBe(401);
    expect((await request({ ...halves(tenant), userId: 1 })).body.code).toBe(1002);
    await kept.ping();
    await kept.close();
  });

  it('is revoked by user or by device, open connections included; what is asked for afterwards works', async () => {
    const [pc, phone, foreign] = await Promise.all([
      device(app, acme, 'gone'),
      device(app, acme, 'gone', { client: 'phone' }),
      device(app, rival, 'gone'),
    ]);
    const token = await imToken(app.url, acme, 'gone', { client: 'phone' });
    const revoke = (query: string) =>
      ask(app.url, 'DELETE', `/api/v1/im/users/gone/sessions${query}`, undefined, {
        'x-api-key': acme.apiKey,
      });
    await revoke('?client=phone');
    expect((await phone.closed).code).toBe(4401);
    expect((await refusal(app.url, token)).status).toBe(401);
    await pc.ping();
    await revoke('');
    expect((await pc.closed).code).toBe(4401);
    const again = await device(app, acme, 'gone');
    await again.send(single('gone', 'x')).ping();
    await foreign.ping();
    await away(again, foreign);
  });

  it('is worth nothing while its tenant is suspended: 4403 for who is connected, 401 for who comes', async () => {
    const tenant = await app.tenant();
    const token = await imToken(app.url, tenant, 1);
    const peer = await connect(app.url, token);
    const foreign = await device(app, rival, 1);
    await change(app, tenant, { status: 'suspended' });
    expect((await peer.closed).code).toBe(4403);
    await foreign.ping();
    await foreign.close();
    await change(app, tenant, { status: 'active' });
  });
});
