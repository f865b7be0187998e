import { bootApp, eventually, says, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { gate, Upstream, type Exchange } from '../support/upstream';

/** What providers do to those who call them "OpenAI-compatible". */
let app: TestApp;
let upstream: Upstream;
let acme: TestTenant;
let rival: TestTenant;
let count = 0;

beforeAll(async () => {
  [app, upstream] = await Promise.all([bootApp({ MAX_REPLY_CHARS: '5000' }), Upstream.start()]);
  acme = await app.tenant({
    baseUrl: upstream.url,
    provider: {
      connectTimeoutMs: 1_000,
      firstPieceTimeoutMs: 800,
      idleTimeoutMs: 800,
      totalTimeoutMs: 4_000,
    },
  });
  rival = await app.tenant();
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

async function scripted(
  script: (exchange: Exchange) => Promise<unknown> | void,
  providerId = acme.providerId,
) {
  count += 1;
  const model = `model-${count}`;
  upstream.on(model, script);
  const { body } = await acme.post('/api/admin/model-services', { name: model, model, providerId });
  return { model, modelServiceId: (body as { id: string }).id };
}

async function reply(script: (exchange: Exchange) => Promise<unknown> | void) {
  const { model, modelServiceId } = await scripted(script);
  const client = await acme.send(says('hello', { modelServiceId }));
  await client.end();
  return {
    client,
    model,
    end: client.last as { status: string; error?: { code: number; msg: string }; totalTokens: number },
  };
}

describe('is tolerant of', () => {
  it.each(['\r\n', '\n', '\r'])('%j as line end', async (eol) => {
    const { client, end } = await reply(async (exchange) => {
      const events = [
        '{"choices":[{"delta":{"content":"a"}}]}',
        '{"choices":[{"delta":{"content":"b"},"finish_reason":"stop"}]}',
        '[DONE]',
      ];
      await exchange.raw(events.map((data) => `data: ${data}${eol}${eol}`).join(''));
      exchange.response.end();
    });
    expect(client.text).toBe('ab');
    expect(end.status).toBe('finished');
  });

  it('UTF-8 split at every byte, comments, a BOM, and data: without a space', async () => {
    const { client, end } = await reply(async (exchange) => {
      const bytes = Buffer.from(
        '\uFEFF: hi\n\ndata:{"choices":[{"delta":{"content":"中国😀é"}}]}\n\ndata: [DONE]\n\n',
      );
      exchange.response.socket!.setNoDelay(true);
      for (const byte of bytes) await exchange.raw(Buffer.of(byte));
      exchange.response.end();
    });
    expect(client.text).toBe('中国😀é');
    expect(end.status).toBe('finished');
  });

  it('a surrogate pair split over two chunks: no piece ends inside it', async () => {
    const { client } = await reply(async (exchange) => {
      await exchange.raw('data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n');
      await exchange.raw('data: {"choices":[{"delta":{"content":"\\ude00b"}}]}\n\n');
      await exchange.done();
    });
    expect(client.text).toBe('a😀b');
    expect(client.events.slice(1, -1).map(({ data }) => (data as { result: string }).result)).toEqual([
      'a',
      '😀b',
    ]);
  });

  it('a missing [DONE], and usage in every chunk', async () => {
    const { client, end } = await reply(async (exchange) => {
      for (let n = 1; n <= 3; n += 1) {
        await exchange.chunk({
          choices: [{ delta: { content: String(n) } }],
          usage: { prompt_tokens: 10, completion_tokens: n, total_tokens: 10 + n },
        });
      }
      exchange.response.end();
    });
    expect(client.text).toBe('123');
    expect(end).toMatchObject({ status: 'finished', totalTokens: 13 });
  });

  it('null and missing fields, empty choices, an empty string', async () => {
    const { client, end } = await reply(async (exchange) => {
      for (const chunk of [
        {},
        { choices: [] },
        { choices: [{}] },
        { choices: [{ delta: null }] },
        { choices: [{ delta: { content: null } }] },
        { choices: [{ delta: { content: '' } }] },
        { choices: [{ index: 1, delta: { content: 'other' } }] },
      ]) {
        await exchange.chunk(chunk);
      }
      await exchange.piece('ok');
      await exchange.done();
    });
    expect(client.text).toBe('ok');
    expect(client.events).toHaveLength(3);
    expect(end.status).toBe('finished');
  });

  it('a whole answer as JSON instead of a stream', async () => {
    const { client, end } = await reply((exchange) => {
      exchange.start('application/json').response.end(
        JSON.stringify({
          choices: [{ message: { content: 'all at once' }, finish_reason: 'stop' }],
          usage: { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 },
        }),
      );
    });
    expect(client.text).toBe('all at once');
    expect(end).toMatchObject({ status: 'finished', totalTokens: 3 });
  });

  it('NUL and a lone surrogate in an answer: replaced alike for readers and for the store', async () => {
    const { client } = await reply(async (exchange) => {
      await exchange.raw('data: {"choices":[{"delta":{"content":"a\\u0000b\\ude00c"}}]}\n\n');
      await exchange.done();
    });
    expect(client.text).toBe('a\uFFFDb\uFFFDc');
    const rows = await query(app.databaseUrl, 'select content from dialogue_messages where id = $1', [
      client.last.messageId,
    ]);
    expect(rows).toEqual([{ content: client.text }]);
  });
});

it('keeps reasoning apart from the answer', async () => {
  const { client } = await reply(async (exchange) => {
    await exchange.chunk({ choices: [{ delta: { reasoning_content: 'let me ' } }] });
    await exchange.chunk({ choices: [{ delta: { reasoning_content: 'think' } }] });
    await exchange.piece('42');
    await exchange.done();
  });
  expect(client.text).toBe('42');
  const rows = await query(
    app.databaseUrl,
    'select content, reasoning from dialogue_messages where id = $1',
    [client.last.messageId],
  );
  expect(rows).toEqual([{ content: '42', reasoning: 'let me think' }]);
});

it('estimates usage that the provider does not tell, and marks it', async () => {
  const { client, end } = await reply(async (exchange) => {
    await exchange.piece('中国必胜');
    await exchange.done(null);
  });
  expect(end.totalTokens).toBeGreaterThan(4);
  const rows = await query(
    app.databaseUrl,
    'select estimated, completion_tokens from usage_ledger where message_id = $1',
    [client.last.messageId],
  );
  expect(rows).toEqual([{ estimated: true, completion_tokens: 4 }]);
});

it('asks a provider that refuses stream_options again without it at once, and remembers', async () => {
  const { body } = await acme.post('/api/admin/model-providers', {
    name: 'strict',
    kind: 'openai-compatible',
    baseUrl: upstream.url,
  });
  const { model, modelServiceId } = await scripted(
    async (exchange) => {
      if (exchange.body.stream_options)
        return exchange.fail(400, '{"error":{"message":"Unrecognized request argument: stream_options"}}');
      await exchange.piece('ok');
      await exchange.done(null);
    },
    (body as { id: string }).id,
  );
  for (let n = 0; n < 2; n += 1) {
    const client = await acme.send(says('hi', { modelServiceId }));
    await client.end();
    expect(client.text).toBe('ok');
  }
  expect(upstream.seen(model).map((exchange) => 'stream_options' in (exchange.body as object))).toEqual([
    true,
    false,
    false,
  ]);
});

describe('fails clearly when the provider', () => {
  const credential = 'upstream-secret';
  it.each<[string, (exchange: Exchange) => Promise<unknown> | void, number, RegExp]>([
    ['answers 400 as JSON', (e) => e.fail(400, '{"error":{"message":"bad model"}}'), 502, /400: bad model/],
    [
      'answers 401 quoting the key',
      (e) => e.fail(401, `{"error":"wrong key ${credential}"}`),
      502,
      /401: wrong key \[key\]/,
    ],
    [
      'answers 404 as HTML',
      (e) => e.fail(404, '<html>nginx</html>', { 'content-type': 'text/html' }),
      502,
      /404\.$/,
    ],
    [
      'answers 500 as HTML, again and again',
      (e) => e.fail(500, '<html>oops</html>', { 'content-type': 'text/html' }),
      502,
      /500\.$/,
    ],
    ['keeps answering 429', (e) => e.fail(429, '{"error":{"message":"slow down"}}'), 429, /slow down/],
    [
      'answers 429 and wants a long wait',
      (e) => e.fail(429, '{}', { 'content-type': 'application/json', 'retry-after': '3600' }),
      429,
      /429/,
    ],
    ['sends HTML with 200', (e) => e.start('text/html').response.end('<html>'), 502, /sent no stream/],
    [
      'sends an error as JSON with 200',
      (e) => e.start('application/json').response.end('{"error":{"message":"quota"}}'),
      502,
      /quota/,
    ],
    [
      'sends an error as an SSE event',
      async (e) => {
        await e.piece('a');
        await e.raw('data: {"error":{"message":"overloaded"}}\n\n');
        e.response.end();
      },
      502,
      /overloaded/,
    ],
    [
      'sends an event named error',
      async (e) => {
        await e.raw('event: error\ndata: {"message":"broken"}\n\n');
        e.response.end();
      },
      502,
      /broken/,
    ],
    [
      'sends an event that is no JSON',
      async (e) => {
        await e.raw('data: {"choi\n\n');
        e.response.end();
      },
      502,
      /not JSON/,
    ],
    ['ends without an answer', (e) => e.start().response.end(), 502, /without an answer/],
    [
      'breaks off',
      async (e) => {
        await e.piece('a');
        e.response.destroy();
      },
      502,
      /broke off/,
    ],
    [
      'says nothing',
      async (e) => {
        await e.raw(': hello\n\n');
      },
      504,
      /no answer in time/,
    ],
    [
      'falls silent',
      async (e) => {
        await e.piece('a');
      },
      504,
      /nothing more in time/,
    ],
    [
      'never comes to an end',
      async (e) => {
        for (let n = 0; n < 100 && !e.response.destroyed; n += 1) {
          await e.piece('.');
          await new Promise((resolve) => setTimeout(resolve, 100));
        }
      },
      504,
      /too long in all/,
    ],
    [
      'writes without end',
      async (e) => {
        for (let n = 0; n < 200 && !e.response.destroyed; n += 1) await e.piece('x'.repeat(100));
      },
      502,
      /length limit/,
    ],
    [
      'sends an event over 1 MiB',
      async (e) => {
        await e.raw(`data: ${'x'.repeat(1_200_000)}`);
      },
      502,
      /1 MiB/,
    ],
  ])('%s', async (_, script, code, msg) => {
    const { client, end } = await reply(script);
    expect(end).toMatchObject({
      isEnd: true,
      status: 'failed',
      error: { code, msg: expect.stringMatching(msg) as unknown },
    });
    expect(JSON.stringify(client.events)).not.toContain(credential);
    const rows = await query(app.databaseUrl, 'select status, content from dialogue_messages where id = $1', [
      client.last.messageId,
    ]);
    expect(rows).toEqual([{ status: 'failed', content: client.text }]);
    const next = await acme.send(says('and now?', { id: client.record.id as string }));
    await next.end();
    expect(next.last).toMatchObject({ status: 'finished' });
  });

  it('is not there', async () => {
    const { body } = await acme.post('/api/admin/model-providers', {
      name: 'gone',
      kind: 'openai-compatible',
      baseUrl: 'http://127.0.0.1:1/v1',
    });
    const { modelServiceId } = await scripted(() => undefined, (body as { id: string }).id);
    const answer = await acme.post(
      `/copywriting/dialogue/sse/send-message/${acme.versionId}`,
      says('x', { modelServiceId }),
      { accept: 'application/json' },
    );
    expect(answer.status).toBe(502);
    expect(answer.body).toMatchObject({
      code: 502,
      msg: expect.stringContaining('could not be reached') as unknown,
      data: { message: { status: 'failed' } },
    });
    expect(answer.text).not.toContain('127.0.0.1');
  });
});

it('tries again before the first byte, three times at most', async () => {
  const { client, model, end } = await reply(async (exchange) => {
    if (exchange.attempt < 3) return exchange.fail(503, '{}');
    await exchange.piece('third time');
    await exchange.done();
  });
  expect(client.text).toBe('third time');
  expect(end.status).toBe('finished');
  expect(upstream.seen(model)).toHaveLength(3);
});

it('passes an abort through at once, also while nothing has been answered', async () => {
  const { opened, open } = gate();
  const { model, modelServiceId } = await scripted(() => opened);
  const client = await acme.send(says('x', { modelServiceId }));
  await client.has(1);
  const exchange = await eventually(async () => upstream.seen(model)[0]);
  await acme.get(`/copywriting/dialogue/sse/close/${client.record.id}`);
  await exchange.aborted;
  open();
  await client.end();
  expect(client.last).toMatchObject({ status: 'stopped' });
});

it('shows the rival nothing of a provider', async () => {
  expect((await rival.get(`/api/admin/model-providers/${acme.providerId}`)).status).toBe(404);
});
