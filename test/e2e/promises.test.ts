import { ask, bootApp, eventually, says, SseClient, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { gate, Upstream, type Exchange } from '../support/upstream';

let app: TestApp;
let upstream: Upstream;
let acme: TestTenant;
let rival: TestTenant;
let services = 0;

beforeAll(async () => {
  [app, upstream] = await Promise.all([bootApp(), Upstream.start()]);
  [acme, rival] = await Promise.all([
    app.tenant({ baseUrl: upstream.url }),
    app.tenant({ baseUrl: upstream.url }),
  ]);
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

/** A model whose answers this test writes, and the service for it. */
async function scripted(
  script: (exchange: Exchange) => Promise<unknown>,
): Promise<{ modelServiceId: string; model: string }> {
  services += 1;
  const model = `scripted-${services}`;
  upstream.on(model, script);
  const { body } = await acme.post('/api/admin/model-services', {
    name: model,
    model,
    providerId: acme.providerId,
  });
  return { modelServiceId: (body as { id: string }).id, model };
}

const resume = (replyId: string, lastEventId?: string, tenant = acme) =>
  SseClient.open(app.url, 'GET', `/api/copywriting/dialogue/sse/resume/${replyId}`, undefined, {
    'x-api-key': tenant.apiKey,
    ...(lastEventId !== undefined && { 'last-event-id': lastEventId }),
  });
const replyIdOf = (client: SseClient) => client.events[0]!.id.split(':')[0]!;

describe('a client that drops', () => {
  it('does not stop the reply, and re-attaches at every place with each piece once', async () => {
    const { opened, open } = gate();
    const { modelServiceId } = await scripted(async (exchange) => {
      await exchange.pieces('a', 'b', 'c');
      await opened;
      await exchange.pieces('d', 'e', 'f');
      await exchange.done();
    });
    const first = await acme.send(says('go', { modelServiceId }));
    await first.has(4);
    first.drop();
    const replyId = replyIdOf(first);
    // During the reply, after every event there has been, and from the start.
    const during = await Promise.all(
      [undefined, 0, 1, 2, 3].map((n) => resume(replyId, n === undefined ? n : `${replyId}:${n}`)),
    );
    open();
    await Promise.all(during.map((client) => client.end()));
    expect(during.map(({ text }) => text)).toEqual(['abcdef', 'abcdef', 'bcdef', 'cdef', 'def']);
    expect(during[0]!.record).toMatchObject({ speechUserDialogueMessage: { content: 'go' } });
    expect(during.map(({ last }) => (last as { status: string }).status)).toEqual(Array(5).fill('finished'));
    // After its end, too, and with nothing left.
    for (let n = 0; n <= 7; n += 1) {
      const after = await resume(replyId, `${replyId}:${n}`);
      const events = await after.end();
      expect(after.text).toBe('abcdef'.slice(n));
      expect(events.map(({ id }) => id)).toEqual(
        Array.from({ length: 7 - n }, (_, i) => `${replyId}:${n + i + 1}`),
      );
    }
  });

  it('gets 400 for a malformed Last-Event-ID, 404 for a reply that is not there', async () => {
    const client = await acme.send(says('x'));
    await client.end();
    const replyId = replyIdOf(client);
    for (const bad of [
      'x',
      `${replyId}`,
      `${replyId}:-1`,
      `${replyId}:1x`,
      '1:1',
      `${replyId}:99999999999`,
    ]) {
      const refused = await resume(replyId, bad);
      expect(refused.status).toBe(400);
      expect(await refused.json()).toMatchObject({
        code: 400,
        msg: expect.stringContaining('Last-Event-ID') as unknown,
      });
    }
    expect((await resume('12345')).status).toBe(404);
    expect((await resume(client.record.speechUserDialogueMessage.id as string)).status).toBe(404);
    expect((await resume(replyId, undefined, rival)).status).toBe(404);
  });

  it('gets the stored text as one piece once the pieces are gone', async () => {
    const short = await bootApp({ STREAM_LOG_RETENTION_MS: '1000' });
    try {
      const tenant = await short.tenant({ baseUrl: upstream.url });
      const client = await tenant.send(says('one two three'));
      await client.end();
      const replyId = replyIdOf(client);
      const again = await eventually(async () => {
        const attempt = await SseClient.open(
          short.url,
          'GET',
          `/copywriting/dialogue/sse/resume/${replyId}`,
          undefined,
          { 'x-api-key': tenant.apiKey },
        );
        await attempt.end();
        return attempt.events.length === 3 && attempt;
      });
      expect(again.events[1]!.data).toMatchObject({ result: 'one two three', isEnd: false });
      expect(again.last).toMatchObject({ isEnd: true, status: 'finished', totalTokens: 12 });
      const rest = await SseClient.open(
        short.url,
        'GET',
        `/copywriting/dialogue/sse/resume/${replyId}`,
        undefined,
        {
          'x-api-key': tenant.apiKey,
          'last-event-id': again.events[1]!.id,
        },
      );
      expect(await rest.end()).toMatchObject([{ data: { isEnd: true, result: '' } }]);
    } finally {
      await short.close();
    }
  });
});

describe('close', () => {
  it('aborts the provider, keeps the partial reply as stopped, tells every reader, and is as good twice', async () => {
    const exchanges: Exchange[] = [];
    const { modelServiceId } = await scripted(async (exchange) => {
      exchanges.push(exchange);
      await exchange.piece('half');
    });
    const client = await acme.send(says('go', { modelServiceId }));
    await client.has(2);
    const watcher = await resume(replyIdOf(client));
    await watcher.has(2);
    const id = client.record.id as string;
    for (let n = 0; n < 2; n += 1) {
      const closed = await acme.get(`/api/copywriting/dialogue/sse/close/${id}`);
      expect(closed.body).toMatchObject({ code: 200, msg: 'success', data: { id, closeSse: true } });
    }
    await exchanges[0]!.aborted;
    await Promise.all([client.end(), watcher.end()]);
    for (const { last } of [client, watcher])
      expect(last).toMatchObject({ isEnd: true, status: 'stopped', messageId: replyIdOf(client) });
    const list = await acme.get(`/api/copywriting/message/list/${id}`);
    expect(list.body).toMatchObject({
      total: 2,
      rows: [{ role: 'user' }, { content: 'half', status: 'stopped' }],
    });
    // Sending to it again opens it again.
    const next = await acme.send(says('more', { id }));
    await next.end();
    expect(next.record).toMatchObject({ closeSse: false });
  });

  it('wakes a client that waits for JSON', async () => {
    const { modelServiceId, model } = await scripted(async (exchange) => {
      await exchange.piece('half');
    });
    const waiting = acme.post(
      `/copywriting/dialogue/sse/send-message/${acme.versionId}`,
      says('go', { modelServiceId }),
      { accept: 'application/json' },
    );
    await eventually(async () => upstream.seen(model).length > 0);
    const list = await acme.get('/api/copywriting/dialogue/list?pageSize=1');
    await acme.get(
      `/api/copywriting/dialogue/sse/close/${(list.body as { rows: { id: string }[] }).rows[0]!.id}`,
    );
    expect((await waiting).body).toMatchObject({ code: 200, data: { message: { status: 'stopped' } } });
  });
});

describe('an Idempotency-Key', () => {
  const key = (name: string) => ({ headers: { 'idempotency-key': name } });

  it('makes a retry re-attach, many at once included, and sends one message', async () => {
    const { opened, open } = gate();
    const { modelServiceId, model } = await scripted(async (exchange) => {
      await exchange.piece('once');
      await opened;
      await exchange.done();
    });
    const clients = await Promise.all(
      Array.from({ length: 6 }, () => acme.send(says('pay', { modelServiceId }), key('k1'))),
    );
    expect(clients.map(({ status }) => status)).toEqual(Array(6).fill(200));
    open();
    await Promise.all(clients.map((client) => client.end()));
    expect(new Set(clients.map(replyIdOf)).size).toBe(1);
    expect(clients.map(({ text }) => text)).toEqual(Array(6).fill('once'));
    const late = await acme.send(says('pay', { modelServiceId }), key('k1'));
    await late.end();
    expect(late.events.slice(1)).toEqual(clients[0]!.events.slice(1));
    expect(upstream.seen(model)).toHaveLength(1);
    const asJson = await acme.post(
      `/api/copywriting/dialogue/sse/send-message/${acme.versionId}`,
      says('pay', { modelServiceId }),
      {
        accept: 'application/json',
        'idempotency-key': 'k1',
      },
    );
    expect(asJson.body).toMatchObject({ data: { message: { id: replyIdOf(late), content: 'once' } } });
  });

  it('is 422 with another body, and another tenant has keys of its own', async () => {
    const first = await acme.send(says('a'), key('k2'));
    await first.end();
    const other = await acme.send(says('b'), key('k2'));
    expect(other.status).toBe(422);
    expect(await other.json()).toMatchObject({ code: 422 });
    const rivals = await rival.send(says('a'), key('k2'));
    await rivals.end();
    expect(replyIdOf(rivals)).not.toBe(replyIdOf(first));
  });

  it('is free again when its message was refused', async () => {
    const refused = await acme.send(says('x', { id: '1' }), key('k3'));
    expect(refused.status).toBe(404);
    const again = await acme.send(says('x'), key('k3'));
    expect(again.status).toBe(200);
    await again.end();
  });

  it('works within a dialogue, too', async () => {
    const first = await acme.send(says('a'));
    await first.end();
    const id = first.record.id as string;
    const both = await Promise.all([
      acme.send(says('b', { id }), key('k4')),
      acme.send(says('b', { id }), key('k4')),
    ]);
    await Promise.all(both.map((client) => client.end()));
    expect(replyIdOf(both[0])).toBe(replyIdOf(both[1]));
    expect((await acme.get(`/copywriting/message/list/${id}`)).body).toMatchObject({ total: 4 });
  });

  it('is forgotten after 24 hours', async () => {
    const first = await acme.send(says('a'), key('k5'));
    await first.end();
    await query(
      app.databaseUrl,
      `update idempotency_keys set created_at = now() - interval '25 hours' where key = 'k5'`,
    );
    const next = await acme.send(says('other'), key('k5'));
    await next.end();
    expect(next.text).toBe('other');
  });
});

describe('every ending', () => {
  it('writes exactly one ledger row', async () => {
    const { modelServiceId } = await scripted(async (exchange) => {
      if (exchange.attempt === 1) return exchange.done();
      if (exchange.attempt === 2) return exchange.fail(400, '{"error":{"message":"no"}}');
      return exchange.piece('x');
    });
    const ids: string[] = [];
    for (const content of ['finished', 'failed', 'stopped']) {
      const client = await acme.send(says(content, { modelServiceId }));
      await client.has(content === 'failed' ? 2 : 1);
      if (content === 'stopped') {
        await client.has(2);
        await acme.get(`/copywriting/dialogue/sse/close/${client.record.id}`);
      }
      await client.end();
      ids.push(replyIdOf(client));
    }
    const rows = await query<{ message_id: string; outcome: string; estimated: boolean; attempts: number }>(
      app.databaseUrl,
      'select message_id, outcome, estimated, attempts from usage_ledger where message_id = any($1) order by message_id',
      [ids],
    );
    expect(rows).toEqual([
      { message_id: ids[0], outcome: 'finished', estimated: false, attempts: 1 },
      { message_id: ids[1], outcome: 'failed', estimated: true, attempts: 1 },
      { message_id: ids[2], outcome: 'stopped', estimated: true, attempts: 1 },
    ]);
    expect(await query(app.databaseUrl, 'select 1 from reply_checkpoints')).toEqual([]);
  });

  it('is stored before it is told, and text is checkpointed while it is written', async () => {
    const { opened, open } = gate();
    const { modelServiceId } = await scripted(async (exchange) => {
      await exchange.pieces('saved ', 'as it ');
      await opened;
      await exchange.piece('comes');
      await exchange.done();
    });
    const client = await acme.send(says('go', { modelServiceId }));
    await client.has(3);
    const saved = await eventually(async () => {
      const rows = await query<{ text: string }>(
        app.databaseUrl,
        `select string_agg(content, '' order by part) as text from reply_checkpoints where message_id = $1`,
        [replyIdOf(client)],
      );
      return rows[0]?.text;
    });
    expect(saved).toBe('saved as it ');
    open();
    await client.end();
    const stored = await query(
      app.databaseUrl,
      'select content, status from dialogue_messages where id = $1',
      [replyIdOf(client)],
    );
    expect(stored).toEqual([{ content: 'saved as it comes', status: 'finished' }]);
  });
});

it('refuses new work with 503 when it has too much', async () => {
  const small = await bootApp({ MAX_CONCURRENT_REPLIES: '1' });
  const { opened, open } = gate();
  upstream.on('busy', async (exchange) => {
    await opened;
    await exchange.done();
  });
  try {
    const tenant = await small.tenant({ baseUrl: upstream.url, model: 'busy' });
    const first = await tenant.send(says('a'));
    await first.has(1);
    const refused = await ask(
      small.url,
      'POST',
      `/copywriting/dialogue/sse/send-message/${tenant.versionId}`,
      says('b'),
      { 'x-api-key': tenant.apiKey },
    );
    expect(refused.body).toMatchObject({ code: 503 });
    expect(refused.headers['retry-after']).toBe('1');
    open();
    await first.end();
  } finally {
    await small.close();
  }
});

it('ends replies as interrupted when the server stops before they do, and tells the readers', async () => {
  const stopping = await bootApp();
  upstream.on('endless', async (exchange) => {
    await exchange.piece('so far');
  });
  const tenant = await stopping.tenant({ baseUrl: upstream.url, model: 'endless' });
  const client = await tenant.send(says('a'));
  await client.has(2);
  await stopping.app.close();
  await client.end();
  expect(client.last).toMatchObject({ isEnd: true, status: 'interrupted' });
  const rows = await query(
    stopping.databaseUrl,
    `select content, status from dialogue_messages where role = 'assistant'`,
  );
  expect(rows).toEqual([{ content: 'so far', status: 'interrupted' }]);
});

describe('a path that can not be read', () => {
  const long = 'x'.repeat(600);
  it.each([
    [`/copywriting/message/list/${long}`, 404, (body: any) => body.code === 404 && body.msg.length > 0],
    ['/api/copywriting/message/list/%zz', 400, (body: any) => body.code === 400 && body.msg.length > 0],
    [`/v1/models/${long}`, 404, (body: any) => body.error.type === 'invalid_request_error'],
    ['/v1/models/%E0%A4%A', 400, (body: any) => body.error.type === 'invalid_request_error'],
    [`/api/admin/tenants/${long}`, 404, (body: any) => body.status === 404],
    ['/api/v1/agents/%', 400, (body: any) => typeof body.error === 'string'],
  ])('is refused in its wire’s shape: %#', async (path, status, fits) => {
    for (const one of [acme, rival]) {
      const answer = await ask(app.url, 'GET', path, undefined, { 'x-api-key': one.apiKey });
      expect([answer.status, answer.text, fits(answer.body)]).toEqual([status, answer.text, true]);
      expect(answer.headers['x-request-id']).toMatch(/^req_\w{32}$/);
      expect(answer.text).not.toMatch(/node_modules|FST_|at /);
    }
  });
});
