import { LIMIT_NAMES } from '../../src/tenancy';
import { QUOTA_NAMES } from '../../src/usage';
import { ask, bootApp, eventually, ROOT_KEY, says, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';

let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;

beforeAll(async () => {
  app = await bootApp();
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
afterAll(() => app.close());

const list = (headers: Record<string, string>) =>
  ask(app.url, 'GET', '/api/copywriting/dialogue/list', undefined, headers);

describe('a caller', () => {
  it('is let in with the key bare or as Bearer, with its tenant named or not', async () => {
    for (const headers of <Record<string, string>[]>[
      { 'x-api-key': acme.apiKey },
      { 'x-api-key': `Bearer ${acme.apiKey}` },
      { authorization: `Bearer ${acme.apiKey}` },
      { 'x-api-key': acme.apiKey, 'tenant-id': acme.id },
      { 'x-api-key': acme.apiKey, 'tenant-id': '' },
      { 'x-api-key': ROOT_KEY, 'tenant-id': acme.id },
    ]) {
      expect((await list(headers)).status).toBe(200);
    }
  });

  it('is 401 without a key, with a wrong one, with a foreign tenant; the answer tells nothing', async () => {
    const [, id, secret] = acme.apiKey.split('_') as [string, string, string];
    const flipped = `${secret.startsWith('A') ? 'B' : 'A'}${secret.slice(1)}`;
    for (const headers of [
      {},
      { 'x-api-key': '' },
      { 'x-api-key': 'nonsense' },
      { 'x-api-key': `pk_${id}_${flipped}` },
      { 'x-api-key': `pk_${rival.keyId}_${secret}` },
      { 'x-api-key': `pk_99999_${secret}` },
      { 'x-api-key': acme.apiKey, 'tenant-id': rival.id },
      { 'x-api-key': acme.apiKey, 'tenant-id': 'x' },
      { 'x-api-key': ROOT_KEY, 'tenant-id': '999' },
    ]) {
      const answer = await list(headers as Record<string, string>);
      expect(answer.status).toBe(401);
      expect(answer.body).toEqual({ code: 401, msg: expect.any(String) as unknown });
    }
  });

  it('is refused with a wrong credential even where none is needed', async () => {
    expect((await ask(app.url, 'GET', '/health')).status).toBe(200);
    expect((await ask(app.url, 'GET', '/health', undefined, { 'x-api-key': 'wrong' })).status).toBe(401);
  });

  it('needs the scope: 401 on the platform wire, 403 on the admin wire', async () => {
    const { body } = await acme.post(`/api/admin/tenants/${acme.id}/api-keys`, {
      name: 'usage only',
      scopes: ['usage'],
    });
    const headers = { 'x-api-key': (body as { key: string }).key };
    expect((await list(headers)).status).toBe(401);
    expect((await ask(app.url, 'GET', '/api/admin/assistants', undefined, headers)).status).toBe(403);
    expect((await ask(app.url, 'GET', '/metrics', undefined, headers)).status).toBe(403);
    expect((await ask(app.url, 'GET', '/metrics', undefined, { 'x-api-key': ROOT_KEY })).text).toContain(
      'parley_database_round_trips',
    );
  });

  it('is the user it names', async () => {
    const client = await acme.send(says('hi'), {
      headers: { 'user-id': Buffer.from('用户-1').toString('latin1') },
    });
    await client.end();
    expect(client.record).toMatchObject({ userId: '用户-1' });
    const mine = await list({ 'x-api-key': acme.apiKey, 'user-id': 'x'.repeat(129) });
    expect(mine.body).toMatchObject({ code: 400, msg: expect.stringContaining('user-id') as unknown });
  });
});

describe('a key', () => {
  const fresh = async (input: Record<string, unknown> = {}) => {
    const { body } = await acme.post(`/api/admin/tenants/${acme.id}/api-keys`, {
      name: 'fresh',
      scopes: ['dialogue'],
      ...input,
    });
    return body as { id: string; key: string; appKey: string; appSecret: string };
  };

  it('is shown once and stored as a hash', async () => {
    const key = await fresh();
    expect(key.key).toBe(`${key.appKey}_${key.appSecret}`);
    const again = await acme.get(`/api/admin/tenants/${acme.id}/api-keys/${key.id}`);
    expect(again.text).not.toContain(key.appSecret);
    for (const table of ['api_keys', 'audit_log']) {
      const rows = await query(app.databaseUrl, `select to_jsonb(t)::text as row from ${table} t`);
      expect(JSON.stringify(rows)).not.toContain(key.appSecret);
    }
  });

  it('stops working within a second of being revoked, on every node', async () => {
    const other = await bootApp({}, app.databaseUrl);
    try {
      const key = await fresh();
      const headers = { 'x-api-key': key.key };
      const use = (url: string) => ask(url, 'GET', '/api/copywriting/dialogue/list', undefined, headers);
      expect([(await use(app.url)).status, (await use(other.url)).status]).toEqual([200, 200]);
      expect(
        (
          await ask(app.url, 'DELETE', `/api/admin/tenants/${acme.id}/api-keys/${key.id}`, undefined, {
            'x-api-key': acme.apiKey,
          })
        ).status,
      ).toBe(200);
      const revoked = Date.now();
      for (const url of [app.url, other.url]) {
        await eventually(async () => (await use(url)).status === 401, 1_000);
      }
      expect(Date.now() - revoked).toBeLessThan(2_000);
    } finally {
      await other.close();
    }
  });

  it('expires, is bound to addresses, rotates', async () => {
    const expired = await fresh({ expiresAt: '2020-01-01T00:00:00Z' });
    expect((await list({ 'x-api-key': expired.key })).status).toBe(401);
    const elsewhere = await fresh({ allowedAddresses: ['10.0.0.0/8'] });
    expect((await list({ 'x-api-key': elsewhere.key })).status).toBe(401);
    const here = await fresh({ allowedAddresses: ['127.0.0.0/8', '::1'] });
    expect((await list({ 'x-api-key': here.key })).status).toBe(200);
    const rotated = await acme.post(`/api/admin/tenants/${acme.id}/api-keys/${here.id}/rotate`);
    expect(rotated.status).toBe(200);
    expect((await list({ 'x-api-key': (rotated.body as { key: string }).key })).status).toBe(200);
    await eventually(async () => (await list({ 'x-api-key': here.key })).status === 401, 1_500);
  });

  it('never carries the platform scope, and unknown fields are refused', async () => {
    const refused = await acme.post(`/api/admin/tenants/${acme.id}/api-keys`, {
      name: 'x',
      scopes: ['platform'],
    });
    expect(refused.status).toBe(400);
    const typo = await acme.post(`/api/admin/tenants/${acme.id}/api-keys`, {
      name: 'x',
      scopes: ['dialogue'],
      expires: 'never',
    });
    expect(typo.headers['content-type']).toContain('application/problem+json');
    expect(typo.body).toMatchObject({
      title: 'BAD_INPUT',
      status: 400,
      errors: [{ field: 'expires', message: 'is not a known field' }],
    });
  });

  it('of a suspended tenant does nothing', async () => {
    const tenant = await app.tenant();
    const answer = await ask(
      app.url,
      'PATCH',
      `/api/admin/tenants/${tenant.id}`,
      { status: 'suspended' },
      { 'x-api-key': ROOT_KEY },
    );
    expect(answer.status).toBe(200);
    await eventually(async () => (await tenant.get('/api/copywriting/dialogue/list')).status === 401, 1_500);
  });
});

describe('the admin wire', () => {
  it('writes who changed what into the audit log, without a secret', async () => {
    const provider = await acme.post('/api/admin/model-providers', {
      name: 'audited',
      kind: 'openai-compatible',
      baseUrl: 'http://127.0.0.1:9/v1',
      credentials: [{ apiKey: 'very-secret-credential' }],
      headers: { 'x-extra': 'very-secret-header' },
    });
    expect(provider.status).toBe(201);
    const { id } = provider.body as { id: string };
    await ask(
      app.url,
      'PATCH',
      `/api/admin/model-providers/${id}`,
      { name: 'renamed' },
      { 'x-api-key': acme.apiKey },
    );
    const log = await acme.get('/api/admin/audit-log?limit=2');
    expect(log.body).toMatchObject({
      data: [
        {
          action: 'update',
          resource: 'model-provider',
          resourceId: id,
          actorKeyId: acme.keyId,
          before: { name: 'audited' },
          after: { name: 'renamed' },
          address: '127.0.0.1',
        },
        { action: 'create', resource: 'model-provider', resourceId: id },
      ],
      nextCursor: expect.any(String) as unknown,
    });
    const everything = await query(
      app.databaseUrl,
      `select (select json_agg(a) from audit_log a)::text || (select json_agg(p) from model_providers p)::text as everything`,
    );
    expect(JSON.stringify(everything)).not.toMatch(/very-secret/);
    expect(provider.text).not.toMatch(/very-secret/);
  });

  it('pages with a cursor', async () => {
    const seen: string[] = [];
    let cursor = '';
    do {
      const { body } = await acme.get(`/api/admin/model-services?limit=1${cursor && `&cursor=${cursor}`}`);
      const page = body as { data: { id: string }[]; nextCursor: string | null };
      seen.push(...page.data.map(({ id }) => id));
      cursor = page.nextCursor ?? '';
    } while (cursor);
    expect(seen).toContain(acme.serviceId);
    expect(new Set(seen).size).toBe(seen.length);
  });

  it("keeps a tenant from the platform's things and from other tenants", async () => {
    for (const path of ['/api/admin/tenants', `/api/admin/tenants/${rival.id}`])
      expect((await acme.get(path)).status).toBe(403);
    expect((await acme.get(`/api/admin/tenants/${rival.id}/api-keys`)).status).toBe(404);
    expect(
      (await acme.post(`/api/admin/tenants/${rival.id}/api-keys`, { name: 'x', scopes: ['dialogue'] }))
        .status,
    ).toBe(404);
  });

  it('shares services of the platform with every tenant, and lends its providers to none', async () => {
    const root = (path: string, body: unknown) => ask(app.url, 'POST', path, body, { 'x-api-key': ROOT_KEY });
    const provider = (await root('/api/admin/model-providers', { name: 'shared', kind: 'builtin' })).body as {
      id: string;
    };
    const service = (
      await root('/api/admin/model-services', { name: 'shared', model: 'm', providerId: provider.id })
    ).body as { id: string };
    const client = await acme.send(says('hi', { modelServiceId: service.id }));
    await client.end();
    expect(client.last).toMatchObject({ status: 'finished' });
    const borrowed = await acme.post('/api/admin/model-services', {
      name: 'x',
      model: 'expensive',
      providerId: provider.id,
    });
    expect(borrowed.body).toMatchObject({ status: 400, errors: [{ field: 'providerId' }] });
    expect((await acme.get(`/api/admin/model-providers/${provider.id}`)).status).toBe(404);
  });

  it('publishes versions, numbers them, and refuses a taken slug and a foreign service', async () => {
    const version = await acme.post(`/api/admin/assistants/${acme.assistantId}/versions`, {
      modelServiceId: acme.serviceId,
    });
    expect(version.body).toMatchObject({ number: 2, publishedAt: null });
    const { id } = version.body as { id: string };
    const published = await acme.post(`/api/admin/assistants/${acme.assistantId}/versions/${id}/publish`);
    expect(published.body).toMatchObject({ publishedAt: expect.any(String) as unknown });
    expect((await acme.get(`/api/admin/assistants/${acme.assistantId}`)).body).toMatchObject({
      publishedVersionId: id,
    });
    expect((await acme.post('/api/admin/assistants', { slug: 'main', name: 'again' })).status).toBe(409);
    expect(
      (
        await acme.post(`/api/admin/assistants/${acme.assistantId}/versions`, {
          modelServiceId: rival.serviceId,
        })
      ).status,
    ).toBe(400);
  });
});

it('points providers of tenants at public addresses only where the installation says so', async () => {
  const strict = await bootApp({ PRIVATE_PROVIDER_ADDRESSES: 'refuse' });
  try {
    const tenant = await strict.tenant();
    for (const baseUrl of [
      'http://127.0.0.1/v1',
      'http://[::1]/v1',
      'http://169.254.169.254/latest',
      'http://localhost/v1',
      'http://[::ffff:10.0.0.1]/',
    ]) {
      const answer = await tenant.post('/api/admin/model-providers', {
        name: 'x',
        kind: 'openai-compatible',
        baseUrl,
      });
      expect([baseUrl, answer.status]).toEqual([baseUrl, 400]);
    }
  } finally {
    await strict.close();
  }
});

it('describes every route in OpenAPI', async () => {
  const document = await ask(app.url, 'GET', '/docs/openapi.json');
  expect(document.status).toBe(200);
  const { paths } = document.body as { paths: Record<string, Record<string, unknown>> };
  const undocumented = app.app.routes
    .filter(({ method, url }) => !/^(HEAD|OPTIONS)$/.test(method) && !/^\/docs|\*/.test(url))
    .filter(({ method, url }) => !paths[url.replace(/:(\w+)/g, '{$1}')]?.[method.toLowerCase()]);
  expect(undocumented).toEqual([]);
  expect((await ask(app.url, 'GET', '/docs')).text).toContain('swagger');
});

describe('every route the application registers', () => {
  it("shows a rival with acme's ids nothing of acme's, and nobody anything without a key", async () => {
    const client = await acme.send(says('acme-only-words'));
    await client.end();
    const said = { type: 'single', source: 'acme-user', target: 'bob', msg: { content: 'acme-only-words' } };
    const sent = await acme.post('/api/v1/im/messages', said);
    await acme.post('/api/v1/im/groups', {
      groupId: 'acme-group',
      name: 'acme-only-words',
      owner: 'acme-user',
    });
    const hook = { url: 'http://127.0.0.1:9/acme-only-words', events: ['group.changed'] };
    const webhook = await acme.post('/api/v1/im/webhooks', hook);
    const { conversationId } = sent.body as { conversationId: string };
    const form = await acme.post('/api/admin/generation-apps', {
      name: 'acme-only-words',
      type: 0,
      promptTemplate: 'acme-only-words',
      modelServiceId: acme.serviceId,
    });
    const { id: formId } = form.body as { id: string };
    const text = await acme.post(`/api/copywriting/userCopywriting/${formId}`, {});
    const ids: Record<string, string[]> = {
      groupId: ['acme-group'],
      userId: ['acme-user'],
      seq: ['1'],
      messageId: [client.last.messageId as string],
      userDialogueId: [client.record.id as string],
      keyId: [acme.keyId],
      versionId: [acme.versionId],
      effectiveFrom: ['2099-01-01T00:00:00Z'],
      recordId: [(text.body as { data: { id: string } }).data.id],
      id: [
        formId,
        acme.id,
        acme.versionId,
        acme.assistantId,
        acme.serviceId,
        acme.providerId,
        conversationId,
        (webhook.body as { id: string }).id,
      ],
    };
    const open = new Set(['/health', '/health/ready']);
    const walked: string[] = [];
    for (const { method, url } of app.app.routes) {
      if (/^(HEAD|OPTIONS)$/.test(method) || url.startsWith('/docs') || url.includes('*') || open.has(url))
        continue;
      const names = [...url.matchAll(/:(\w+)/g)].map(([, name]) => name!);
      for (const id of ids[names[0] ?? 'id'] ?? []) {
        const path = names.reduce(
          (text, name, index) => text.replace(`:${name}`, index === 0 ? id : ids[name]![0]!),
          url,
        );
        const body = method === 'GET' ? undefined : {};
        // Public, its credential is in its body.
        const refused = url === '/chat/oauth/token' ? 400 : 401;
        expect([method, path, (await ask(app.url, method, path, body)).status]).toEqual([
          method,
          path,
          refused,
        ]);
        const answer = await ask(app.url, method, path, body, { 'x-api-key': rival.apiKey });
        const told = [answer.status, answer.text].join(' ');
        expect([method, path, told]).toEqual([
          method,
          path,
          expect.not.stringMatching(/acme-only-words|upstream-secret/),
        ]);
        // Users' ids are each tenant's own: the same one is somebody else there.
        if (names.length > 0 && !url.startsWith('/api/v1/im/users/'))
          expect([method, path, [400, 403, 404].includes(answer.status)]).toEqual([method, path, true]);
        for (const own of [acme.id, acme.assistantId, acme.serviceId, acme.providerId, acme.keyId]) {
          if (answer.status < 300 && !url.startsWith('/api/v1/im/users/'))
            expect([path, answer.text]).toEqual([path, expect.not.stringContaining(own)]);
        }
      }
      walked.push(`${method} ${url}`);
    }
    expect(walked.length).toBeGreaterThan(30);
  });
});

describe('a page in a browser', () => {
  const origin = 'https://app.example';
  const from = (tenant: TestTenant, page: string) =>
    tenant.get('/api/copywriting/dialogue/list', { origin: page });

  it('of any origin is let in while the tenant names none, and of the named ones alone once it does', async () => {
    const tenant = await app.tenant();
    const open = await from(tenant, origin);
    expect([open.status, open.headers['access-control-allow-origin']]).toEqual([200, origin]);
    await ask(
      app.url,
      'PATCH',
      `/api/admin/tenants/${tenant.id}`,
      { allowedOrigins: [origin] },
      { 'x-api-key': ROOT_KEY },
    );
    await eventually(async () => (await from(tenant, 'https://evil.example')).status === 401, 1_500);
    expect((await from(tenant, origin)).status).toBe(200);
    const client = await tenant.send(says('hi'), { headers: { origin } });
    await client.end();
    expect(client.response.headers['access-control-allow-origin']).toBe(origin);
    expect((await tenant.get('/copywriting/dialogue/list')).status).toBe(200);
  });

  it('names its origins as browsers do, or not at all', async () => {
    const tenant = await app.tenant();
    const path = `/api/admin/tenants/${tenant.id}`;
    for (const one of ['http://a:99999/', 'https://[::1', 'https://app.example/', 'https://App.example']) {
      const body = { allowedOrigins: [one] };
      const { status } = await ask(app.url, 'PATCH', path, body, { 'x-api-key': ROOT_KEY });
      expect([one, status]).toEqual([one, 400]);
    }
  });

  it('may ask before it sends', async () => {
    const answer = await ask(app.url, 'OPTIONS', '/api/copywriting/dialogue/list', undefined, {
      origin,
      'access-control-request-method': 'POST',
    });
    expect(answer.status).toBe(204);
    expect(answer.headers['access-control-allow-headers']).toContain('x-api-key');
  });
});

it('refuses what the database could not hold: NUL and lone surrogates, wherever they stand', async () => {
  const root = (body: unknown) => ask(app.url, 'POST', '/api/admin/tenants', body, { 'x-api-key': ROOT_KEY });
  for (const body of ['{"name":"x","allowedOrigins":["https://a\\u0000b"]}', '{"name":"x\\u0000"}']) {
    expect([body, (await root(body)).status]).toEqual([body, 400]);
  }
  const key = { 'x-api-key': acme.apiKey };
  const path = `/api/admin/model-services/${acme.serviceId}`;
  const service = (parameters: string) => ask(app.url, 'PATCH', path, `{"parameters":${parameters}}`, key);
  for (const parameters of ['{"a":"\\ud800"}', '{"a\\u0000":1}'])
    expect([parameters, (await service(parameters)).status]).toEqual([parameters, 400]);
  expect((await service('{"a":"\\\\u0000 is text"}')).status).toBe(200);
  expect((await service('{}')).status).toBe(200);
});

describe('limits', () => {
  it.each<[object, string]>([
    [{ requestPerDay: 5 }, 'there is no limit "requestPerDay"; did you mean "requestsPerDay"?'],
    [{ requestsperday: 5 }, 'there is no limit "requestsperday"; did you mean "requestsPerDay"?'],
    [{ imFramePerSecond: 5 }, 'there is no limit "imFramePerSecond"; did you mean "imFramesPerSecond"?'],
    [{ colour: 5 }, 'there is no limit "colour"'],
    [{ ['x'.repeat(100)]: 5 }, `there is no limit "${'x'.repeat(60)}…"`],
    [{ requestsPerDay: 1.5 }, '"requestsPerDay" must be an integer from 0 to 1000000000000000'],
    [{ userTokensPerMonth: 0.5 }, '"userTokensPerMonth" must be an integer from 0 to 1000000000000000'],
    [{ creditsPerDay: '5' }, '"creditsPerDay" must be a number from 0 to 1000000000000000'],
    [{ imRecallSeconds: -1 }, '"imRecallSeconds" must be a number from 0 to 1000000000000000'],
    [[], 'must be an object'],
  ])('%j are refused, of a tenant and of a key', async (limits, message) => {
    const tenant = `/api/admin/tenants/${acme.id}`;
    for (const path of [tenant, `${tenant}/api-keys/${acme.keyId}`]) {
      const answer = await ask(app.url, 'PATCH', path, { limits }, { 'x-api-key': ROOT_KEY });
      expect([answer.status, answer.body.errors]).toEqual([400, [{ field: 'limits', message }]]);
    }
  });

  it('may have every name there is', async () => {
    const tenant = await app.tenant();
    const names = [...QUOTA_NAMES, ...LIMIT_NAMES];
    expect(names).toHaveLength(26);
    const limits = { ...Object.fromEntries(names.map((name) => [name, 1_000])), creditsPerDay: 0.5 };
    const path = `/api/admin/tenants/${tenant.id}`;
    const answer = await ask(app.url, 'PATCH', path, { limits }, { 'x-api-key': ROOT_KEY });
    expect([answer.status, answer.body.limits]).toEqual([200, limits]);
  });
});

describe('a time', () => {
  const expiring = (expiresAt: unknown) =>
    acme.post(`/api/admin/tenants/${acme.id}/api-keys`, { name: 'time', scopes: ['dialogue'], expiresAt });

  it.each([
    'March 1, 2097',
    '2098',
    '2098-01',
    '2090-1-1',
    '2097-02-30',
    '2097-02-29T00:00:00Z',
    '2097-13-01',
    '2097-01-01T00:00:00',
    '2097-01-01 00:00:00Z',
    '2097-01-01T24:00:00Z',
    '2097-01-01T00:60Z',
    '2097-01-01T00:00:00+0100',
    4_000_000_000_000,
  ])('is not %j', async (time) => {
    const answer = await expiring(time);
    expect([answer.status, answer.body.errors]).toEqual([
      400,
      [
        {
          field: 'expiresAt',
          message: 'must be an ISO 8601 time with a zone, e.g. 2027-01-31T00:00:00Z',
        },
      ],
    ]);
  });

  it.each([
    ['2097-01-31', '2097-01-31T00:00:00.000Z'],
    ['2096-02-29T10:00Z', '2096-02-29T10:00:00.000Z'],
    ['2097-01-31T00:30:00+01:00', '2097-01-30T23:30:00.000Z'],
    ['2097-01-31T00:00:00.5-05:30', '2097-01-31T05:30:00.500Z'],
    ['2097-01-31T00:00:00.123456Z', '2097-01-31T00:00:00.123Z'],
  ])('is %s', async (time, read) => {
    const answer = await expiring(time);
    expect([answer.status, answer.body.expiresAt]).toEqual([201, read]);
  });
});

it('says of a body what is wrong with it', async () => {
  const post = (body: unknown) => ask(app.url, 'POST', '/api/admin/tenants', body, { 'x-api-key': ROOT_KEY });
  const body = [{ field: 'body', message: 'must be a JSON object' }];
  for (const wrong of ['[]', '"name"', '[{"name":"x"}]'])
    expect((await post(wrong)).body.errors).toEqual(body);
  const path = `/api/admin/tenants/${acme.id}`;
  const patched = await ask(app.url, 'PATCH', path, '[]', { 'x-api-key': ROOT_KEY });
  expect([patched.status, patched.body.errors]).toEqual([400, body]);
  expect((await post({ name: 7, limits: 7 })).body.detail).toBe(
    'name: must be a string; limits: must be an object',
  );
  expect((await post({})).body.errors).toEqual([{ field: 'name', message: 'is required' }]);
});

it('refuses a wrong credential on the reference, too', async () => {
  expect((await ask(app.url, 'GET', '/docs/openapi.json', undefined, { 'x-api-key': 'wrong' })).status).toBe(
    401,
  );
});
