import { ask, bootApp, eventually, says, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { Upstream } from '../support/upstream';

let app: TestApp;
let upstream: Upstream;
let acme: TestTenant;
let rival: TestTenant;
beforeAll(async () => {
  [app, upstream] = await Promise.all([bootApp(), Upstream.start()]);
  const prices = { service: { inputPrice: 1_000_000, outputPrice: 2_000_000 } };
  acme = await app.tenant({ baseUrl: upstream.url, model: 'acme-model', ...prices });
  rival = await app.tenant({ baseUrl: upstream.url, model: 'rival-model' });
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

const root = (path: string, headers = {}) =>
  ask(app.url, 'GET', path, undefined, { 'x-api-key': app.rootKey, ...headers });
const hour = (offset = 0) =>
  new Date((Math.floor(Date.now() / 3_600_000) + offset) * 3_600_000).toISOString();
const today = () => new Date().toISOString().slice(0, 10);
/** Reports may be a second old. */
const aSecond = () => new Promise((resolve) => setTimeout(resolve, 1_100));
const say = async (tenant: TestTenant, userId: string) => {
  const client = await tenant.send(says('hello'), { headers: { 'user-id': userId } });
  await client.end();
  return client;
};
const chat = (tenant: TestTenant) =>
  tenant.post('/v1/chat/completions', { model: 'service', messages: [{ role: 'user', content: 'x' }] });

describe('the report', () => {
  beforeAll(async () => {
    await say(acme, 'ann');
    await say(acme, 'ann');
    await say(acme, '=bob');
    await chat(acme);
    await say(rival, 'ann');
    await aSecond();
  });

  it('sums up by whatever is asked for', async () => {
    const total = await acme.get('/api/admin/usage');
    expect(total.body.data).toEqual([
      {
        requests: 4,
        attempts: 4,
        promptTokens: 28,
        completionTokens: 20,
        totalTokens: 48,
        credits: 68,
        estimated: 0,
      },
    ]);
    const groups = 'tenant,key,model,assistant,day,wire';
    const grouped = await acme.get(`/api/admin/usage?groupBy=${groups}&from=${hour(-1)}`);
    const same = {
      tenant: acme.id,
      key: acme.keyId,
      model: 'acme-model',
      modelServiceId: acme.serviceId,
      day: today(),
    };
    expect(grouped.body.data).toHaveLength(2);
    expect(grouped.body.data).toEqual(
      expect.arrayContaining([
        expect.objectContaining({ ...same, assistant: acme.assistantId, wire: 'dialogue', requests: 3 }),
        expect.objectContaining({ ...same, assistant: null, wire: 'openai', requests: 1 }),
      ]),
    );
    const users = await acme.get('/api/admin/usage?groupBy=user,hour');
    expect(users.body.data).toEqual(
      expect.arrayContaining([expect.objectContaining({ user: 'ann', hour: hour(), requests: 2 })]),
    );
  });

  it('filters', async () => {
    const requests = async (filter: string) =>
      (await acme.get(`/api/admin/usage?${filter}`)).body.data[0].requests as number;
    expect(await requests('user=ann')).toBe(2);
    expect(await requests('wire=openai')).toBe(1);
    expect(await requests('model=acme-model')).toBe(4);
    expect(await requests(`model=${acme.serviceId}`)).toBe(4);
    expect(await requests(`assistant=${acme.assistantId}`)).toBe(3);
    expect(await requests('key=1')).toBe(0);
    expect(await requests(`to=${hour()}&from=${hour(-24)}`)).toBe(0);
  });

  it('is CSV for who asks for it, and no spreadsheet computes it', async () => {
    const wanted = await acme.get('/api/admin/usage?groupBy=user&wire=dialogue', { accept: 'text/csv' });
    expect(wanted.headers['content-type']).toMatch(/^text\/csv/);
    expect(wanted.text).toBe(
      'user,requests,attempts,promptTokens,completionTokens,totalTokens,credits,estimated\r\n' +
        "'=bob,1,1,7,5,12,17,0\r\nann,2,2,14,10,24,34,0\r\n",
    );
    expect((await acme.get('/api/admin/usage?format=csv')).text).toMatch(/^requests,/);
  });

  it.each([
    ['from=2026-01-01T00:30:00Z', 'from'],
    ['from=yesterday', 'from'],
    ['from=2024-01-01&to=2026-01-01', 'to'],
    ['from=2026-01-02&to=2026-01-01', 'from'],
    ['from=March%201,%202026', 'from'],
    ['to=2026-02-30', 'to'],
    ['groupBy=colour', 'groupBy'],
    ['gruopBy=day', 'gruopBy'],
    ['wire=telex', 'wire'],
  ])('refuses %s', async (asked, field) => {
    const answer = await acme.get(`/api/admin/usage?${asked}`);
    expect([answer.status, answer.body.errors?.[0]?.field]).toEqual([400, field]);
  });

  it('tells who sends `to` alone what `from` is then', async () => {
    const answer = await acme.get('/api/admin/usage?to=2026-01-01');
    expect([answer.status, answer.body.detail]).toEqual([
      400,
      'from: is by default the start of this month, which is not before to: send from, too',
    ]);
  });

  it('takes blanks between groups', async () => {
    const spaced = await acme.get('/api/admin/usage?groupBy=model,%20user');
    expect(spaced.body).toEqual((await acme.get('/api/admin/usage?groupBy=model,user')).body);
    expect(spaced.body.data).toHaveLength(3);
    const twice = await acme.get('/api/admin/usage?groupBy=model,model');
    expect(twice.body.detail).toBe('groupBy: must not hold the same twice');
  });

  it('refuses two tenants at once', async () => {
    const both = (tenant: string) => root(`/api/admin/usage?tenant=${tenant}`, { 'tenant-id': rival.id });
    const answer = await both(acme.id);
    expect([answer.status, answer.body.errors?.[0]?.field]).toEqual([400, 'tenant']);
    expect((await both(rival.id)).body.data[0].requests).toBe(1);
  });

  it("shows a tenant its own, the platform everybody's", async () => {
    expect((await rival.get('/api/admin/usage?groupBy=tenant')).body.data).toMatchObject([
      { tenant: rival.id, requests: 1 },
    ]);
    expect((await rival.get(`/api/admin/usage?tenant=${acme.id}`)).status).toBe(404);
    expect((await rival.get('/api/admin/usage', { 'tenant-id': acme.id })).status).toBe(401);
    const all = (await root('/api/admin/usage?groupBy=tenant')).body.data as { tenant: string }[];
    expect(all.map(({ tenant }) => tenant).sort()).toEqual([acme.id, rival.id].sort());
    expect((await root(`/api/admin/usage?tenant=${acme.id}`)).body.data[0].requests).toBe(4);
    expect((await root('/api/admin/usage', { 'tenant-id': rival.id })).body.data[0].requests).toBe(1);
    const reader = await app.tenant({ scopes: ['usage'] });
    expect((await reader.get('/api/admin/usage')).status).toBe(200);
    const talker = await app.tenant({ scopes: ['dialogue'] });
    expect((await talker.get('/api/admin/usage')).status).toBe(403);
  });

  it('is bounded in rows', async () => {
    const big = await app.tenant();
    await query(
      app.databaseUrl,
      `insert into usage_ledger (message_id, tenant_id, user_id, model_service_id, attempts, prompt_tokens,
         completion_tokens, total_tokens, estimated, credits, outcome, latency_ms)
       select n, $1, 'user ' || n, 1, 1, 1, 1, 2, true, 0.5, 'finished', 1 from generate_series(1, 10001) as n`,
      [big.id],
    );
    await aSecond();
    const answer = await big.get('/api/admin/usage?groupBy=user');
    expect([answer.status, answer.body.errors[0].field]).toEqual([400, 'groupBy']);
    expect((await big.get('/api/admin/usage')).body.data).toMatchObject([
      { requests: 10_001, totalTokens: 20_002, credits: 5_000.5, estimated: 10_001 },
    ]);
    // Changed, and come late into an hour that is over: added up all the same.
    await query(
      app.databaseUrl,
      `insert into usage_ledger (message_id, tenant_id, user_id, model_service_id, attempts, prompt_tokens,
         completion_tokens, total_tokens, estimated, credits, outcome, latency_ms, created_at)
       values (20000, $1, 'late', 1, 1, 1, 1, 100, true, 0.5, 'finished', 1, now() - interval '3 hours')`,
      [big.id],
    );
    await aSecond();
    const late = await big.get(`/api/admin/usage?user=late&from=${hour(-5)}`);
    expect(late.body.data).toMatchObject([{ requests: 1, totalTokens: 100 }]);
  });
});

describe('prices', () => {
  it('count from their date on, and what was used keeps its own', async () => {
    const tenant = await app.tenant({ baseUrl: upstream.url, model: 'priced' });
    const path = `/api/admin/model-services/${tenant.serviceId}`;
    const ledger = () =>
      query(
        app.databaseUrl,
        `select model, wire, input_price::float8 as i, output_price::float8 as o, credits::float8 from usage_ledger
         where tenant_id = $1 order by message_id`,
        [tenant.id],
      );
    const change = (body: object) => ask(app.url, 'PATCH', path, body, { 'x-api-key': tenant.apiKey });
    await say(tenant, 'u');
    expect((await change({ inputPrice: 1_000_000 })).body).toMatchObject({
      inputPrice: 1_000_000,
      outputPrice: 0,
    });
    await aSecond();
    await say(tenant, 'u');
    const effectiveFrom = new Date(Date.now() + 1_500).toISOString();
    const added = await tenant.post(`${path}/prices`, {
      effectiveFrom,
      inputPrice: 0,
      outputPrice: 3_000_000,
    });
    expect([added.status, added.body]).toEqual([
      201,
      expect.objectContaining({ effectiveFrom, inputPrice: 0, outputPrice: 3_000_000 }),
    ]);
    await say(tenant, 'u');
    await new Promise((resolve) => setTimeout(resolve, 2_600));
    await say(tenant, 'u');
    await chat(tenant);
    expect(await ledger()).toEqual([
      { model: 'priced', wire: 'dialogue', i: 0, o: 0, credits: 0 },
      { model: 'priced', wire: 'dialogue', i: 1_000_000, o: 0, credits: 7 },
      { model: 'priced', wire: 'dialogue', i: 1_000_000, o: 0, credits: 7 },
      { model: 'priced', wire: 'dialogue', i: 0, o: 3_000_000, credits: 15 },
      { model: 'priced', wire: 'openai', i: 0, o: 3_000_000, credits: 15 },
    ]);
    expect((await tenant.get(path)).body).toMatchObject({ inputPrice: 0, outputPrice: 3_000_000 });
    const prices = (await tenant.get(`${path}/prices`)).body.data as { inputPrice: number }[];
    expect(prices.map(({ inputPrice }) => inputPrice)).toEqual([0, 1_000_000, 0]);
    // The service goes; what it answered keeps its name and price.
    await ask(app.url, 'DELETE', path, undefined, { 'x-api-key': tenant.apiKey });
    await aSecond();
    const report = await tenant.get('/api/admin/usage?groupBy=model');
    expect(report.body.data).toMatchObject([{ model: 'priced', requests: 5, credits: 44 }]);
  });

  it('can not be set for the past, nor for a service of another owner', async () => {
    const path = `/api/admin/model-services/${acme.serviceId}/prices`;
    const price = { effectiveFrom: '2020-01-01T00:00:00Z', inputPrice: 1, outputPrice: 1 };
    const past = await acme.post(path, price);
    expect([past.status, past.body.errors[0].field]).toEqual([400, 'effectiveFrom']);
    expect((await acme.post(path, { ...price, inputPrice: -1 })).status).toBe(400);
    const future = { ...price, effectiveFrom: '2099-01-01T00:00:00Z' };
    expect((await rival.post(path, future)).status).toBe(404);
    expect((await rival.get(path)).status).toBe(404);
    const log = await acme.get('/api/admin/audit-log?limit=200');
    await acme.post(path, future);
    const again = await acme.get('/api/admin/audit-log?limit=200');
    expect(again.body.data.length).toBe((log.body.data.length as number) + 1);
    expect(again.body.data[0]).toMatchObject({ action: 'create', resource: 'model-price' });
  });

  it('to come can be taken back, and no others', async () => {
    const tenant = await app.tenant({ baseUrl: upstream.url, model: 'taken-back' });
    const path = `/api/admin/model-services/${tenant.serviceId}/prices`;
    const remove = (time: string, who = tenant, service = path) =>
      ask(app.url, 'DELETE', `${service}/${time}`, undefined, { 'x-api-key': who.apiKey });
    const price = { effectiveFrom: '2099-01-01T00:00:00.000Z', inputPrice: 1, outputPrice: 2 };
    const { body: added } = await tenant.post(path, price);
    const [, present] = (await tenant.get(path)).body.data as { effectiveFrom: string }[];
    for (const time of [present!.effectiveFrom, '2099-01-02', '2099', 'never'])
      expect([time, (await remove(time)).status]).toEqual([time, 404]);
    expect((await remove(price.effectiveFrom, rival)).status).toBe(404);
    expect((await tenant.get(path)).body.data).toHaveLength(2);
    const removed = await remove('2099-01-01T01:00:00+01:00');
    expect([removed.status, removed.body]).toEqual([200, added]);
    expect((await remove(price.effectiveFrom)).status).toBe(404);
    expect((await tenant.get(path)).body.data).toEqual([present]);
    const log = await tenant.get('/api/admin/audit-log?limit=1');
    expect(log.body.data).toMatchObject([
      { action: 'delete', resource: 'model-price', resourceId: tenant.serviceId, before: price, after: null },
    ]);
  });

  it('of the platform are taken back by the platform alone', async () => {
    const send = (method: string, path: string, body?: object) =>
      ask(app.url, method, path, body, { 'x-api-key': app.rootKey });
    const provider = await send('POST', '/api/admin/model-providers', { name: 'p', kind: 'builtin' });
    const shared = { name: 'shared', providerId: provider.body.id as string, model: 'demo' };
    const service = await send('POST', '/api/admin/model-services', shared);
    const path = `/api/admin/model-services/${service.body.id}/prices`;
    await send('POST', path, { effectiveFrom: '2099-01-01', inputPrice: 1, outputPrice: 2 });
    const theirs = await ask(app.url, 'DELETE', `${path}/2099-01-01`, undefined, {
      'x-api-key': acme.apiKey,
    });
    expect(theirs.status).toBe(404);
    expect((await send('DELETE', `${path}/2099-01-01`)).status).toBe(200);
    expect((await send('GET', path)).body.data).toHaveLength(1);
  });

  it('come whole: what would page through them is refused', async () => {
    const path = `/api/admin/model-services/${acme.serviceId}/prices`;
    for (const [query, field] of [
      ['limit=1', 'limit'],
      ['cursor=1', 'cursor'],
      ['colour=red', 'colour'],
    ]) {
      const answer = await acme.get(`${path}?${query}`);
      expect([answer.status, answer.body.errors?.[0]?.field]).toEqual([400, field]);
    }
    expect((await acme.get(path)).body.nextCursor).toBeNull();
  });
});

it('knows the wire of every request', async () => {
  const tenant = await app.tenant({ baseUrl: upstream.url, model: 'wires' });
  await tenant.post('/api/v1/im/messages', {
    type: 'single',
    source: 'ann',
    target: 'agent:main',
    msg: { msgId: 1, content: 'hello' },
  });
  await tenant.post('/v1/chat/completions', {
    model: 'main',
    sessionId: 's',
    messages: [{ role: 'user', content: 'x' }],
  });
  const wires = await eventually(async () => {
    const rows = await query<{ wire: string }>(
      app.databaseUrl,
      'select wire from usage_ledger where tenant_id = $1 order by wire',
      [tenant.id],
    );
    return rows.length === 2 && rows.map(({ wire }) => wire);
  });
  expect(wires).toEqual(['im', 'openai']);
});
