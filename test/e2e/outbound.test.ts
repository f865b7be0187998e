import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { ask, bootApp, eventually, says, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { Im } from '../support/im-rest';
import { TestNames } from '../support/outbound';

const PUBLIC = '8.8.8.8';
const KEY = 'sk-live-4f9A0c2E7b1D8x6Z';
const WHERE = 'The model provider leads to a private address, which is not allowed here.';

const names = new TestNames();
let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;
let inside: Server;
let came: string[] = [];
let says4xx = '';
let count = 0;

const port = () => (inside.address() as AddressInfo).port;

beforeAll(async () => {
  inside = createServer((request, response) => {
    came.push(`${request.method} ${request.url}`);
    if (request.url!.startsWith('/moved'))
      response.writeHead(307, { location: `http://127.0.0.1:${port()}/elsewhere` }).end();
    else
      response
        .writeHead(400, { 'content-type': 'application/json' })
        .end(JSON.stringify({ error: { message: says4xx } }));
  });
  await new Promise<void>((resolve) => inside.listen(0, '127.0.0.1', resolve));
  app = await bootApp(
    { PRIVATE_PROVIDER_ADDRESSES: 'refuse', PRIVATE_WEBHOOK_ADDRESSES: 'refuse' },
    undefined,
    { lookup: names.lookup },
  );
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
beforeEach(() => {
  came = [];
});
afterAll(async () => {
  await app.close();
  inside.closeAllConnections();
  inside.close();
});

/** A name that leads outside when it is looked at first, and to this machine from then on. */
function moving(path = ''): string {
  count += 1;
  const host = `moves-${count}.example`;
  names.set(host, [PUBLIC], ['127.0.0.1']);
  return `http://${host}:${port()}${path}`;
}

async function made(tenant: TestTenant, path: string, body: unknown): Promise<{ id: string }> {
  const answer = await tenant.post(path, body);
  if (answer.status !== 201) throw new Error(`${path}: ${answer.text}`);
  return answer.body as { id: string };
}

async function service(
  type: number,
  provider: Record<string, unknown>,
  by: Record<string, string> = { 'x-api-key': `Bearer ${acme.apiKey}` },
): Promise<{ id: string; name: string; providerId: string }> {
  count += 1;
  const name = `model-${count}`;
  const create = async (path: string, body: unknown): Promise<string> => {
    const answer = await ask(app.url, 'POST', `/api/admin/${path}`, body, by);
    if (answer.status !== 201) throw new Error(answer.text);
    return (answer.body as { id: string }).id;
  };
  const providerId = await create('model-providers', {
    name,
    kind: 'openai-compatible',
    credentials: [{ apiKey: KEY }],
    ...provider,
  });
  return { id: await create('model-services', { name, model: name, type, providerId }), name, providerId };
}

const wav = () => {
  const bytes = Buffer.alloc(1_044);
  bytes.write('RIFF', 0).toString();
  bytes.writeUInt32LE(1_036, 4);
  bytes.write('WAVEfmt ', 8);
  bytes.writeUInt32LE(16, 16);
  bytes.writeUInt16LE(1, 20);
  bytes.writeUInt16LE(1, 22);
  bytes.writeUInt32LE(8_000, 24);
  bytes.writeUInt32LE(8_000, 28);
  bytes.writeUInt16LE(1, 32);
  bytes.writeUInt16LE(8, 34);
  bytes.write('data', 36);
  bytes.writeUInt32LE(1_000, 40);
  return bytes;
};

describe("a provider's name that led outside when it was saved, and leads inside now", () => {
  it('gets no request of a dialogue', async () => {
    const { id } = await service(0, { baseUrl: moving('/v1') });
    const client = await acme.send(says('hello', { modelServiceId: id }));
    await client.end();
    expect(client.last).toMatchObject({ status: 'failed', error: { code: 502, msg: WHERE } });
    expect(came).toEqual([]);
  });

  it('gets no embeddings, no image, no recording', async () => {
    const [embeds, draws, hears] = await Promise.all(
      [2, 1, 3].map((type) => service(type, { baseUrl: moving('/v1') })),
    );
    const form = new FormData();
    form.set('model', hears!.name);
    form.set('file', new Blob([wav()]), 'a.wav');
    const transcript = await fetch(`${app.url}/v1/audio/transcriptions`, {
      method: 'POST',
      headers: { authorization: `Bearer ${acme.apiKey}` },
      body: form,
    });
    for (const answer of [
      await acme.post('/v1/embeddings', { model: embeds!.name, input: 'x' }),
      await acme.post('/v1/images/generations', { model: draws!.name, prompt: 'x' }),
      { status: transcript.status, body: (await transcript.json()) as { error: { message: string } } },
    ]) {
      expect([answer.status, answer.body.error.message]).toEqual([502, WHERE]);
    }
    expect(came).toEqual([]);
  });

  it('the rival goes on with its own', async () => {
    const client = await rival.send(says('hello'));
    await client.end();
    expect(client.last).toMatchObject({ status: 'finished' });
  });
});

it("the platform's own provider may be inside; its redirect is not followed", async () => {
  says4xx = 'no such model';
  const by = { 'x-api-key': app.rootKey };
  const plain = await service(0, { baseUrl: `http://127.0.0.1:${port()}/v1` }, by);
  const answer = await acme.post('/v1/chat/completions', {
    model: plain.name,
    messages: [{ role: 'user', content: 'x' }],
  });
  expect(answer.body.error.message).toContain('no such model');
  const moved = await service(2, { baseUrl: `http://127.0.0.1:${port()}/moved` }, by);
  const redirected = await acme.post('/v1/embeddings', { model: moved.name, input: 'x' });
  expect([redirected.status, redirected.body.error.message]).toEqual([
    502,
    'The model provider answered 307.',
  ]);
  expect(came).toEqual(['POST /v1/chat/completions', 'POST /moved/embeddings']);
});

it('a provider is asked under the policy of now, not of the day it was saved', async () => {
  const lax = await bootApp({ PRIVATE_PROVIDER_ADDRESSES: 'allow' }, app.databaseUrl);
  let model: string;
  try {
    const by = { 'x-api-key': `Bearer ${acme.apiKey}` };
    const baseUrl = `http://127.0.0.1:${port()}/v1`;
    const provider = await ask(
      lax.url,
      'POST',
      '/api/admin/model-providers',
      { name: 'lax', kind: 'openai-compatible', baseUrl },
      by,
    );
    expect(provider.status).toBe(201);
    model = 'saved-under-another';
    const { id: providerId } = provider.body as { id: string };
    await made(acme, '/api/admin/model-services', { name: model, model, type: 2, providerId });
    await ask(lax.url, 'POST', '/v1/embeddings', { model, input: 'x' }, by);
    expect(came).toHaveLength(1);
  } finally {
    await lax.close();
  }
  const answer = await acme.post('/v1/embeddings', { model, input: 'x' });
  expect([answer.status, answer.body.error.message, came.length]).toEqual([502, WHERE, 1]);
  // The operator of the platform is no exception where the provider is a tenant's.
  const root = { 'x-api-key': app.rootKey, 'tenant-id': acme.id };
  const body = { name: 'x', kind: 'openai-compatible', baseUrl: `http://127.0.0.1:${port()}/v1` };
  expect((await ask(app.url, 'POST', '/api/admin/model-providers', body, root)).status).toBe(400);
});

// Each of them passes a check of how addresses look, and throws where one is made of it.
it.each(['http://[2001:db8::1%eth0]/', 'http://8.8.8.8:99999/', 'http://example.com\ud800/'])(
  'an address that no client takes is 400 wherever it is written: %j',
  async (url) => {
    const lax = await bootApp({}, app.databaseUrl);
    try {
      for (const at of [app.url, lax.url]) {
        const by = { 'x-api-key': acme.apiKey };
        const provider = { name: 'x', kind: 'openai-compatible', baseUrl: url };
        const tool = { modelServiceId: acme.serviceId, tools: [{ type: 'mcp', name: 'docs', url }] };
        const hook = { url, events: ['message.created'] };
        const answers = [
          await ask(at, 'POST', '/api/admin/model-providers', provider, by),
          await ask(at, 'PATCH', `/api/admin/model-providers/${acme.providerId}`, { baseUrl: url }, by),
          await ask(at, 'POST', '/api/v1/im/webhooks', hook, by),
          await ask(at, 'POST', `/api/admin/assistants/${acme.assistantId}/versions`, tool, by),
        ];
        expect(answers.map(({ status }) => status)).toEqual([400, 400, 400, 400]);
      }
    } finally {
      await lax.close();
    }
  },
);

it('a tool, a webhook and a recording are not looked for inside either', async () => {
  const spec = {
    openapi: '3.1.0',
    info: { title: 'x', version: '1' },
    paths: { '/orders': { get: { operationId: 'orders' } } },
  };
  const { tools } = await acme
    .post(`/api/admin/assistants/${acme.assistantId}/versions`, {
      modelServiceId: acme.serviceId,
      tools: [
        { type: 'mcp', name: 'docs', url: `${moving('/mcp')}?token=abcdef` },
        { type: 'openapi', name: 'shop', spec, baseUrl: moving() },
      ],
    })
    .then(({ body }) => body as { tools: { url?: string }[] });
  // Neither is the query of an address for everybody.
  expect(tools[0]!.url).toMatch(/\/mcp\?token=••••$/);

  const im = new Im(app.url, acme.apiKey);
  await im.post('/webhooks', { url: moving('/hook'), events: ['message.created'] });
  await im.say('ann', 'bob', 'hello');
  await eventually(async () => {
    const rows = await query<{ last_error: string | null }>(
      app.databaseUrl,
      'select last_error from webhook_deliveries',
    );
    return rows.some(({ last_error: error }) => error?.includes('private address'));
  });

  const hears = await service(3, { baseUrl: 'http://8.8.8.8/v1' });
  names.set('sound.example', ['127.0.0.1', PUBLIC]);
  const path = '/api/copywriting/message/audio-to-text';
  const answer = await acme.post(path, {
    url: `http://sound.example:${port()}/a.wav`,
    modelServiceId: hears.id,
  });
  expect(answer.body).toMatchObject({ msg: 'url: could not be fetched' });
  expect(came).toEqual([]);
});

describe('what a provider repeats of its key', () => {
  const by = () => ({ 'x-api-key': app.rootKey });
  const baseUrl = () => `http://127.0.0.1:${port()}/v1?gateway=q7w8e9r0t1y2`;
  it.each([
    ['whole', `bad key ${KEY}`, 'bad key [key]'],
    ['a part of it', `bad key ${KEY.slice(0, 12)} of ${KEY.slice(-9)}`, 'bad key [key] of [key]'],
    ['masked', `bad key sk-li******${KEY.slice(-4)}`, 'bad key [key]'],
    ['base64', `bad key <${Buffer.from(KEY).toString('base64')}>`, 'bad key <[key]>'],
    ['of a header', 'gateway token tok_55aa66bb77cc is', 'gateway token [key] is'],
    ['of the address', 'no gateway q7w8e9r0t1y2', 'no gateway [key]'],
  ])('%s is taken out, of a chat and of embeddings', async (_, said, shown) => {
    says4xx = said;
    const headers = { 'x-gateway-token': 'tok_55aa66bb77cc' };
    const [chats, embeds] = await Promise.all([
      service(0, { baseUrl: baseUrl(), headers }, by()),
      service(2, { baseUrl: baseUrl(), headers }, by()),
    ]);
    const chat = await acme.post('/v1/chat/completions', {
      model: chats.name,
      messages: [{ role: 'user', content: 'x' }],
    });
    const embedding = await acme.post('/v1/embeddings', { model: embeds.name, input: 'x' });
    for (const { body } of [chat, embedding])
      expect(body.error.message).toBe(`The model provider answered 400: ${shown}`);
  });
});

describe('an address of a provider', () => {
  const baseUrl = 'http://8.8.8.8/v1?key=hidden-key-1&v=2';
  const SHOWN = 'http://8.8.8.8/v1?key=••••&v=••••';
  const create = () =>
    made(acme, '/api/admin/model-providers', {
      name: 'asked by query',
      kind: 'openai-compatible',
      baseUrl,
      credentials: [{ apiKey: KEY }],
      headers: { 'x-token': KEY },
    });
  const stored = async (id: string) =>
    (await query(app.databaseUrl, 'select base_url from model_providers where id = $1', [id]))[0]!.base_url;

  it('is shown without its query, in answers and in the audit log, and sent back means itself', async () => {
    const provider = await create();
    const path = `/api/admin/model-providers/${provider.id}`;
    const answers = [
      await acme.get(path),
      await acme.patch(path, { baseUrl: SHOWN, name: 'renamed' }),
      await acme.get('/api/admin/model-providers?limit=100'),
      await acme.get('/api/admin/audit-log'),
    ];
    expect(answers[1]!.body).toMatchObject({ baseUrl: SHOWN, name: 'renamed' });
    for (const { status, text } of answers) {
      expect([status, text.includes(SHOWN)]).toEqual([200, true]);
      expect(text).not.toContain('hidden-key-1');
    }
    const rows = await query(app.databaseUrl, 'select to_jsonb(t)::text as row from audit_log t');
    expect(JSON.stringify(rows)).not.toContain('hidden-key-1');
    expect(await stored(provider.id)).toBe(baseUrl);
    expect((await rival.get(path)).status).toBe(404);
  });

  it.each([
    ['baseUrl', { baseUrl: 'http://8.8.8.8/v2?key=••••' }],
    ['credentials', { credentials: [{ apiKey: '••••' }] }],
  ])('%s that holds a mark of what is not shown: 400', async (field, change) => {
    const { id } = await create();
    const answer = await acme.patch(`/api/admin/model-providers/${id}`, change);
    expect([answer.status, answer.body.errors?.[0]?.field]).toEqual([400, field]);
    expect(await stored(id)).toBe(baseUrl);
  });

  it('moves to another origin with new credentials and headers alone', async () => {
    const { id } = await create();
    const path = `/api/admin/model-providers/${id}`;
    const to = { baseUrl: 'http://8.8.4.4/v1' };
    const credentials = [{ apiKey: 'sk-new' }];
    for (const [change, field] of [
      [to, 'credentials'],
      [{ ...to, credentials }, 'headers'],
      [{ ...to, headers: {} }, 'credentials'],
      [{ baseUrl: 'https://8.8.8.8/v1', credentials }, 'headers'],
      [{ baseUrl: 'http://8.8.8.8:81/v1', credentials }, 'headers'],
    ] as const) {
      const answer = await acme.patch(path, change);
      expect([answer.status, answer.body.errors?.[0]?.field]).toEqual([400, field]);
    }
    expect(await stored(id)).toBe(baseUrl);
    expect((await acme.patch(path, { baseUrl: 'http://8.8.8.8/v2' })).status).toBe(200);
    const moved = await acme.patch(path, { ...to, credentials, headers: {} });
    expect([moved.status, moved.body.baseUrl]).toEqual([200, to.baseUrl]);
  });
});
