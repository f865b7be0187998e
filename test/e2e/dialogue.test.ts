import { bootApp, says, SseClient, type TestApp, type TestTenant } from '../support/app';
import { gate, Upstream } from '../support/upstream';

let app: TestApp;
let upstream: Upstream;
let acme: TestTenant;
let rival: TestTenant;

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

/** A text service of acme's for the model of that name, so that each test has a script of its own. */
async function service(model: string, settings: Record<string, unknown> = {}): Promise<string> {
  const answer = await acme.post('/api/admin/model-services', {
    name: model,
    model,
    providerId: acme.providerId,
    ...settings,
  });
  expect(answer.status).toBe(201);
  return (answer.body as { id: string }).id;
}

async function messages(dialogueId: string) {
  const { body, status } = await acme.get(`/api/copywriting/message/list/${dialogueId}`);
  expect(status).toBe(200);
  return (body as { rows: { id: string; role: string; content: string; parentId: string; status: string }[] })
    .rows;
}

describe('a message and its reply', () => {
  it('streams the dialogue record, the exact pieces and the end', async () => {
    const modelServiceId = await service('exact');
    const pieces = ['中国', '必胜', ' 😀', '\n', '"quoted"', '\\u0041', ' '];
    upstream.on('exact', async (exchange) => {
      await exchange.pieces(...pieces);
      await exchange.done();
    });
    const client = await acme.send(says('中国必胜', { modelServiceId, name: 'Translate' }));
    expect(client.status).toBe(200);
    expect(client.response.headers['content-type']).toBe('text/event-stream; charset=utf-8');
    const events = await client.end();
    const record = events[0]!.data as Record<string, unknown>;
    const time = expect.stringMatching(/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$/) as unknown;
    const id = expect.stringMatching(/^\d+$/) as unknown;
    expect(record).toEqual({
      createBy: expect.stringMatching(/^key of/) as unknown,
      createTime: time,
      updateBy: expect.stringMatching(/^key of/) as unknown,
      updateTime: time,
      params: {},
      tenantId: acme.id,
      id,
      userId: acme.keyId,
      sceneId: acme.versionId,
      manageId: acme.assistantId,
      modelServiceId,
      totalTokens: 0,
      youtaizhis: 0,
      isUser: false,
      realEventSource: {},
      speechUserDialogueMessage: {
        createBy: expect.stringMatching(/^key of/) as unknown,
        createTime: time,
        params: {},
        id,
        content: '中国必胜',
        role: 'user',
        parentId: id,
        userDialogueId: record.id,
        completionTokens: 0,
        promptTokens: 0,
        totalTokens: 0,
        youtaizhis: 0,
        userId: acme.keyId,
      },
      closeSse: false,
    });
    expect(events.slice(1, -1).map(({ data }) => data as unknown)).toEqual(
      pieces.map((result) => ({ result, isEnd: false, userDialogueId: record.id })),
    );
    const replyId = events[0]!.id.split(':')[0];
    expect(events.map((event) => event.id)).toEqual(events.map((_, index) => `${replyId}:${index}`));
    expect(client.last).toEqual({
      result: '',
      isEnd: true,
      userDialogueId: record.id,
      messageId: replyId,
      status: 'finished',
      promptTokens: 7,
      completionTokens: 5,
      totalTokens: 12,
      youtaizhis: 0,
    });
    expect(await messages(record.id as string)).toMatchObject([
      { role: 'user', content: '中国必胜', status: 'finished' },
      { id: replyId, role: 'assistant', content: pieces.join(''), status: 'finished' },
    ]);
  });

  it('sends the first event before the provider has answered, the message already stored', async () => {
    const modelServiceId = await service('silent');
    const { opened, open } = gate();
    upstream.on('silent', async (exchange) => {
      await opened;
      await exchange.piece('at last');
      await exchange.done();
    });
    const client = await acme.send(says('are you there?', { modelServiceId }));
    await client.has(1);
    const rows = await messages(client.record.id as string);
    expect(rows).toMatchObject([
      { role: 'user', content: 'are you there?' },
      { role: 'assistant', content: '', status: 'streaming' },
    ]);
    open();
    await client.end();
    expect(client.text).toBe('at last');
  });

  it('answers once when JSON alone is accepted', async () => {
    const answer = await acme.post(
      `/copywriting/dialogue/sse/send-message/${acme.versionId}`,
      says('one two'),
      {
        accept: 'application/json',
      },
    );
    expect(answer.status).toBe(200);
    expect(answer.body).toMatchObject({
      code: 200,
      msg: 'success',
      data: {
        dialogue: { tenantId: acme.id, speechUserDialogueMessage: { content: 'one two' } },
        message: {
          role: 'assistant',
          content: 'one two',
          status: 'finished',
          promptTokens: 7,
          completionTokens: 5,
          totalTokens: 12,
          youtaizhis: 0,
        },
      },
    });
  });

  it('streams for the Accept of an axios client that sets none', async () => {
    const client = await acme.send(says('hi'), { headers: { accept: 'application/json, text/plain, */*' } });
    await client.end();
    expect(client.response.headers['content-type']).toContain('text/event-stream');
  });

  it('charges what the service costs', async () => {
    const modelServiceId = await service('priced', { inputPrice: 1_000_000, outputPrice: 2_000_000 });
    const client = await acme.send(says('hi', { modelServiceId }));
    await client.end();
    expect(client.last).toMatchObject({ youtaizhis: 17 });
    const list = await acme.get(`/api/copywriting/dialogue/list?manageId=${acme.assistantId}&pageSize=200`);
    expect(
      (list.body as { rows: { id: string }[] }).rows.find(({ id }) => id === client.record.id),
    ).toMatchObject({ totalTokens: 12, youtaizhis: 17 });
  });

  it('works without an assistant, with the first service there is', async () => {
    const client = await acme.send(says('bare'), { versionId: null });
    await client.end();
    expect(client.text).toBe('bare');
    expect(client.record).toMatchObject({ sceneId: null, manageId: null });
    const next = await acme.send(says('again', { id: client.record.id as string }), { versionId: null });
    await next.end();
    expect(upstream.seen('echo').at(-1)!.body.messages).toEqual([
      { role: 'user', content: 'bare' },
      { role: 'assistant', content: 'bare' },
      { role: 'user', content: 'again' },
    ]);
  });

  it('accepts the published sample: a double slash, an unknown field, empty strings for what is absent', async () => {
    const client = await SseClient.open(
      app.url,
      'POST',
      `//api/copywriting/dialogue/sse/send-message/${acme.versionId}`,
      { ...says('hi', { id: '', name: '', isKb: false, tools: [], workflows: [], surprise: 1 }, '') },
      { 'x-api-key': `Bearer ${acme.apiKey}`, 'tenant-id': acme.id },
    );
    await client.end();
    expect(client.text).toBe('hi');
  });
});

