import { idAtTime } from '../../src/common';
import { NodeRegistry } from '../../src/database';
import { ask, bootApp, eventually, SseClient, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { gate, Upstream, type Script } from '../support/upstream';

/** "Generation apps" of protocols/assistant-platform.md: texts. */
let app: TestApp;
let upstream: Upstream;
let acme: TestTenant;
let rival: TestTenant;
let count = 0;

const POEM = {
  name: 'Poem',
  description: 'A poem about anything',
  type: 0,
  promptTemplate: 'Write {{lines}} lines about {{topic}} in a {{mood}} mood. {{ note }}',
  variables: [
    { name: 'topic', label: 'Topic', type: 'text', required: true, maxLength: 40 },
    { name: 'lines', type: 'number', default: 4 },
    { name: 'mood', type: 'select', choices: ['glad', 'sad'], default: 'glad' },
    { name: 'note', type: 'paragraph' },
  ],
  parameters: { temperature: 0.5 },
};

beforeAll(async () => {
  [app, upstream] = await Promise.all([bootApp(), Upstream.start()]);
  acme = await app.tenant({
    baseUrl: upstream.url,
    model: 'poet',
    service: { inputPrice: 1_000_000, outputPrice: 2_000_000, parameters: { temperature: 1, top_p: 0.9 } },
    provider: { firstPieceTimeoutMs: 1_000, idleTimeoutMs: 1_000, totalTimeoutMs: 3_000 },
  });
  rival = await app.tenant();
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

const admin = (method: string, path: string, body?: unknown, tenant = acme) =>
  ask(app.url, method, `/api/admin/generation-apps${path}`, body, { 'x-api-key': tenant.apiKey });

async function made(input: Record<string, unknown> = {}, tenant = acme): Promise<string> {
  const { status, body, text } = await admin(
    'POST',
    '',
    { ...POEM, modelServiceId: tenant.serviceId, ...input },
    tenant,
  );
  if (status !== 201) throw new Error(text);
  return (body as { id: string }).id;
}

/** An app on a model whose answers this test writes. */
async function scripted(script: Script, input: Record<string, unknown> = {}) {
  count += 1;
  const model = `poet-${count}`;
  upstream.on(model, script);
  const { body } = await acme.post('/api/admin/model-services', {
    name: model,
    model,
    providerId: acme.providerId,
    inputPrice: 1_000_000,
    outputPrice: 2_000_000,
  });
  const serviceId = (body as { id: string }).id;
  return { model, serviceId, id: await made({ ...input, modelServiceId: serviceId }) };
}

const generate = (id: string, params: unknown, headers: Record<string, string> = {}, more: object = {}) =>
  acme.post(`/api/copywriting/userCopywriting/${id}`, { params, ...more }, headers);
const stream = (id: string, params: unknown, headers: Record<string, string> = {}) =>
  SseClient.open(
    app.url,
    'POST',
    `/copywriting/userCopywriting/${id}`,
    { params },
    { 'x-api-key': acme.apiKey, ...headers },
  );
const ledger = (recordId: string) =>
  query<Record<string, unknown>>(
    app.databaseUrl,
    `select tenant_id, user_id, key_id, model_service_id, total_tokens, estimated, credits::float, outcome, attempts
     from usage_ledger where message_id = $1`,
    [recordId],
  );
const stored = async (recordId: string) =>
  (await acme.get(`/api/copywriting/userCopywriting/${recordId}`)).body.data as Record<string, unknown>;

describe('an app over the admin wire', () => {
  it('is made whole, read, listed, changed and deleted, each write in the audit log', async () => {
    const { body } = await admin('POST', '', { ...POEM, modelServiceId: acme.serviceId });
    expect(body).toMatchObject({
      name: 'Poem',
      type: 0,
      tenantId: acme.id,
      parameters: { temperature: 0.5 },
    });
    expect(body.variables).toEqual([
      {
        name: 'topic',
        label: 'Topic',
        type: 'text',
        required: true,
        default: null,
        choices: [],
        maxLength: 40,
      },
      {
        name: 'lines',
        label: 'lines',
        type: 'number',
        required: false,
        default: 4,
        choices: [],
        maxLength: null,
      },
      {
        name: 'mood',
        label: 'mood',
        type: 'select',
        required: false,
        default: 'glad',
        choices: ['glad', 'sad'],
        maxLength: null,
      },
      {
        name: 'note',
        label: 'note',
        type: 'paragraph',
        required: false,
        default: null,
        choices: [],
        maxLength: null,
      },
    ]);
    const id = body.id as string;
    expect((await admin('GET', `/${id}`)).body).toEqual(body);
    const listed = (await admin('GET', '?limit=200')).body.data as { id: string }[];
    expect(listed.find((one) => one.id === id)).toEqual(body);
    const changed = await admin('PATCH', `/${id}`, { name: 'Ode', promptTemplate: 'On {{topic}}' });
    expect(changed.body).toMatchObject({
      id,
      name: 'Ode',
      promptTemplate: 'On {{topic}}',
      description: POEM.description,
    });
    expect((await admin('DELETE', `/${id}`)).body).toMatchObject({ id, name: 'Ode' });
    expect((await admin('GET', `/${id}`)).status).toBe(404);
    const log = (await acme.get('/api/admin/audit-log?limit=3')).body.data as Record<string, unknown>[];
    expect(log.map(({ action, resource, resourceId }) => [action, resource, resourceId])).toEqual([
      ['delete', 'generation-app', id],
      ['update', 'generation-app', id],
      ['create', 'generation-app', id],
    ]);
    expect(log[1]).toMatchObject({ before: { name: 'Poem' }, after: { name: 'Ode' } });
  });

  const variable = (more: Record<string, unknown>) => ({
    promptTemplate: 'x {{a}}',
    variables: [{ name: 'a', type: 'text', ...more }],
  });
  it.each<[string, Record<string, unknown>, string]>([
    ['a template that speaks of none', { promptTemplate: 'On {{nothing}}' }, 'promptTemplate'],
    ['a name that is none', variable({ name: '1a' }), 'variables.0.name'],
    ['a name too long', variable({ name: 'a'.repeat(65) }), 'variables.0.name'],
    [
      'two of one name',
      {
        promptTemplate: 'x',
        variables: [
          { name: 'a', type: 'text' },
          { name: 'a', type: 'number' },
        ],
      },
      'variables.1.name',
    ],
    ['a type that is none', variable({ type: 'date' }), 'variables.0.type'],
    ['a select without choices', variable({ type: 'select' }), 'variables.0.choices'],
    ['choices twice', variable({ type: 'select', choices: ['x', 'x'] }), 'variables.0.choices'],
    [
      'a default that is no choice',
      variable({ type: 'select', choices: ['x'], default: 'y' }),
      'variables.0.default',
    ],
    ['a default that is no number', variable({ type: 'number', default: 'four' }), 'variables.0.default'],
    ['a default too long', variable({ maxLength: 2, default: 'abc' }), 'variables.0.default'],
    ['an unknown field', { prompt: 'x' }, 'prompt'],
    ['an unknown field of a variable', variable({ placeholder: 'x' }), 'variables.0.placeholder'],
    ['another type', { type: 2 }, 'type'],
    ['a service of another type', { type: 1 }, 'modelServiceId'],
    ['no template', { promptTemplate: '' }, 'promptTemplate'],
  ])('with %s: 400', async (_, input, field) => {
    const before = (await admin('GET', '?limit=200')).body.data as unknown[];
    const answer = await admin('POST', '', { ...POEM, modelServiceId: acme.serviceId, ...input });
    expect([answer.status, answer.body.errors?.[0]?.field]).toEqual([400, field]);
    expect((await admin('GET', '?limit=200')).body.data).toHaveLength(before.length);
  });

  it("is checked as a whole when it is changed; a rival's service is none", async () => {
    const id = await made();
    const wrong = await admin('PATCH', `/${id}`, { variables: [] });
    expect([wrong.status, wrong.body.errors[0].field]).toEqual([400, 'promptTemplate']);
    const foreign = await admin('PATCH', `/${id}`, { modelServiceId: rival.serviceId });
    expect([foreign.status, foreign.body.errors[0].field]).toEqual([400, 'modelServiceId']);
    expect((await admin('PATCH', `/${id}`, {})).body).toMatchObject({ name: 'Poem' });
  });

  it('is not there for a rival', async () => {
    const id = await made();
    for (const [method, body] of [['GET'], ['PATCH', { name: 'mine' }], ['DELETE']] as const)
      expect((await admin(method, `/${id}`, body, rival)).status).toBe(404);
    expect((await admin('GET', '', undefined, rival)).text).not.toContain(id);
    const { apiKey } = await app.tenant({ scopes: ['dialogue'] });
    const spy = { 'x-api-key': apiKey };
    expect((await ask(app.url, 'GET', '/api/admin/generation-apps', undefined, spy)).status).toBe(403);
  });
});

describe('template/user/{id}', () => {
  it('shows the form and never the prompt, under both prefixes', async () => {
    const id = await made();
    for (const prefix of ['/api', '', '//api']) {
      const { body, text } = await acme.get(`${prefix}/copywriting/template/user/${id}`);
      expect(body).toMatchObject({ code: 200, msg: 'success' });
      expect(Object.keys(body.data as object)).toEqual([
        'id',
        'name',
        'description',
        'type',
        'modelServiceId',
        'variables',
      ]);
      expect(body.data).toMatchObject({ id, type: 0, modelServiceId: acme.serviceId });
      expect(text).not.toContain('mood. ');
    }
    for (const [tenant, path] of [
      [rival, id],
      [acme, '999'],
      [acme, 'x'],
    ] as const)
      expect((await tenant.get(`/api/copywriting/template/user/${path}`)).body).toEqual({
        code: 404,
        msg: expect.any(String) as unknown,
      });
  });
});

describe('a text', () => {
  it('is made of the form, once: the record, its row in the ledger, the prompt as the template has it', async () => {
    const { id, model, serviceId } = await scripted(async (e) => {
      await e.pieces('Roses ', 'are 红色.');
      await e.done({ prompt_tokens: 11, completion_tokens: 6 });
    });
    const { status, body } = await generate(
      id,
      { topic: '{{mood}} & $& 玫瑰', lines: '3', unknown: { deep: true } },
      { 'user-id': 'ann' },
    );
    expect(status).toBe(200);
    const { data } = body as { data: Record<string, unknown> };
    expect(data).toEqual({
      id: expect.stringMatching(/^\d+$/) as unknown,
      templateId: id,
      type: 0,
      result: 'Roses are 红色.',
      images: [],
      promptTokens: 11,
      completionTokens: 6,
      totalTokens: 17,
      youtaizhis: 23,
      createTime: expect.stringMatching(/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$/) as unknown,
      status: 'finished',
    });
    const [asked] = upstream.seen(model);
    expect(asked!.body).toMatchObject({
      temperature: 0.5,
      messages: [{ role: 'user', content: 'Write 3 lines about {{mood}} & $& 玫瑰 in a glad mood. ' }],
    });
    expect(await ledger(data.id as string)).toEqual([
      {
        tenant_id: acme.id,
        user_id: 'ann',
        key_id: acme.keyId,
        model_service_id: serviceId,
        total_tokens: 17,
        estimated: false,
        credits: 23,
        outcome: 'finished',
        attempts: 1,
      },
    ]);
    expect(await stored(data.id as string)).toEqual({
      ...data,
      params: { topic: '{{mood}} & $& 玫瑰', lines: 3, mood: 'glad' },
    });
  });

  it.each<[string, Record<string, unknown>, string]>([
    ['nothing of what is required', {}, 'params.topic: is required'],
    ['an empty one', { topic: '' }, 'params.topic: is required'],
    ['one too long', { topic: 'x'.repeat(41) }, 'params.topic: must be at most 40 characters long'],
    ['no choice', { topic: 'x', mood: 'angry' }, 'params.mood: must be one of the choices'],
    ['no number', { topic: 'x', lines: 'many' }, 'params.lines: must be a number'],
    ['a number that is none', { topic: 'x', lines: true }, 'params.lines: must be a number'],
    ['an object', { topic: { a: 1 } }, 'params.topic: must be a text'],
    ['NUL', { topic: 'a\0b' }, 'params.topic: must not contain NUL'],
    [
      'too much',
      { topic: 'x', note: 'x'.repeat(32_001) },
      'params.note: must be at most 32000 characters long',
    ],
    ['two mistakes', { mood: 'angry' }, 'params.topic: is required; params.mood: must be one of the choices'],
  ])('of %s: 400, nothing asked, nothing stored', async (_, params, msg) => {
    const { id, model } = await scripted(() => undefined);
    const answer = await generate(id, params);
    expect(answer.body).toEqual({ code: 400, msg });
    expect(answer.status).toBe(400);
    expect(upstream.seen(model)).toHaveLength(0);
    expect((await acme.get(`/api/copywriting/userCopywriting/record-list?templateId=${id}`)).body.total).toBe(
      0,
    );
  });

  it('is refused for params that are none, and for an app of a rival', async () => {
    const id = await made();
    for (const params of ['x', 7, [1]]) {
      const { status, body } = await generate(id, params);
      expect([status, body.msg]).toEqual([400, expect.stringMatching(/^params: /)]);
    }
    const answer = await rival.post(`/api/copywriting/userCopywriting/${id}`, { params: { topic: 'x' } });
    expect([answer.status, answer.body.code]).toEqual([404, 404]);
  });

  it('is written by another service of the same type when one is named', async () => {
    const id = await made();
    const other = await scripted(async (e) => {
      await e.piece('other');
      await e.done();
    });
    const { body } = await generate(id, { topic: 'x' }, {}, { modelServiceId: other.serviceId });
    expect(body.data.result).toBe('other');
    const { body: image } = await acme.post('/api/admin/model-services', {
      name: 'pictures',
      model: 'p',
      type: 1,
      providerId: acme.providerId,
    });
    for (const modelServiceId of [rival.serviceId, (image as { id: string }).id, '999']) {
      const answer = await generate(id, { topic: 'x' }, {}, { modelServiceId });
      expect(answer.body).toEqual({ code: 400, msg: expect.stringMatching(/^modelServiceId: /) as unknown });
    }
  });

  it('comes as events for who wants them, ended like a dialogue’s', async () => {
    const { id } = await scripted(async (e) => {
      await e.pieces('One ', 'two ', '三');
      await e.done({ prompt_tokens: 2, completion_tokens: 3 });
    });
    const client = await stream(id, { topic: 'x' });
    const events = await client.end();
    expect(client.response.headers['content-type']).toMatch(/^text\/event-stream/);
    const { recordId } = events[0]!.data as { recordId: string };
    expect(events.slice(0, -1).map(({ data }) => data as unknown)).toEqual(
      ['One ', 'two ', '三'].map((result) => ({ result, isEnd: false, recordId })),
    );
    expect(client.last).toEqual({
      result: '',
      isEnd: true,
      recordId,
      status: 'finished',
      promptTokens: 2,
      completionTokens: 3,
      totalTokens: 5,
      youtaizhis: 8,
    });
    expect(await stored(recordId)).toMatchObject({ result: 'One two 三', status: 'finished' });
    expect(await ledger(recordId)).toHaveLength(1);
  });

  it.each(['application/json', 'text/event-stream'])(
    'that fails keeps what came of it (%s)',
    async (accept) => {
      const { id } = await scripted(async (e) => {
        await e.piece('half');
        e.response.destroy();
      });
      const failed = { status: 'failed', error: { code: 502, msg: expect.any(String) as unknown } };
      let recordId: string;
      if (accept === 'application/json') {
        const { status, body } = await generate(id, { topic: 'x' }, { accept });
        expect(status).toBe(502);
        expect(body).toMatchObject({
          code: 502,
          msg: expect.any(String) as unknown,
          data: { result: 'half', ...failed },
        });
        recordId = (body as { data: { id: string } }).data.id;
      } else {
        const client = await stream(id, { topic: 'x' });
        await client.end();
        expect(client.last).toMatchObject({ isEnd: true, ...failed });
        recordId = client.last.recordId as string;
      }
      expect(await stored(recordId)).toMatchObject({ result: 'half', ...failed });
      expect(await ledger(recordId)).toMatchObject([{ outcome: 'failed', estimated: true }]);
    },
  );

  it('too slow is 504, refused for rate 429 with retry-after', async () => {
    const slow = await scripted(() => undefined);
    expect((await generate(slow.id, { topic: 'x' })).status).toBe(504);
    const busy = await scripted((e) => e.fail(429, '{}', { 'retry-after': '100' }));
    const answer = await generate(busy.id, { topic: 'x' });
    expect([answer.status, answer.headers['retry-after']]).toEqual([429, '10']);
  });

  it('of more than can be kept and listed is refused', async () => {
    const names = ['a', 'b', 'c', 'd', 'e', 'f', 'g'];
    const variables = names.map((name) => ({ name, label: name, type: 'paragraph' }));
    const { id, model } = await scripted((e) => e.done(), { variables, promptTemplate: 'On {{a}}' });
    const params = Object.fromEntries(names.map((name) => [name, 'x'.repeat(32_000)]));
    const { status, body } = await generate(id, params);
    expect([status, body.msg]).toEqual([400, expect.stringMatching(/^params: .*200000/)]);
    expect(upstream.seen(model)).toEqual([]);
  });

  it('that gave nothing costs nothing, whatever is in the provider’s answer', async () => {
    const odd = await scripted((e) => e.fail(400, '{"error":{"message":"bad \\u0000 thing \\ud800"}}'));
    const { status, body } = await generate(odd.id, { topic: 'x' });
    expect(status).toBe(502);
    const { id } = body.data as { id: string };
    expect(await ledger(id)).toMatchObject([{ outcome: 'failed', total_tokens: 0, credits: 0 }]);
    expect(await stored(id)).toMatchObject({ status: 'failed', totalTokens: 0, youtaizhis: 0 });
  });

  it('that this process has lost sight of is ended', async () => {
    const { id } = await scripted((e) => e.piece('x').then(() => e.done()));
    await generate(id, { topic: 'x' });
    // Claimed by this process an hour ago, and nobody writes it.
    const { incarnation } = app.app.nest.get(NodeRegistry);
    const lost = idAtTime(Date.now() - 3_600_000);
    await query(
      app.databaseUrl,
      `with lost as (
         insert into generation_records (id, tenant_id, app_id, type, user_id, created_by, model_service_id, params, prompt, parameters, created_at)
         select $1, tenant_id, app_id, type, user_id, created_by, model_service_id, params, prompt, parameters, now() - interval '60 days'
         from generation_records where app_id = $2 limit 1 returning id, tenant_id)
       insert into generations_in_progress (record_id, tenant_id, incarnation) select id, tenant_id, $3 from lost`,
      [lost, id, incarnation.toString()],
    );
    await eventually(async () => (await ledger(lost)).length === 1, 20_000);
    // Its prompt is charged at the service's price.
    expect(await ledger(lost)).toMatchObject([{ outcome: 'interrupted', attempts: 1, estimated: true }]);
    expect(Number((await ledger(lost))[0]!.credits)).toBeGreaterThan(0);
    expect((await stored(lost)).status).toBe('interrupted');
  }, 30_000);

  it.each(['application/json', 'text/event-stream'])(
    'whose client leaves is stopped (%s)',
    async (accept) => {
      const { opened, open } = gate();
      let aborted: Promise<void> | undefined;
      const { id } = await scripted(async (e) => {
        ({ aborted } = e);
        await e.pieces('so ', 'far');
        open();
      });
      const client = SseClient.open(
        app.url,
        'POST',
        `/api/copywriting/userCopywriting/${id}`,
        { params: { topic: 'x' } },
        { 'x-api-key': acme.apiKey, accept },
      );
      if (accept === 'text/event-stream') {
        await (await client).has(2);
        (await client).drop();
      } else {
        await opened;
        // No answer to hang up on: the connection goes.
        client.catch(() => undefined);
        app.app.nest.getHttpServer().closeAllConnections();
      }
      await aborted;
      const row = await eventually(async () => {
        const { body } = await acme.get(`/api/copywriting/userCopywriting/record-list?templateId=${id}`);
        const [record] = body.rows as Record<string, unknown>[];
        return record?.status !== 'running' && record;
      });
      expect(row.status).toBe('stopped');
      // Without events nobody sees how much of it had come.
      if (accept === 'text/event-stream') expect(row.result).toBe('so far');
      else expect('so far'.startsWith(row.result as string)).toBe(true);
      expect(await ledger(row.id as string)).toMatchObject([{ outcome: 'stopped' }]);
    },
  );
});

describe('an Idempotency-Key', () => {
  it('makes a repetition, a simultaneous one too, get the first one’s text', async () => {
    const { opened, open } = gate();
    const { id, model } = await scripted(async (e) => {
      await e.piece('once');
      await opened;
      await e.done();
    });
    const headers = { 'idempotency-key': 'again' };
    const first = stream(id, { topic: 'x', lines: 2 }, headers);
    await (await first).has(1);
    const [second, third] = [
      generate(id, { lines: 2, topic: 'x' }, headers),
      stream(id, { topic: 'x', lines: 2 }, headers),
    ];
    await (await third).has(1);
    // With a key the client's leaving stops nothing.
    (await first).drop();
    open();
    await (await third).end();
    const fourth = await generate(id, { topic: 'x', lines: 2 }, headers);
    expect((await second).body).toEqual(fourth.body);
    expect((await third).text).toBe('once');
    expect(fourth.body.data).toMatchObject({ result: 'once', status: 'finished' });
    expect(upstream.seen(model)).toHaveLength(1);
    expect(await ledger(fourth.body.data.id as string)).toHaveLength(1);
    const other = await generate(id, { topic: 'y', lines: 2 }, headers);
    expect([other.status, other.body.code]).toEqual([422, 422]);
  });

  it('gets the first one’s text whatever has become of the app since', async () => {
    const { id, model } = await scripted(async (e) => {
      await e.piece('text');
      await e.done();
    });
    const headers = { 'idempotency-key': 'changed' };
    const first = await generate(id, { topic: 'x' }, headers);
    const variables = [{ name: 'topic', label: 'T', type: 'text', default: 'another' }];
    expect((await admin('PATCH', `/${id}`, { variables, promptTemplate: 'Now {{topic}}' })).status).toBe(200);
    expect((await generate(id, { topic: 'x' }, headers)).body).toEqual(first.body);
    expect((await admin('DELETE', `/${id}`)).status).toBe(200);
    expect((await generate(id, { topic: 'x' }, headers)).body).toEqual(first.body);
    expect((await generate(id, { topic: 'y' }, headers)).status).toBe(422);
    expect(upstream.seen(model)).toHaveLength(1);
  });

  it('is forgotten after 24 hours', async () => {
    const { id, model } = await scripted(async (e) => {
      await e.piece('text');
      await e.done();
    });
    const headers = { 'idempotency-key': 'old' };
    const first = await generate(id, { topic: 'x' }, headers);
    await query(
      app.databaseUrl,
      `update generation_records set created_at = now() - interval '25 hours' where id = $1`,
      [first.body.data.id],
    );
    const second = await generate(id, { topic: 'other' }, headers);
    expect(second.status).toBe(200);
    expect(second.body.data.id).not.toBe(first.body.data.id);
    expect(upstream.seen(model)).toHaveLength(2);
  });
});

describe('a quota', () => {
  it('counts a generation once, as what it came to, and refuses the next', async () => {
    const tenant = await app.tenant();
    const root = { 'x-api-key': app.rootKey };
    const limits = { requestsPerDay: 3, tokensPerDay: 20_000 };
    const path = `/api/admin/tenants/${tenant.id}`;
    expect((await ask(app.url, 'PATCH', path, { limits }, root)).status).toBe(200);
    await new Promise((resolve) => setTimeout(resolve, 1_000)); // limits are known within a second
    const id = await made({}, tenant);
    const send = (params: object, headers: Record<string, string> = {}) =>
      tenant.post(`/api/copywriting/userCopywriting/${id}`, { params }, headers);
    const headers = { 'idempotency-key': 'counted once' };
    const first = await send({ topic: 'x' }, headers);
    expect((await send({ topic: 'x' }, headers)).body).toEqual(first.body);
    expect((await send({})).status).toBe(400);
    const second = await send({ topic: 'y' });
    const [counted] = await query<Record<string, string>>(
      app.databaseUrl,
      `select requests, tokens from usage_counters where tenant_id = $1 and scope = 'tenant' and period = 'day'`,
      [tenant.id],
    );
    const tokens = [first, second].map(({ body }) => body.data.totalTokens as number);
    expect(counted).toMatchObject({ requests: '2', tokens: String(tokens[0]! + tokens[1]!) });
    expect(
      await query(app.databaseUrl, 'select 1 from usage_reservations where tenant_id = $1', [tenant.id]),
    ).toEqual([]);
    expect((await send({ topic: 'z' })).status).toBe(200);
    const refused = await send({ topic: 'z' });
    expect([refused.status, refused.body.code]).toEqual([429, 429]);
    expect(refused.headers['retry-after']).toMatch(/^\d+$/);
    const { body } = await tenant.get('/copywriting/userCopywriting/record-list');
    expect(body.total).toBe(3);
  });
});

describe('record-list', () => {
  const rows = async (path: string, headers: Record<string, string> = {}, tenant = acme) => {
    const { status, body } = await tenant.get(
      `/api/copywriting/userCopywriting/record-list?${path}`,
      headers,
    );
    expect(status).toBe(200);
    return body as { total: number; rows: Record<string, unknown>[] };
  };

  it('pages, orders, and tells users and apps apart', async () => {
    let tokens = 0;
    const { id } = await scripted(async (e) => {
      tokens += 10;
      await e.piece(`text ${tokens}`);
      await e.done({ prompt_tokens: 0, completion_tokens: tokens === 20 ? 99 : tokens });
    });
    for (const user of ['ann', 'bob', 'ann']) await generate(id, { topic: user }, { 'user-id': user });
    const all = await rows(`templateId=${id}`);
    expect([all.total, all.rows.map(({ result }) => result)]).toEqual([3, ['text 30', 'text 20', 'text 10']]);
    expect(all.rows[0]).toMatchObject({
      templateId: id,
      params: { topic: 'ann' },
      status: 'finished',
      images: [],
    });
    const ann = await rows(`templateId=${id}&isUser=true&isAsc=asc`, { 'user-id': 'ann' });
    expect([ann.total, ann.rows.map(({ result }) => result)]).toEqual([2, ['text 10', 'text 30']]);
    const bob = await rows(`templateId=${id}&isUser=false&orderByColumn=create_time`, { 'user-id': 'bob' });
    expect(bob.total).toBe(3);
    const dearest = await rows(`templateId=${id}&orderByColumn=totalTokens&isAsc=desc`);
    expect(dearest.rows[0]).toMatchObject({ result: 'text 20', totalTokens: 99 });
    const page = await rows(`templateId=${id}&pageNum=2&pageSize=2&isUser=&isAsc=`);
    expect([page.total, page.rows.map(({ result }) => result)]).toEqual([3, ['text 10']]);
    expect((await rows('', {}, rival)).total).toBe(0);
    expect((await rows(`templateId=${id}`, {}, rival)).total).toBe(0);
  });

  it.each(['orderByColumn=name', 'isAsc=up', 'isUser=yes', 'templateId=x', 'pageNum=0'])(
    'is refused with %s',
    async (path) => {
      const { status, body } = await acme.get(`/api/copywriting/userCopywriting/record-list?${path}`);
      expect([status, body.code]).toEqual([400, 400]);
    },
  );

  it('and a record by its id are not there for a rival', async () => {
    const { body } = await generate(await made(), { topic: 'x' });
    const { id } = body.data as { id: string };
    expect((await acme.get(`/copywriting/userCopywriting/${id}`)).status).toBe(200);
    for (const path of [id, 'x', '999'])
      expect((await rival.get(`/copywriting/userCopywriting/${path}`)).body).toMatchObject({ code: 404 });
  });
});

it('a stopping server ends its texts as interrupted', async () => {
  const other = await bootApp({}, app.databaseUrl);
  const { opened, open } = gate();
  const { id } = await scripted(async (e) => {
    await e.piece('cut');
    open();
  });
  const client = await SseClient.open(
    other.url,
    'POST',
    `/api/copywriting/userCopywriting/${id}`,
    { params: { topic: 'x' } },
    { 'x-api-key': acme.apiKey },
  );
  await opened;
  await client.has(1);
  await other.close();
  await client.end();
  const { recordId } = client.events[0]!.data as { recordId: string };
  expect(await stored(recordId)).toMatchObject({ status: 'interrupted', result: 'cut' });
  expect(await ledger(recordId)).toMatchObject([{ outcome: 'interrupted' }]);
});
