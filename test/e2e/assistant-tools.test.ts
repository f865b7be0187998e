import { ask, bootApp, ROOT_KEY, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { ToolSources, type StoredToolSource } from '../../src/tools';

const SECRET = 'Bearer secret-of-a-tool-123';
const spec = {
  openapi: '3.1.0',
  info: { title: 'shop', version: '1' },
  paths: { '/orders': { get: { operationId: 'orders' } } },
};
const tools = [
  {
    type: 'mcp',
    name: 'docs',
    url: 'http://127.0.0.1:9/mcp',
    headers: { 'X-Secret-Name': SECRET },
    allow: ['a'],
  },
  { type: 'openapi', name: 'shop', spec, baseUrl: 'http://127.0.0.1:9', headers: { authorization: SECRET } },
];

let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;

beforeAll(async () => {
  app = await bootApp();
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
afterAll(() => app.close());

const versions = (tenant: TestTenant) => `/api/admin/assistants/${tenant.assistantId}/versions`;
const create = (tenant: TestTenant, body: Record<string, unknown>) =>
  tenant.post(versions(tenant), { modelServiceId: tenant.serviceId, ...body });

it('is given tools, whose headers nobody sees again', async () => {
  const made = await create(acme, { tools });
  expect(made.status).toBe(201);
  const shown = tools.map((source) => ({ ...source, headers: true, headersStatus: 'ok' }));
  expect(made.body.tools).toEqual(shown);
  const path = `${versions(acme)}/${made.body.id}`;
  const got = await acme.get(path);
  expect(got.body.tools).toEqual(shown);
  const published = await acme.post(`${path}/publish`);
  const list = await acme.get(versions(acme));
  expect(list.body.data.at(-1).tools).toEqual([shown[0], { ...shown[1], spec: true }]);
  const log = await acme.get('/api/admin/audit-log');
  expect(log.status).toBe(200);
  for (const { text } of [made, got, published, list, log]) {
    expect(text).not.toMatch(/secret-of-a-tool|X-Secret-Name|"v[12]\./);
  }
  for (const table of ['assistant_versions', 'audit_log']) {
    const rows = await query(app.databaseUrl, `select to_jsonb(t)::text as row from ${table} t`);
    expect(JSON.stringify(rows)).not.toContain('secret-of-a-tool');
  }
});

it('keeps them sealed under the assistant', async () => {
  const made = await create(acme, { tools });
  const [row] = await query<{ tools: StoredToolSource[] }>(
    app.databaseUrl,
    'select tools from assistant_versions where id = $1',
    [made.body.id],
  );
  const sources = app.app.nest.get(ToolSources);
  const signal = new AbortController().signal;
  const [own, foreign] = await Promise.all(
    [acme.assistantId, rival.assistantId].map((id) => sources.open([row!.tools[1]!], id, signal)),
  );
  expect(own!.tools.map(({ name }) => name)).toEqual(['shop_orders']);
  expect(foreign!.tools).toEqual([]);
  expect(foreign!.failures).toHaveLength(1);
  await Promise.all([own!.close(), foreign!.close()]);
});

it('is refused what is not right, by name', async () => {
  for (const [value, field] of [
    ['x', 'tools'],
    [null, 'tools'],
    [[{ ...tools[0], url: 'nowhere' }], 'tools.0.url'],
    [[{ ...tools[0], secret: 'x' }], 'tools.0.secret'],
    [[tools[0], { ...tools[1], headers: true }], 'tools.1.headers'],
    [[{ ...tools[1], spec: { openapi: '3.1.0' } }], 'tools.0.spec.paths'],
  ] as const) {
    const answer = await create(acme, { tools: value });
    expect(answer.status).toBe(400);
    expect(JSON.stringify(answer.body)).toContain(`"${field}"`);
  }
  expect((await create(acme, { tools: [] })).body.tools).toEqual([]);
});

it('can not be given to an assistant of another tenant, nor seen there', async () => {
  const made = await create(acme, { tools });
  const foreign = await rival.post(versions(acme), { modelServiceId: rival.serviceId, tools });
  expect(foreign.status).toBe(404);
  expect((await rival.get(`${versions(acme)}/${made.body.id}`)).status).toBe(404);
  expect((await rival.get(versions(acme))).status).toBe(404);
});

it('may not point into our network when that is refused, not even by the platform', async () => {
  const strict = await bootApp({ PRIVATE_PROVIDER_ADDRESSES: 'refuse' }, app.databaseUrl);
  try {
    for (const headers of <Record<string, string>[]>[
      { 'x-api-key': acme.apiKey },
      { 'x-api-key': ROOT_KEY, 'tenant-id': acme.id },
    ]) {
      const body = { modelServiceId: acme.serviceId, tools };
      const answer = await ask(strict.url, 'POST', versions(acme), body, headers);
      expect(answer.status).toBe(400);
      expect(answer.text).toContain('tools.0.url: must not lead to a private address');
    }
  } finally {
    await strict.close();
  }
});