describe('the prompt', () => {
  it('is the system prompt and the branch', async () => {
    const first = await acme.send(says('alpha'));
    await first.end();
    const second = await acme.send(says('beta', { id: first.record.id as string }));
    await second.end();
    expect(upstream.seen('echo').at(-1)!.body.messages).toEqual([
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'alpha' },
      { role: 'assistant', content: 'alpha' },
      { role: 'user', content: 'beta' },
    ]);
    expect(upstream.seen('echo').at(-1)!.headers.authorization).toBe('Bearer upstream-secret');
  });

  it('is cut to the context window from the oldest end, never inside a message, the system prompt always in', async () => {
    const modelServiceId = await service('narrow', { contextWindow: 64 });
    upstream.on('narrow', async (exchange) => {
      await exchange.piece('ok');
      await exchange.done();
    });
    let id: string | undefined;
    for (const content of ['first '.repeat(20), 'second '.repeat(8), 'third']) {
      const client = await acme.send(says(content, { modelServiceId, ...(id && { id }) }));
      await client.end();
      id = client.record.id as string;
    }
    expect(upstream.seen('narrow').at(-1)!.body.messages).toEqual([
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'second '.repeat(8) },
      { role: 'assistant', content: 'ok' },
      { role: 'user', content: 'third' },
    ]);
  });

  it('has a stopped reply as far as it has text and leaves one without text out', async () => {
    const modelServiceId = await service('stoppable');
    upstream.on('stoppable', async (exchange) => {
      if (exchange.attempt === 1) await exchange.piece('partial');
      if (exchange.attempt < 3) return;
      await exchange.piece('whole');
      await exchange.done();
    });
    const first = await acme.send(says('one', { modelServiceId }));
    await first.has(2);
    const id = first.record.id as string;
    await acme.get(`/api/copywriting/dialogue/sse/close/${id}`);
    await first.end();
    const second = await acme.send(says('two', { modelServiceId, id }));
    await second.has(1);
    await acme.get(`/api/copywriting/dialogue/sse/close/${id}`);
    await second.end();
    const third = await acme.send(says('three', { modelServiceId, id }));
    await third.end();
    expect(upstream.seen('stoppable').at(-1)!.body.messages).toEqual([
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'one' },
      { role: 'assistant', content: 'partial' },
      { role: 'user', content: 'two' },
      { role: 'user', content: 'three' },
    ]);
  });
});

