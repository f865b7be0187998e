import { ask, bootApp, eventually, says, type Answer, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { gate, Upstream } from '../support/upstream';

let app: TestApp;
let upstream: Upstream;
let rival: TestTenant;
beforeAll(async () => {
  [app, upstream] = await Promise.all([bootApp(), Upstream.start()]);
  rival = await app.tenant({ baseUrl: upstream.url, model: 'rival' });
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

let models = 0;
/** A tenant whose model is its own, so that what the upstream saw is its own. */
async function limited(limits: object, settings: object = {}): Promise<TestTenant & { model: string }> {
  const model = `limited-${(models += 1)}`;
  const tenant = await app.tenant({ baseUrl: upstream.url, model, ...settings });
  await limit(`/api/admin/tenants/${tenant.id}`, limits);
  return { ...tenant, model };
}

/** In force when it returns: limits are known within a second. */
async function limit(path: string, limits: object): Promise<void> {
  const answer = await ask(app.url, 'PATCH', path, { limits }, { 'x-api-key': app.rootKey });
  expect(answer.status).toBe(200);
  await new Promise((resolve) => setTimeout(resolve, 1_000));
}

const chat = (tenant: TestTenant, more: object = {}, headers: Record<string, string> = {}): Promise<Answer> =>
  ask(
    app.url,
    'POST',
    '/v1/chat/completions',
    { model: 'service', messages: [{ role: 'user', content: 'hello' }], ...more },
    { authorization: `Bearer ${tenant.apiKey}`, ...headers },
  );
const said = async (tenant: TestTenant, body: object = says('hello'), headers = {}) => {
  const client = await tenant.send(body, { headers });
  const events = await client.end();
  return { client, events, status: client.status };
};
const counters = (tenant: TestTenant) =>
  query<{ scope: string; period: string; requests: string; tokens: string; credits: string }>(
    app.databaseUrl,
    'select scope, period, requests, tokens, credits::float8 from usage_counters where tenant_id = $1 order by scope, period',
    [tenant.id],
  );
const open = async (tenant: TestTenant) =>
  (await query(app.databaseUrl, 'select 1 from usage_reservations where tenant_id = $1', [tenant.id])).length;

it('costs a tenant without limits nothing: no count, no reservation', async () => {
  const tenant = await app.tenant({ baseUrl: upstream.url, model: 'free' });
  await said(tenant);
  expect((await chat(tenant)).status).toBe(200);
  expect(await counters(tenant)).toEqual([]);
});

describe('requests a minute', () => {
  it('are refused past the limit in the shape of each wire, and nobody else is', async () => {
    const tenant = await limited({ requestsPerMinute: 2 });
    expect((await said(tenant)).status).toBe(200);
    expect((await chat(tenant)).status).toBe(200);
    const refused = await tenant.send(says('one too many'));
    expect(refused.status).toBe(429);
    const body = (await refused.json()) as { code: number; msg: string };
    expect(body).toEqual({ code: 429, msg: expect.stringMatching(/2 requests a minute; 0 left/) as string });
    const { headers } = refused.response;
    expect(Number(headers['retry-after'])).toBeGreaterThan(0);
    expect(Number(headers['retry-after'])).toBeLessThanOrEqual(60);
    expect(headers).toMatchObject({ 'x-ratelimit-limit': '2', 'x-ratelimit-remaining': '0' });
    const openai = await chat(tenant);
    expect([openai.status, openai.body.error.code, openai.headers['x-should-retry']]).toEqual([
      429,
      'rate_limit_exceeded',
      'true',
    ]);
    // Nothing was stored and the provider was not asked.
    expect(upstream.seen(tenant.model)).toHaveLength(2);
    const dialogues = await query(app.databaseUrl, 'select 1 from dialogues where tenant_id = $1', [
      tenant.id,
    ]);
    expect(dialogues).toHaveLength(1);
    expect((await said(rival)).status).toBe(200);
  });

  it('begin anew with the next minute', async () => {
    const tenant = await limited({ requestsPerMinute: 1 });
    expect((await said(tenant)).status).toBe(200);
    expect((await said(tenant)).status).toBe(429);
    await query(
      app.databaseUrl,
      `update usage_counters set starts_at = starts_at - interval '1 minute' where tenant_id = $1`,
      [tenant.id],
    );
    expect((await said(tenant)).status).toBe(200);
  });
});

describe('a day and a month', () => {
  it('are a quota of another kind', async () => {
    const tenant = await limited({ requestsPerDay: 1, requestsPerMonth: 5 });
    expect((await chat(tenant)).status).toBe(200);
    const refused = await chat(tenant);
    expect(refused.status).toBe(429);
    expect(refused.body.error).toMatchObject({ type: 'insufficient_quota', code: 'insufficient_quota' });
    expect(refused.headers['x-should-retry']).toBe('false');
    const midnight = new Date(new Date().setUTCHours(24, 0, 0, 0));
    expect(refused.body.error.message).toContain(midnight.toISOString());
    expect(refused.headers['x-ratelimit-scope']).toBe('tenant; requests; day');
    expect((await said(tenant)).status).toBe(429);
  });

  it('of credits count what the prices make of tokens', async () => {
    const tenant = await limited(
      { creditsPerMonth: 100 },
      { service: { inputPrice: 1_000_000, outputPrice: 2_000_000, parameters: { max_tokens: 30 } } },
    );
    // Reserved: a prompt of about twenty and 2 × 30. Used, as the upstream tells it: 7 and 2 × 5.
    expect((await said(tenant)).status).toBe(200);
    expect(await counters(tenant)).toMatchObject([{ scope: 'tenant', period: 'month', credits: 17 }]);
    expect((await said(tenant)).status).toBe(200);
    expect((await said(tenant)).status).toBe(429);
    expect(await open(tenant)).toBe(0);
  });
});

describe('tokens', () => {
  it('are reserved before the provider is asked, and settled to what was used', async () => {
    const tenant = await limited({ tokensPerDay: 1_000 });
    const { opened, open: go } = gate();
    upstream.on(tenant.model, async (exchange) => {
      await exchange.piece('so');
      await opened;
      await exchange.done({ prompt_tokens: 11, completion_tokens: 22 });
    });
    const asked = { max_tokens: 600 };
    const first = chat(tenant, asked);
    await eventually(async () => upstream.seen(tenant.model).length === 1);
    const [held] = await counters(tenant);
    expect(Number(held!.tokens)).toBeGreaterThan(600);
    // A second one of that size does not fit beside it; a small one does.
    const second = await chat(tenant, asked);
    expect([second.status, second.body.error.code]).toEqual([429, 'insufficient_quota']);
    const third = chat(tenant, { max_tokens: 50 });
    await eventually(async () => upstream.seen(tenant.model).length === 2);
    go();
    expect((await Promise.all([first, third])).map(({ status }) => status)).toEqual([200, 200]);
    expect(await counters(tenant)).toMatchObject([{ requests: '2', tokens: '66' }]);
    expect(await open(tenant)).toBe(0);
    expect((await chat(tenant, asked)).status).toBe(200);
  });

  it('are given back for an attempt that was refused otherwise, and for a repeated Idempotency-Key', async () => {
    const tenant = await limited({ tokensPerDay: 100_000, requestsPerDay: 10 });
    const key = { 'idempotency-key': 'once' };
    const { client } = await said(tenant, says('a'), key);
    expect((await said(tenant, says('a'), key)).status).toBe(200);
    expect((await said(tenant, says('x', { id: '1' }))).status).toBe(404);
    expect((await said(tenant, says('x', { id: client.record.id as string }, '1'))).status).toBe(400);
    expect(await counters(tenant)).toMatchObject([{ requests: '1', tokens: '12' }]);
    // The whole branch counts in an existing dialogue.
    expect((await said(tenant, says('b', { id: client.record.id as string }))).status).toBe(200);
    expect(await counters(tenant)).toMatchObject([{ requests: '2', tokens: '24' }]);
  });
});

describe('a key and a user', () => {
  it('have limits of their own, each user its own count', async () => {
    const tenant = await limited({ userRequestsPerDay: 1 });
    expect((await said(tenant, says('a'), { 'user-id': 'ann' })).status).toBe(200);
    expect((await said(tenant, says('a'), { 'user-id': 'ann' })).status).toBe(429);
    expect((await said(tenant, says('a'), { 'user-id': 'bob' })).status).toBe(200);
  });

  it('of a key bind this key alone', async () => {
    const tenant = await limited({});
    const keys = `/api/admin/tenants/${tenant.id}/api-keys`;
    const other = await tenant.post(keys, {
      name: 'other',
      scopes: ['dialogue'],
      limits: { requestsPerDay: 1, userRequestsPerDay: 1 },
    });
    const used = { ...tenant, apiKey: other.body.key as string };
    expect((await chat(used)).status).toBe(200);
    const refused = await chat(used);
    expect(refused.body.error.message).toMatch(/this key/);
    expect((await chat(tenant)).status).toBe(200);
    expect((await counters(tenant)).map(({ scope }) => scope)).toEqual(['key', 'key-user']);
  });
});

it('refuses a limit that is no number, or none there is', async () => {
  const tenant = await app.tenant();
  for (const limits of [
    { requestsPerDay: '5' },
    { userTokensPerDay: -1 },
    { creditsPerDay: null },
    { tokensPerMinute: 0.5 },
    { tokenPerMinute: 5 },
  ]) {
    const answer = await ask(
      app.url,
      'PATCH',
      `/api/admin/tenants/${tenant.id}`,
      { limits },
      { 'x-api-key': app.rootKey },
    );
    expect([answer.status, answer.body.errors?.[0]?.field]).toEqual([400, 'limits']);
  }
});

it('tells a user of instant messaging in the assistant’s answer', async () => {
  const tenant = await limited({ requestsPerDay: 0 });
  const sent = await tenant.post('/api/v1/im/messages', {
    type: 'single',
    source: 'ann',
    target: 'agent:main',
    msg: { msgId: 1, content: 'hello' },
  });
  expect(sent.status).toBeLessThan(300);
  const { conversationId } = sent.body as { conversationId: string };
  const answer = await eventually(async () => {
    const log = await tenant.get(`/api/v1/im/conversations/${conversationId}/messages`);
    return log.body.data.length === 2 && (log.body.data[1] as object);
  });
  expect(answer).toMatchObject({
    msg: { status: 'failed', content: expect.stringMatching(/limit/) as string },
  });
  expect(upstream.seen(tenant.model)).toEqual([]);
});

it('stops what models make in one piece, too', async () => {
  const tenant = await limited({ requestsPerDay: 0 });
  const service = { name: 'vectors', model: 'vectors', type: 2, providerId: tenant.providerId };
  expect((await tenant.post('/api/admin/model-services', service)).status).toBe(201);
  const answer = await ask(
    app.url,
    'POST',
    '/v1/embeddings',
    { model: 'vectors', input: 'x' },
    { authorization: `Bearer ${tenant.apiKey}` },
  );
  expect([answer.status, answer.body.error.code]).toEqual([429, 'insufficient_quota']);
});

it('counts of a request whose process died its prompt, and gives back the rest', async () => {
  const tenant = await limited({ tokensPerDay: 10_000 });
  upstream.on(tenant.model, () => new Promise(() => undefined));
  void chat(tenant).catch(() => undefined);
  await eventually(async () => (await open(tenant)) === 1);
  await query(app.databaseUrl, 'update open_requests set incarnation = 1 where tenant_id = $1', [tenant.id]);
  // One that nobody has ended for a month is no hindrance, and is ended, too.
  await query(
    app.databaseUrl,
    `insert into open_requests (tenant_id, id, incarnation, user_id, model_service_id, model, input_price, output_price, wire, prompt_tokens, begun_at)
     values ($1, 1, 1, 'old', 1, '', 0, 0, 'speech', 1, now() - interval '30 days')`,
    [tenant.id],
  );
  await eventually(async () => (await open(tenant)) === 0, 25_000);
  const [row] = await query<{ tokens: number }>(
    app.databaseUrl,
    `select prompt_tokens as tokens from usage_ledger
     where tenant_id = $1 and outcome = 'interrupted' and estimated and completion_tokens = 0 and wire = 'openai'`,
    [tenant.id],
  );
  await eventually(
    async () =>
      (
        await query(app.databaseUrl, 'select 1 from usage_ledger where tenant_id = $1 and message_id = 1', [
          tenant.id,
        ])
      ).length === 1,
  );
  expect(row!.tokens).toBeGreaterThan(0);
  expect(await counters(tenant)).toMatchObject([{ requests: '1', tokens: String(row!.tokens) }]);
}, 40_000);
