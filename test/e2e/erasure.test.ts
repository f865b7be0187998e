import { BlobStore, type BlobHash } from '../../src/blobs';
import type { TenantId } from '../../src/common';
import { Database } from '../../src/database';
import { ImageRelease } from '../../src/generations/image-release';
import { ConversationErasure, DialogueArchive, MessagePartitions } from '../../src/messages';
import { demoImage } from '../../src/model-services/drivers/builtin-media';
import { Eraser, RetentionKeeper } from '../../src/retention';
import { ask, bootApp, eventually, says, SseClient, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { MediaUpstream } from '../support/media-upstream';
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

const SECRET = 'my-secret-words';
let models = 0;
const newTenant = () => app.tenant({ baseUrl: upstream.url, model: `erasure-${(models += 1)}` });
const erase = (tenant: TestTenant, path: string) =>
  ask(app.url, 'DELETE', `/api/admin/${path}`, undefined, { 'x-api-key': tenant.apiKey });
const say = async (tenant: TestTenant, userId: string, more: object = {}, headers = {}) => {
  const client = await tenant.send(says(SECRET, { ...more }), { headers: { 'user-id': userId, ...headers } });
  await client.end();
  expect(client.status).toBe(200);
  return client;
};
let sent = 0;
const im = async (tenant: TestTenant, source: string, target: string, content = SECRET) => {
  const msg = { msgId: (sent += 1), content };
  const answer = await tenant.post('/api/v1/im/messages', { type: 'single', source, target, msg });
  expect(answer.status).toBeLessThan(300);
  return answer;
};

/** Tables of a tenant in which a text stands somewhere, the audit log and what it is itself left out. */
async function tablesWith(tenant: TestTenant, text: string): Promise<string[]> {
  const tables = await query<{ table_name: string }>(
    app.databaseUrl,
    `select c.table_name from information_schema.columns c join pg_class p on p.relname = c.table_name
     where c.table_schema = 'public' and c.column_name = 'tenant_id' and not p.relispartition order by 1`,
  );
  const found: string[] = [];
  for (const { table_name: table } of tables) {
    const rows = await query(
      app.databaseUrl,
      `select 1 from ${table} t where t.tenant_id = $1 and position($2 in t::text) > 0 limit 1`,
      [tenant.id, text],
    );
    if (rows.length > 0) found.push(table);
  }
  return found;
}

it('erases a dialogue everywhere, and leaves its figures without a name', async () => {
  const tenant = await newTenant();
  const kept = await say(tenant, 'ann');
  const client = await say(tenant, 'ann', {}, { 'idempotency-key': SECRET });
  const id = client.record.id as string;
  const replyId = client.last.messageId as string;
  await tenant.post('/v1/chat/completions', {
    model: 'main',
    sessionId: 'mine',
    messages: [{ role: 'user', content: 'other' }],
  });
  expect((await erase(rival, `dialogues/${id}`)).status).toBe(404);
  const answer = await erase(tenant, `dialogues/${id}`);
  expect([answer.status, answer.body]).toEqual([
    200,
    { dialogues: 1, messages: 0, generations: 0, ledgerRows: 1 },
  ]);
  expect((await erase(tenant, `dialogues/${id}`)).status).toBe(404);
  expect((await tenant.get(`/api/admin/dialogues/${id}`)).status).toBe(404);
  expect((await tenant.get(`/api/admin/dialogues/${id}/messages`)).status).toBe(404);
  expect((await tenant.get(`/api/copywriting/message/list/${id}`)).status).toBe(404);
  const resumed = await SseClient.open(
    app.url,
    'GET',
    `/api/copywriting/dialogue/sse/resume/${replyId}`,
    undefined,
    { 'x-api-key': tenant.apiKey },
  );
  expect(resumed.status).toBe(404);
  expect(await tablesWith(tenant, id)).toEqual(['audit_log']);
  expect(await tablesWith(tenant, SECRET)).toEqual(['dialogue_messages', 'dialogues']);
  const ledger = await query(
    app.databaseUrl,
    'select user_id, total_tokens from usage_ledger where message_id = $1',
    [replyId],
  );
  expect(ledger).toEqual([{ user_id: 'erased', total_tokens: 12 }]);
  const log = await tenant.get('/api/admin/audit-log');
  expect(log.body.data[0]).toMatchObject({
    action: 'delete',
    resource: 'dialogue',
    resourceId: id,
    before: null,
    after: { dialogues: 1, ledgerRows: 1 },
  });
  expect(log.text).not.toContain(SECRET);
  expect((await tenant.get(`/api/admin/dialogues/${kept.record.id as string}`)).status).toBe(200);
});

it('stops what is being written before it erases', async () => {
  const tenant = await newTenant();
  upstream.on(`erasure-${models}`, async (exchange) => {
    await exchange.piece('and on ');
    await exchange.aborted;
  });
  const client = await tenant.send(says(SECRET), { headers: { 'user-id': 'ann' } });
  await client.has(2);
  expect((await erase(tenant, `dialogues/${client.record.id as string}`)).status).toBe(200);
  const rows = await eventually(async () => {
    const found = await query<{ user_id: string; outcome: string }>(
      app.databaseUrl,
      'select user_id, outcome from usage_ledger where tenant_id = $1',
      [tenant.id],
    );
    return found.length > 0 && found;
  });
  expect(rows).toEqual([{ user_id: 'erased', outcome: 'stopped' }]);
  expect(await tablesWith(tenant, SECRET)).toEqual([]);
});

it('erases a user everywhere, and nobody else', async () => {
  const tenant = await newTenant();
  await tenant.post('/api/v1/im/webhooks', { url: 'http://127.0.0.1:9/hook', events: ['message.created'] });
  await say(tenant, 'ann');
  await say(tenant, 'bob');
  await im(tenant, 'ann', 'bob');
  await im(tenant, 'bob', 'ann', 'kept words');
  await tenant.post('/api/v1/im/groups', { groupId: 'team', owner: 'ann', members: ['bob'] });
  await tenant.post('/api/v1/im/messages', {
    type: 'group',
    source: 'ann',
    target: 'team',
    msg: { msgId: 2, content: SECRET },
  });
  const asked = await im(tenant, 'ann', 'agent:main');
  const { conversationId } = asked.body as { conversationId: string };
  const history = async (id: string) =>
    (await tenant.get(`/api/v1/im/conversations/${id}/messages`)).body.data as any[];
  await eventually(async () => (await history(conversationId)).length === 2);
  await im(rival, 'ann', 'bob');
  await query(
    app.databaseUrl,
    `insert into generation_records (id, tenant_id, app_id, type, user_id, created_by, model_service_id, params, prompt, parameters, status)
     values (1, $1, 1, 0, 'ann', 'k', 1, '{}', '${SECRET}', '{}', 'finished')`,
    [tenant.id],
  );
  // Images that only she had drawn, that bob had drawn, too, and that a rival had.
  const blobs = app.app.nest.get(BlobStore);
  const put = (owner: TestTenant, bytes: string) =>
    blobs.put(owner.id as TenantId, { bytes: Buffer.from(bytes), mimeType: 'image/png' });
  const [hers, both] = await Promise.all([put(tenant, 'hers'), put(tenant, 'both'), put(rival, 'hers')]);
  for (const [id, user, images] of [
    [2, 'ann', [hers, both]],
    [3, 'bob', [both]],
  ] as const) {
    await query(
      app.databaseUrl,
      `insert into generation_records (id, tenant_id, app_id, type, user_id, created_by, model_service_id, params, prompt, parameters, images, status)
       values ($1, $2, 1, 1, $3, 'k', 1, '{}', '', '{}', $4, 'finished')`,
      [id, tenant.id, user, JSON.stringify(images.map((sha256) => ({ sha256 })))],
    );
    for (const sha256 of images)
      await query(app.databaseUrl, 'insert into generation_images values ($1, $2, $3)', [
        tenant.id,
        sha256,
        id,
      ]);
  }
  expect((await tenant.get('/api/admin/usage?groupBy=user')).status).toBe(200);

  expect((await erase(rival, 'users/bobby')).status).toBe(404);
  const answer = await erase(tenant, 'users/ann');
  // Two dialogues: her own, and the one behind her conversation with the assistant.
  expect([answer.status, answer.body]).toEqual([
    200,
    { dialogues: 2, messages: 4, generations: 2, ledgerRows: 2 },
  ]);
  const there = async (owner: TestTenant, hash: BlobHash) =>
    (await blobs.get(owner.id as TenantId, hash)) !== null;
  await app.app.nest.get(ImageRelease).release();
  expect([await there(tenant, hers), await there(tenant, both), await there(rival, hers)]).toEqual([
    false,
    true,
    true,
  ]);
  // Bob has said the same words to the assistant, and his stand.
  expect(await tablesWith(tenant, SECRET)).toEqual(['dialogue_messages', 'dialogues']);
  const [left] = (await tenant.get('/api/admin/dialogues')).body.data as { userId: string }[];
  expect(left!.userId).toBe('bob');
  // Numbers have no gaps, and what others said stands.
  const log = await history(conversationId);
  expect(log.map(({ seq, recalled }) => [seq, recalled])).toEqual([
    [1, true],
    [2, true],
  ]);
  const conversations = await tenant.get('/api/v1/im/conversations?userId=bob');
  const single = (conversations.body.data as any[]).find(({ kind }) => kind === 'single');
  expect(
    (await history(single.id as string)).map(({ seq, recalled, msg }) => [seq, recalled, msg.content]),
  ).toEqual([
    [1, true, undefined],
    [2, false, 'kept words'],
  ]);
  // The rival's ann is somebody else.
  expect(await tablesWith(rival, SECRET)).toContain('messages');
  expect((await erase(tenant, 'users/nobody')).status).toBe(404);
  await new Promise((resolve) => setTimeout(resolve, 1_100));
  const usage = await tenant.get('/api/admin/usage?groupBy=user');
  expect((usage.body.data as any[]).map(({ user, requests }) => [user, requests])).toEqual([
    ['bob', 1],
    ['erased', 2],
  ]);
  const audit = await tenant.get('/api/admin/audit-log');
  expect(audit.body.data[0]).toMatchObject({ action: 'delete', resource: 'user', after: { userId: 'ann' } });
  expect(audit.text).not.toContain(SECRET);
});

describe('what is under way while its user is erased', () => {
  /** Every row of the ledger, and what is reserved: nobody is named, and each request is there once. */
  const figures = async (tenant: TestTenant) => ({
    ledger: await query<{ user_id: string; wire: string; outcome: string; total_tokens: number }>(
      app.databaseUrl,
      'select user_id, wire, outcome, total_tokens from usage_ledger where tenant_id = $1',
      [tenant.id],
    ),
    reserved: await query(app.databaseUrl, 'select 1 from usage_reservations where tenant_id = $1', [
      tenant.id,
    ]),
    counts: await query(
      app.databaseUrl,
      `select 1 from usage_counters where tenant_id = $1 and (scope like '%user%' or tokens < 0)`,
      [tenant.id],
    ),
  });
  const limited = async (): Promise<TestTenant> => {
    const tenant = await newTenant();
    const limits = { tokensPerDay: 1_000_000, userTokensPerDay: 1_000_000 };
    await ask(app.url, 'PATCH', `/api/admin/tenants/${tenant.id}`, { limits }, { 'x-api-key': app.rootKey });
    await new Promise((resolve) => setTimeout(resolve, 1_100));
    return tenant;
  };
  const madeApp = async (tenant: TestTenant, type: number, modelServiceId: string): Promise<string> => {
    const made = await tenant.post('/api/admin/generation-apps', {
      name: 'x',
      type,
      promptTemplate: 'make {{it}}',
      variables: [{ name: 'it', label: 'it', type: 'text' }],
      modelServiceId,
    });
    expect(made.status).toBe(201);
    return (made.body as { id: string }).id;
  };
  const running = async (tenant: TestTenant, table: string) =>
    eventually(
      async () =>
        (await query(app.databaseUrl, `select 1 from ${table} where tenant_id = $1`, [tenant.id])).length ===
        1,
    );

  it('a text is stopped, and leaves one row without a name', async () => {
    const tenant = await limited();
    upstream.on(`erasure-${models}`, async (exchange) => {
      await exchange.piece('some ');
      await exchange.aborted;
    });
    const id = await madeApp(tenant, 0, tenant.serviceId);
    const answer = tenant.post(
      `/api/copywriting/userCopywriting/${id}`,
      { params: { it: SECRET } },
      { 'user-id': 'ann' },
    );
    await running(tenant, 'generations_in_progress');
    expect((await erase(tenant, 'users/ann')).body).toMatchObject({ generations: 1 });
    await answer;
    await eventually(async () => {
      const { ledger } = await figures(tenant);
      return ledger.length === 1 && ledger[0]!.outcome !== 'running';
    });
    expect(await figures(tenant)).toMatchObject({
      ledger: [{ user_id: 'erased', wire: 'generation' }],
      reserved: [],
      counts: [],
    });
    expect(await tablesWith(tenant, SECRET)).toEqual([]);
  });

  it('a chat completion that nobody keeps names nobody', async () => {
    const tenant = await limited();
    const { opened, open } = gate();
    upstream.on(`erasure-${models}`, async (exchange) => {
      await exchange.piece('answer');
      await opened;
      await exchange.done({ prompt_tokens: 30, completion_tokens: 12 });
    });
    const headers = { authorization: `Bearer ${tenant.apiKey}`, 'user-id': 'ann' };
    const body = { model: 'service', messages: [{ role: 'user', content: SECRET }] };
    const answer = ask(app.url, 'POST', '/v1/chat/completions', body, headers);
    await running(tenant, 'open_requests');
    expect((await erase(tenant, 'users/ann')).status).toBe(200);
    open();
    expect((await answer).status).toBe(200);
    expect(await figures(tenant)).toMatchObject({
      ledger: [{ user_id: 'erased', outcome: 'finished', total_tokens: 42 }],
      reserved: [],
      counts: [],
    });
  });

  it('an image is not kept, and is counted once', async () => {
    const tenant = await limited();
    const media = await MediaUpstream.start();
    try {
      const { opened, open } = gate();
      let asked = 0;
      media.on('draws', async (exchange) => {
        asked += 1;
        await opened;
        exchange.json({
          data: [{ b64_json: demoImage('erased', 0).toString('base64') }],
          usage: { input_tokens: 3, output_tokens: 40, total_tokens: 43 },
        });
      });
      const operator = { 'x-api-key': app.rootKey, 'tenant-id': tenant.id };
      const provider = await ask(
        app.url,
        'POST',
        '/api/admin/model-providers',
        { name: 'media', kind: 'openai-compatible', baseUrl: media.url, credentials: [{ apiKey: 'k' }] },
        operator,
      );
      const service = await ask(
        app.url,
        'POST',
        '/api/admin/model-services',
        { name: 'draws', model: 'draws', type: 1, providerId: (provider.body as { id: string }).id },
        operator,
      );
      const id = await madeApp(tenant, 1, (service.body as { id: string }).id);
      const answer = tenant.post(
        `/api/copywriting/userCopywriting/${id}`,
        { params: { it: 'x' } },
        { 'user-id': 'ann' },
      );
      await eventually(async () => asked === 1);
      expect((await erase(tenant, 'users/ann')).body).toMatchObject({ generations: 1 });
      open();
      await answer;
      await eventually(async () => (await figures(tenant)).ledger[0]?.total_tokens === 43);
      expect(await figures(tenant)).toMatchObject({
        ledger: [{ user_id: 'erased', wire: 'generation', outcome: 'finished' }],
        reserved: [],
        counts: [],
      });
      expect(await query(app.databaseUrl, 'select 1 from blobs where tenant_id = $1', [tenant.id])).toEqual(
        [],
      );
      expect(asked).toBe(1);
    } finally {
      await media.close();
    }
  });
});

it('reads dialogues page by page', async () => {
  const tenant = await newTenant();
  const first = await say(tenant, 'ann');
  for (const user of ['ann', 'bob']) await say(tenant, user);
  const id = first.record.id as string;
  await say(tenant, 'ann', { id });
  const page = await tenant.get('/api/admin/dialogues?limit=2');
  expect(page.body.data).toHaveLength(2);
  const rest = await tenant.get(`/api/admin/dialogues?limit=2&cursor=${page.body.nextCursor as string}`);
  expect([rest.body.data.length, rest.body.nextCursor]).toEqual([1, null]);
  expect((await tenant.get('/api/admin/dialogues?userId=bob')).body.data).toHaveLength(1);
  expect((await tenant.get(`/api/admin/dialogues?assistantId=1`)).body.data).toEqual([]);
  const messages = await tenant.get(`/api/admin/dialogues/${id}/messages?limit=3`);
  expect((messages.body.data as any[]).map(({ role }) => role)).toEqual(['user', 'assistant', 'user']);
  expect(messages.body.nextCursor).not.toBeNull();
  expect((await rival.get(`/api/admin/dialogues/${id}`)).status).toBe(404);
  expect((await rival.get(`/api/admin/dialogues/${id}/messages`)).status).toBe(404);
  expect((await rival.get('/api/admin/dialogues?userId=ann')).body.data).toEqual([]);
});

describe('retention', () => {
  it('removes what is older than a tenant keeps, and of nobody else', async () => {
    const [tenant, other] = await Promise.all([newTenant(), newTenant()]);
    const patch = { retentionDays: 30 };
    await ask(app.url, 'PATCH', `/api/admin/tenants/${tenant.id}`, patch, { 'x-api-key': app.rootKey });
    for (const one of [tenant, other]) {
      await say(one, 'ann');
      await im(one, 'ann', 'bob');
    }
    const young = await say(tenant, 'ann');
    // Forty days ago, as the rows have it.
    for (const one of [tenant, other]) {
      const old = `where tenant_id = $1 and id <> $2`;
      await query(app.databaseUrl, `update dialogues set updated_at = now() - interval '40 days' ${old}`, [
        one.id,
        young.record.id,
      ]);
      await query(
        app.databaseUrl,
        `update usage_ledger set created_at = now() - interval '40 days' where tenant_id = $1 and message_id <> $2`,
        [one.id, young.last.messageId],
      );
      await query(app.databaseUrl, `select ensure_message_partition(now() - interval '40 days')`);
      await query(
        app.databaseUrl,
        `update messages set id = message_id_at(now() - interval '40 days') + $2 where tenant_id = $1`,
        [one.id, one === tenant ? 1 : 2],
      );
      await im(one, 'ann', 'bob', 'young');
    }
    await app.app.nest.get(RetentionKeeper).enforce();
    const left = async (one: TestTenant) => [
      (await query(app.databaseUrl, 'select 1 from dialogues where tenant_id = $1', [one.id])).length,
      (await query(app.databaseUrl, 'select 1 from messages where tenant_id = $1', [one.id])).length,
      (
        await query(app.databaseUrl, `select 1 from usage_ledger where tenant_id = $1 and user_id = 'ann'`, [
          one.id,
        ])
      ).length,
      (await query(app.databaseUrl, 'select 1 from usage_ledger where tenant_id = $1', [one.id])).length,
    ];
    expect(await left(tenant)).toEqual([1, 1, 1, 2]);
    expect(await left(other)).toEqual([1, 2, 1, 1]);
    expect((await tenant.get(`/api/admin/dialogues/${young.record.id as string}`)).status).toBe(200);
  });

  it('of one tenant that fails does not keep it from the others', async () => {
    const [broken, fine] = await Promise.all([newTenant(), newTenant()]);
    for (const one of [broken, fine]) {
      const patch = { retentionDays: 30 };
      await ask(app.url, 'PATCH', `/api/admin/tenants/${one.id}`, patch, { 'x-api-key': app.rootKey });
      await say(one, 'ann');
      const old = `update dialogues set updated_at = now() - interval '40 days' where tenant_id = $1`;
      await query(app.databaseUrl, old, [one.id]);
    }
    const archive = app.app.nest.get(DialogueArchive);
    const untouched = archive.untouchedSince.bind(archive);
    const spy = jest
      .spyOn(archive, 'untouchedSince')
      .mockImplementation((tx, tenantId, since, limit) =>
        (tenantId as string) === broken.id
          ? Promise.reject(new Error('broken'))
          : untouched(tx, tenantId, since, limit),
      );
    try {
      await app.app.nest.get(RetentionKeeper).enforce();
    } finally {
      spy.mockRestore();
    }
    const left = (one: TestTenant) =>
      query(app.databaseUrl, 'select 1 from dialogues where tenant_id = $1', [one.id]);
    expect([(await left(broken)).length, (await left(fine)).length]).toEqual([1, 0]);
  });

  it('drops months of messages whole of which nobody keeps anything', async () => {
    const months = async (): Promise<string[]> =>
      (
        await query<{ name: string }>(
          app.databaseUrl,
          `select relname as name from pg_class where relispartition and relkind = 'r' and relname ~ '^messages_' order by 1`,
        )
      ).map(({ name }) => name);
    const at = async (month: string, tenant?: TestTenant): Promise<void> => {
      await query(app.databaseUrl, 'select ensure_message_partition($1)', [month]);
      if (!tenant) return;
      await im(tenant, 'ann', 'bob');
      await query(app.databaseUrl, 'update messages set id = message_id_at($1) where tenant_id = $2', [
        month,
        tenant.id,
      ]);
    };
    const [limited, unlimited] = await Promise.all([newTenant(), newTenant()]);
    const keep = (tenant: TestTenant, retentionDays: number | null) =>
      ask(
        app.url,
        'PATCH',
        `/api/admin/tenants/${tenant.id}`,
        { retentionDays },
        { 'x-api-key': app.rootKey },
      );
    await keep(limited, 30);
    await at('2024-03-10');
    await at('2024-04-10', limited);
    await at('2024-05-10', unlimited);
    const { nest } = app.app;
    // Another process, as it were: this one may have looked within the hour.
    const look = () =>
      new RetentionKeeper(
        nest.get(Database),
        nest.get(Eraser),
        nest.get(DialogueArchive),
        nest.get(ConversationErasure),
        nest.get(MessagePartitions),
      ).enforce();
    await look();
    expect((await months()).filter((name) => name < 'messages_202406')).toEqual(['messages_202405']);
    // As soon as everybody has a limit, what is older than the longest goes unread.
    const { body } = await ask(app.url, 'GET', '/api/admin/tenants?limit=200', undefined, {
      'x-api-key': app.rootKey,
    });
    for (const tenant of body.data as TestTenant[]) await keep(tenant, 60);
    await look();
    const left = await months();
    expect(left.filter((name) => name < 'messages_202406')).toEqual([]);
    expect(left.length).toBeGreaterThan(1);
    expect(await app.app.nest.get(MessagePartitions).dropEmpty(new Date('2024-01-01'))).toEqual([]);
  });
});