describe('branches', () => {
  it('answer the named reply; a user message stands for its newest reply; the root starts anew', async () => {
    const first = await acme.send(says('A'));
    await first.end();
    const id = first.record.id as string;
    const second = await acme.send(says('B', { id }));
    await second.end();
    const replyToA = first.last.messageId as string;

    const branch = await acme.send(says('C', { id }, replyToA));
    await branch.end();
    expect(branch.record.speechUserDialogueMessage.parentId).toBe(replyToA);
    const byUserMessage = await acme.send(
      says('D', { id }, first.record.speechUserDialogueMessage.id as string),
    );
    await byUserMessage.end();
    expect(byUserMessage.record.speechUserDialogueMessage.parentId).toBe(replyToA);
    expect(upstream.seen('echo').at(-1)!.body.messages.slice(1)).toEqual([
      { role: 'user', content: 'A' },
      { role: 'assistant', content: 'A' },
      { role: 'user', content: 'D' },
    ]);
    const fromRoot = await acme.send(
      says('E', { id }, first.record.speechUserDialogueMessage.parentId as string),
    );
    await fromRoot.end();
    expect(upstream.seen('echo').at(-1)!.body.messages.slice(1)).toEqual([{ role: 'user', content: 'E' }]);
    const newest = await acme.send(says('F', { id }));
    await newest.end();
    expect(newest.record.speechUserDialogueMessage.parentId).toBe(fromRoot.last.messageId);
    expect(await messages(id)).toHaveLength(12);
  });

  it('refuse a message of another dialogue, of nobody, and a parent without a dialogue', async () => {
    const [one, other] = await Promise.all([acme.send(says('one')), acme.send(says('other'))]);
    await Promise.all([one.end(), other.end()]);
    const id = one.record.id as string;
    for (const [parentId, dialogue] of [
      [other.last.messageId, id],
      ['12345', id],
      [one.last.messageId, undefined],
    ] as [string, string?][]) {
      const refused = await acme.post(
        `/api/copywriting/dialogue/sse/send-message/${acme.versionId}`,
        says('x', dialogue ? { id: dialogue } : {}, parentId),
      );
      expect(refused.status).toBe(400);
      expect(refused.body).toEqual({
        code: 400,
        msg: 'speechUserDialogueMessage.parentId: is not a message of this dialogue',
      });
    }
    expect(await messages(id)).toHaveLength(2);
  });

  it('have one reply at a time: named or newest is 409, an older reply starts a branch at once', async () => {
    const modelServiceId = await service('slow');
    const { opened, open } = gate();
    upstream.on('slow', async (exchange) => {
      await exchange.piece('…');
      await opened;
      await exchange.done();
    });
    const first = await acme.send(says('A'));
    await first.end();
    const id = first.record.id as string;
    const slow = await acme.send(says('B', { id, modelServiceId }));
    await slow.has(2);
    const replyId = slow.events[0]!.id.split(':')[0]!;
    for (const parentId of [undefined, replyId, slow.record.speechUserDialogueMessage.id as string]) {
      const refused = await acme.post(
        `/api/copywriting/dialogue/sse/send-message/${acme.versionId}`,
        says('C', { id }, parentId),
      );
      expect(refused.status).toBe(409);
      expect((refused.body as { code: number }).code).toBe(409);
    }
    const branch = await acme.send(says('D', { id }, first.last.messageId as string));
    await branch.end();
    expect(branch.text).toBe('D');
    open();
    await slow.end();
    expect(await messages(id)).toHaveLength(6);
  });

  it('lets exactly one of many simultaneous sends answer the newest message', async () => {
    const modelServiceId = await service('race');
    const { opened, open } = gate();
    upstream.on('race', async (exchange) => {
      await opened;
      await exchange.done();
    });
    const first = await acme.send(says('A'));
    await first.end();
    const id = first.record.id as string;
    const sent = await Promise.all(
      Array.from({ length: 8 }, (_, n) => acme.send(says(`B${n}`, { id, modelServiceId }))),
    );
    expect(sent.map(({ status }) => status).sort()).toEqual([200, 409, 409, 409, 409, 409, 409, 409]);
    open();
    await Promise.all(sent.map((client) => client.end()));
    expect(await messages(id)).toHaveLength(4);
  });
});

describe('bad input', () => {
  const path = () => `/api/copywriting/dialogue/sse/send-message/${acme.versionId}`;
  it.each([
    ['no message', {}, /speechUserDialogueMessage/],
    ['a message that is no object', { speechUserDialogueMessage: 'hi' }, /speechUserDialogueMessage/],
    ['no content', { speechUserDialogueMessage: {} }, /speechUserDialogueMessage\.content/],
    ['empty content', says(''), /speechUserDialogueMessage\.content/],
    [
      'content of another type',
      { speechUserDialogueMessage: { content: 1 } },
      /speechUserDialogueMessage\.content/,
    ],
    ['content over 32,000', says('x'.repeat(32_001)), /speechUserDialogueMessage\.content/],
    ['NUL', says('a\0b'), /speechUserDialogueMessage\.content.*NUL/],
    ['a parentId that is no id', says('x', {}, 'abc'), /parentId/],
    ['a dialogue id that is no id', says('x', { id: '1;drop table' }), /id/],
    ['a name over 32,000', says('x', { name: 'n'.repeat(32_001) }), /name/],
    ['a model service nobody has', says('x', { modelServiceId: '99' }), /modelServiceId/],
    ['an array', [], /./],
    ['no JSON', '{"speech', /JSON/],
  ])('%s is 400 and names the field', async (_, body, message) => {
    const answer = await acme.post(path(), body);
    expect(answer.status).toBe(400);
    expect(answer.body).toEqual({ code: 400, msg: expect.stringMatching(message) as unknown });
  });

  it('takes 32,000 characters and a numeric id', async () => {
    const client = await acme.send(says('宽'.repeat(32_000)));
    await client.end();
    expect(client.text).toBe('宽'.repeat(32_000));
  });

  it('says 413 for a body over the limit and 415 for another media type', async () => {
    expect((await acme.post(path(), says('x', { padding: 'x'.repeat(1_100_000) }))).body).toMatchObject({
      code: 413,
    });
    expect((await acme.post(path(), 'a=b', { 'content-type': 'application/x-yaml' })).body).toMatchObject({
      code: 415,
    });
  });

  it('says 404 for a version, a dialogue, a path that is not there', async () => {
    for (const answer of [
      await acme.post('/api/copywriting/dialogue/sse/send-message/1', says('x')),
      await acme.post('/api/copywriting/dialogue/sse/send-message/nonsense', says('x')),
      await acme.post(path(), says('x', { id: '1' })),
      await acme.get('/api/copywriting/message/list/1'),
      await acme.get('/copywriting/no/such/path'),
    ]) {
      expect(answer.status).toBe(404);
      expect(answer.body).toEqual({ code: 404, msg: expect.any(String) as unknown });
    }
  });
});

describe('lists', () => {
  it('page and order by the named columns alone', async () => {
    const user = { 'user-id': 'pager' };
    for (const name of ['b', 'a', 'c']) await (await acme.send(says('x', { name }), { headers: user })).end();
    const names = async (query: string) =>
      (
        (
          await acme.get(
            `/api/copywriting/dialogue/list?isUser=true&manageId=${acme.assistantId}&${query}`,
            user,
          )
        ).body as { rows: { name: string }[] }
      ).rows.map(({ name }) => name);
    expect(await names('orderByColumn=name&isAsc=asc')).toEqual(['a', 'b', 'c']);
    expect(await names('orderByColumn=create_time&isAsc=asc')).toEqual(['b', 'a', 'c']);
    expect(await names('')).toEqual(['c', 'a', 'b']);
    expect(await names('orderByColumn=name&isAsc=asc&pageSize=2&pageNum=2')).toEqual(['c']);
    expect(await names('orderByColumn=&isAsc=&pageSize=&pageNum=')).toHaveLength(3);
    const total = await acme.get('/api/copywriting/dialogue/list?isUser=true&pageSize=1', user);
    expect(total.body).toMatchObject({ code: 200, msg: 'success', total: 3 });
    for (const bad of [
      'orderByColumn=user_id',
      'orderByColumn=__proto__',
      'isAsc=up',
      'pageNum=0',
      'pageSize=x',
      'manageId=x',
    ]) {
      const answer = await acme.get(`/api/copywriting/dialogue/list?${bad}`);
      expect(answer.body).toMatchObject({ code: 400 });
    }
  });

  it('show the services a tenant may use, without a credential', async () => {
    const answer = await acme.get(
      '/api/copywriting/user-model/model-list?modelServiceType=0&orderByColumn=orderNum',
    );
    expect(answer.status).toBe(200);
    const { rows } = answer.body as { rows: { id: string; modelServiceType: number }[] };
    expect(rows.find(({ id }) => id === acme.serviceId)).toMatchObject({
      name: 'service',
      modelServiceType: 0,
      orderNum: 0,
    });
    expect(rows.some(({ id }) => id === rival.serviceId)).toBe(false);
    expect(answer.text).not.toContain('upstream-secret');
  });

  it('describe an assistant by its version, never its prompt', async () => {
    const answer = await acme.get(`/copywriting/scene/user/${acme.versionId}`);
    expect(answer.body).toMatchObject({
      code: 200,
      data: { id: acme.versionId, manageId: acme.assistantId, agentId: 'main', name: 'Main' },
    });
    expect(answer.text).not.toContain('Be brief.');
  });
});

describe('the rival tenant', () => {
  it("finds nothing of acme's", async () => {
    const client = await acme.send(says('secret'));
    await client.end();
    const id = client.record.id as string;
    const replyId = client.last.messageId as string;
    for (const answer of [
      await rival.get(`/api/copywriting/message/list/${id}`),
      await rival.get(`/api/copywriting/dialogue/sse/close/${id}`),
      await rival.get(`/api/copywriting/dialogue/sse/resume/${replyId}`),
      await rival.get(`/api/copywriting/scene/user/${acme.versionId}`),
      await rival.post(`/api/copywriting/dialogue/sse/send-message/${acme.versionId}`, says('x')),
      await rival.post(`/api/copywriting/dialogue/sse/send-message/${rival.versionId}`, says('x', { id })),
    ]) {
      expect(answer.status).toBe(404);
      expect(answer.text).not.toContain('secret');
    }
    const foreign = await rival.post(
      `/api/copywriting/dialogue/sse/send-message/${rival.versionId}`,
      says('x', { modelServiceId: acme.serviceId }),
    );
    expect(foreign.body).toMatchObject({ code: 400 });
    const list = await rival.get(`/api/copywriting/dialogue/list?manageId=${acme.assistantId}`);
    expect(list.body).toMatchObject({ total: 0, rows: [] });
  });
});
