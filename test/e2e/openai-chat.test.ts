import OpenAI, { APIError } from 'openai';
import { DialoguesRepository } from '../../src/messages';
import { ask, bootApp, eventually, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { allOf, call, completions, eventsOf, finish, ScriptedModels } from '../support/openai-chat';
import { gate, Upstream, type Exchange, type Script } from '../support/upstream';

/** protocols/openai.md, chat: by the official SDK, and by plain HTTP where the SDK hides what was sent. */
const TOOL = {
  type: 'function',
  function: { name: 'weather', parameters: { type: 'object', properties: { city: { type: 'string' } } } },
} as const;
const PIXEL = 'data:image/png;base64,iVBORw0KGgo=';
const TEXT = 'Hi — 你好 😀\n\ndata: "quoted"\u2028\r\n\tend';

let app: TestApp;
let upstream: Upstream;
let acme: TestTenant;
let rival: TestTenant;
let client: OpenAI;
let models: ScriptedModels;
let rivals: ScriptedModels;

const clientOf = (
  { apiKey }: { apiKey: string },
  options: ConstructorParameters<typeof OpenAI>[0] = {},
  prefix = '/v1',
) => new OpenAI({ baseURL: `${app.url}${prefix}`, apiKey, maxRetries: 0, ...options });

const user = (content: string) => [{ role: 'user', content }] as OpenAI.ChatCompletionMessageParam[];
/** **Parley**: what the SDK's types do not know. */
const kept = (sessionId: string) => ({ sessionId });

beforeAll(async () => {
  [app, upstream] = await Promise.all([bootApp(), Upstream.start()]);
  [acme, rival] = await Promise.all([
    app.tenant({ baseUrl: upstream.url, model: 'echo-acme' }),
    app.tenant({ baseUrl: upstream.url, model: 'echo-rival' }),
  ]);
  client = clientOf(acme);
  models = new ScriptedModels(upstream, acme);
  rivals = new ScriptedModels(upstream, rival);
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

async function failure(promise: PromiseLike<unknown>): Promise<APIError> {
  const error: unknown = await promise.then(
    () => new Error('did not fail'),
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof APIError)) throw error;
  return error;
}

const ledger = (serviceId: string) =>
  query<Record<string, any>>(
    app.databaseUrl,
    `select tenant_id, user_id, key_id, assistant_id, attempts, prompt_tokens, completion_tokens, total_tokens,
       estimated, outcome from usage_ledger where model_service_id = $1 order by message_id`,
    [serviceId],
  );
/** For endings that nobody is there to be told of. */
const ledgerOfGone = (serviceId: string) =>
  eventually(async () => {
    const rows = await ledger(serviceId);
    return rows.length > 0 && rows;
  });

/** How many rows every table of tenants has, but those that the ledger is added up in now and then. */
async function rowCounts(): Promise<Record<string, number>> {
  const tables = await query<{ name: string }>(
    app.databaseUrl,
    `select c.table_name as name from information_schema.columns c
     join information_schema.tables t using (table_schema, table_name)
     where c.table_schema = 'public' and c.column_name = 'tenant_id' and t.table_type = 'BASE TABLE'
       and c.table_name !~ '^usage_(user_)?(hours|days)$'`,
  );
  const counts = tables.map(({ name }) => `select '${name}' as name, count(*)::int as rows from "${name}"`);
  const rows = await query<{ name: string; rows: number }>(app.databaseUrl, counts.join(' union all '));
  return Object.fromEntries(rows.map((row) => [row.name, row.rows]));
}

const raw = (body: unknown, headers: Record<string, string> = {}, tenant = acme) =>
  completions(app, body, tenant, headers);
/** The text of an event stream's chunks. */
const textOf = (events: any[]) => events.map((chunk) => chunk.choices?.[0]?.delta.content ?? '').join('');

describe('a model', () => {
  it.each(['/v1', '/api/v1', '//v1', '//api/v1'])('is asked under %s', async (prefix) => {
    const { model } = await models.model();
    const asked = { model, messages: user('one two') };
    const here = clientOf(acme, {}, prefix);
    expect((await here.chat.completions.create(asked)).choices[0]!.message.content).toBe('one two');
    const stream = await here.chat.completions.create({ ...asked, stream: true });
    expect(textOf(await allOf(stream))).toBe('one two');
    const error = await failure(here.chat.completions.create({ ...asked, n: 2 }));
    expect([error.status, error.param]).toEqual([400, 'n']);
  });

  it('is a service by its name or id, asked as such, and told as the client called it', async () => {
    const { model, serviceId } = await models.model();
    for (const name of [model, serviceId]) {
      const answer = await client.chat.completions.create({ model: name, messages: user('hi') });
      expect(answer.model).toBe(name);
    }
    expect(upstream.seen(model).map(({ body }) => body)).toEqual(
      Array(2).fill({
        model,
        messages: user('hi'),
        stream: true,
        stream_options: { include_usage: true },
      }),
    );
    expect(upstream.seen(model)[0]!.headers.authorization).toBe('Bearer upstream-secret');
    const row = { tenant_id: acme.id, key_id: acme.keyId, user_id: acme.keyId, assistant_id: null };
    expect(await ledger(serviceId)).toMatchObject([row, row]);
  });

  it.each(['main', 'agent:main'])('is an agent as "%s": its own prompt comes first', async (model) => {
    const messages = [{ role: 'system', content: 'In rhyme.' }, ...user(`as ${model}`)] as const;
    const answer = await client.chat.completions.create({ model, messages: [...messages] });
    expect(answer.choices[0]!.message.content).toBe(`as ${model}`);
    expect(upstream.seen('echo-acme').at(-1)!.body.messages).toEqual([
      { role: 'system', content: 'Be brief.' },
      ...messages,
    ]);
    expect(await ledger(acme.serviceId)).toContainEqual(
      expect.objectContaining({ assistant_id: acme.assistantId }),
    );
  });

  it('is the service where an agent has the same name, unless it says agent:', async () => {
    const { slug, model: own } = await models.agent();
    const other = await models.model(undefined, { name: slug });
    await client.chat.completions.create({ model: slug, messages: user('x') });
    await client.chat.completions.create({ model: `agent:${slug}`, messages: user('x') });
    expect([upstream.seen(other.model).length, upstream.seen(own).length]).toEqual([1, 1]);
  });

  it('is none: 404, and so is what a rival has', async () => {
    const theirs = await rivals.agent();
    const unpublished = await acme.post('/api/admin/assistants', { slug: 'unpublished', name: 'x' });
    expect(unpublished.status).toBe(201);
    const names = [
      'nobody',
      'agent:nobody',
      'unpublished',
      '12345',
      theirs.model,
      theirs.serviceId,
      theirs.slug,
      `agent:${theirs.slug}`,
      rival.serviceId,
    ];
    for (const model of names) {
      const error = await failure(client.chat.completions.create({ model, messages: user('x') }));
      expect(error).toBeInstanceOf(OpenAI.NotFoundError);
      expect(error).toMatchObject({ code: 'model_not_found', param: 'model', type: 'invalid_request_error' });
      expect(error.message).toContain(model);
    }
    expect(upstream.seen(theirs.model)).toHaveLength(0);
    const own = await clientOf(rival).chat.completions.create({ model: 'main', messages: user('mine') });
    expect(own.choices[0]!.message.content).toBe('mine');
  });

  it('that writes no text is refused', async () => {
    const { model } = await models.model(undefined, { type: 2 });
    const error = await failure(client.chat.completions.create({ model, messages: user('x') }));
    expect([error.status, error.param]).toEqual([400, 'model']);
  });
});

describe('a caller', () => {
  const say = (sdk: OpenAI) => sdk.chat.completions.create({ model: 'main', messages: user('who am I') });
  const plain = (headers: Record<string, string>) =>
    ask(app.url, 'POST', '/v1/chat/completions', { model: 'main', messages: user('x') }, headers);

  it('is known by Authorization or x-api-key', async () => {
    expect((await plain({ authorization: `Bearer ${acme.apiKey}` })).status).toBe(200);
    expect((await plain({ 'x-api-key': acme.apiKey })).status).toBe(200);
    expect((await plain({ 'x-api-key': `Bearer ${acme.apiKey}` })).status).toBe(200);
  });

  it.each<[string, Record<string, string>]>([
    ['no key', {}],
    ['no such key', { authorization: 'Bearer sk-nonsense' }],
    ['a wrong key beside a right one', { 'x-api-key': 'nonsense' }],
  ])('with %s: 401', async (_, headers) => {
    const right: Record<string, string> = headers['x-api-key']
      ? { authorization: `Bearer ${acme.apiKey}` }
      : {};
    const { status, body, headers: answered } = await plain({ ...right, ...headers });
    expect(status).toBe(401);
    expect(body.error).toEqual({
      message: expect.any(String),
      type: 'invalid_request_error',
      param: null,
      code: 'invalid_api_key',
    });
    expect(answered['x-request-id']).toMatch(/^req_\w{32}$/);
  });

  it('with a wrong key gets an AuthenticationError', async () => {
    const error = await failure(say(clientOf({ apiKey: `${acme.apiKey}x` })));
    expect(error).toBeInstanceOf(OpenAI.AuthenticationError);
    expect(error.code).toBe('invalid_api_key');
    expect(error.requestID).toMatch(/^req_/);
  });

  it('with the root key picks the tenant by organization, or tenant-id', async () => {
    for (const [tenant, model] of [
      [acme, 'echo-acme'],
      [rival, 'echo-rival'],
    ] as const) {
      const before = upstream.seen(model).length;
      await say(clientOf({ apiKey: app.rootKey }, { organization: tenant.id }));
      const named = { defaultHeaders: { 'tenant-id': tenant.id }, organization: '1' };
      await say(clientOf({ apiKey: app.rootKey }, named));
      expect(upstream.seen(model)).toHaveLength(before + 2);
    }
  });

  it('that names a tenant not its own gets 401', async () => {
    for (const organization of [rival.id, '12345', 'org-nonsense']) {
      const error = await failure(say(clientOf(acme, { organization })));
      expect(error).toBeInstanceOf(OpenAI.AuthenticationError);
    }
    const rootError = await failure(say(clientOf({ apiKey: app.rootKey }, { organization: '12345' })));
    expect(rootError.status).toBe(401);
    await say(clientOf(acme, { organization: acme.id }));
  });

  it('of no tenant at all finds no agent', async () => {
    const error = await failure(say(clientOf({ apiKey: app.rootKey })));
    expect(error).toBeInstanceOf(OpenAI.NotFoundError);
  });

  it('whose key is for other things gets a PermissionDeniedError', async () => {
    const path = `/api/admin/tenants/${acme.id}/api-keys`;
    const { body } = await acme.post(path, { name: 'im only', scopes: ['im'] });
    const error = await failure(say(clientOf({ apiKey: body.key })));
    expect(error).toBeInstanceOf(OpenAI.PermissionDeniedError);
    expect(error.code).toBe('insufficient_permissions');
  });

  it('speaks for the user in user-id, else in `user`, else for itself', async () => {
    const { model, serviceId } = await models.model();
    const asked = { model, messages: user('x') };
    await client.chat.completions.create(asked);
    await client.chat.completions.create({ ...asked, user: 'ann' });
    await client.chat.completions.create({ ...asked, user: 'ann' }, { headers: { 'user-id': 'bob' } });
    await client.chat.completions.create({ ...asked, user: '' });
    const users = (await ledger(serviceId)).map(({ user_id: id }) => id as string);
    expect(users).toEqual([acme.keyId, 'ann', 'bob', acme.keyId]);
  });
});

describe('the provider is sent', () => {
  it('the messages as they came: parts, names, every role', async () => {
    const { model } = await models.model((e) => e.piece('ok').then(() => e.done()));
    const messages: OpenAI.ChatCompletionMessageParam[] = [
      { role: 'system', content: 'S' },
      { role: 'developer', content: 'D' },
      { role: 'user', name: 'ann', content: TEXT },
      { role: 'assistant', content: 'A' },
      {
        role: 'user',
        content: [
          { type: 'text', text: 'What is this?' },
          { type: 'image_url', image_url: { url: PIXEL, detail: 'low' } },
          { type: 'image_url', image_url: { url: 'https://images.example/1.png' } },
        ],
      },
    ];
    await client.chat.completions.create({ model, messages });
    expect(upstream.seen(model)[0]!.body.messages).toEqual(messages);
  });

  it('the parameters, over those of the service and the agent', async () => {
    const service = { parameters: { temperature: 0.1, top_k: 5, stop: ['x'] } };
    const { serviceId, model: own } = await models.model(undefined, service);
    const { slug } = await models.agent(undefined, {
      modelServiceId: serviceId,
      parameters: { temperature: 0.2, max_tokens: 9 },
    });
    const parameters = {
      temperature: 0,
      top_p: 0.5,
      max_completion_tokens: 64,
      stop: ['\n'],
      seed: 42,
      presence_penalty: 1,
      frequency_penalty: -1,
      logit_bias: { '5': 1 },
      reasoning_effort: 'low' as const,
      response_format: {
        type: 'json_schema' as const,
        json_schema: { name: 'city', schema: { type: 'object' }, strict: true },
      },
      tools: [TOOL],
      tool_choice: { type: 'function' as const, function: { name: 'weather' } },
      parallel_tool_calls: false,
    };
    const messages = user('x');
    const ours = { n: 1, user: 'ann', store: true, metadata: { a: 'b' } };
    await client.chat.completions.create({ model: slug, messages, ...ours, ...parameters });
    await client.chat.completions.create({ model: own, messages, max_tokens: 7, tool_choice: 'none' });
    const [agents, plain] = upstream.seen(own).map(({ body }) => body);
    expect(agents).toEqual({
      model: own,
      messages: [{ role: 'system', content: 'Be brief.' }, ...messages],
      ...parameters,
      top_k: 5,
      max_tokens: 9,
      stream: true,
      stream_options: { include_usage: true },
    });
    expect(plain).toMatchObject({ ...service.parameters, max_tokens: 7, tool_choice: 'none' });
  });
});

describe('an answer', () => {
  const speak: Script = async (e) => {
    // In the middle of a surrogate pair.
    await e.pieces(TEXT.slice(0, 9), TEXT.slice(9));
    await e.done();
  };
  const created = { asymmetricMatch: (at: unknown) => Math.abs(Date.now() / 1_000 - Number(at)) < 60 };

  it('comes whole', async () => {
    const { model } = await models.model(speak);
    const answer = await client.chat.completions.create({ model, messages: user('x') });
    expect(answer).toEqual({
      id: expect.stringMatching(/^chatcmpl-\d+$/),
      object: 'chat.completion',
      created,
      model,
      choices: [
        {
          index: 0,
          message: { role: 'assistant', content: TEXT, refusal: null },
          logprobs: null,
          finish_reason: 'stop',
        },
      ],
      usage: { prompt_tokens: 7, completion_tokens: 5, total_tokens: 12 },
    });
    expect(answer._request_id).toMatch(/^req_/);
  });

  it('comes as chunks: the role first, the reason last, then [DONE], and no usage that nobody asked for', async () => {
    const { model } = await models.model(speak);
    const response = await raw({ model, messages: user('x'), stream: true });
    expect(response.status).toBe(200);
    expect(response.headers.get('content-type')).toMatch(/^text\/event-stream/);
    expect(response.headers.get('cache-control')).toMatch(/no-cache/);
    expect(response.headers.get('x-request-id')).toMatch(/^req_/);
    const events = eventsOf(await response.text());
    expect(events.pop()).toBe('[DONE]');
    const base = { id: events[0].id, object: 'chat.completion.chunk', created, model };
    for (const chunk of events) expect(chunk).toMatchObject(base);
    const choices = events.map((chunk) => chunk.choices);
    const choice = (delta: unknown, reason: string | null = null) => [
      { index: 0, delta, logprobs: null, finish_reason: reason },
    ];
    expect(choices).toEqual([
      choice({ role: 'assistant', content: '', refusal: null }),
      choice({ content: TEXT.slice(0, 8) }),
      choice({ content: TEXT.slice(8) }),
      choice({}, 'stop'),
    ]);
    expect(events.some((chunk) => 'usage' in chunk)).toBe(false);
  });

  it.each<[string, { prompt_tokens: number; completion_tokens: number } | null, object]>([
    [
      'as the provider tells it',
      { prompt_tokens: 7, completion_tokens: 5 },
      { prompt_tokens: 7, completion_tokens: 5, total_tokens: 12 },
    ],
    ['estimated where it tells none', null, { prompt_tokens: 6, completion_tokens: 4, total_tokens: 10 }],
  ])('tells usage in one chunk when asked to, %s', async (_, told, usage) => {
    const { model, serviceId } = await models.model((e) => e.piece('中国必胜').then(() => e.done(told)));
    const asked = { model, messages: user('12345678') };
    const options = { stream: true, stream_options: { include_usage: true } } as const;
    const chunks = await allOf(await client.chat.completions.create({ ...asked, ...options }));
    const telling = chunks.filter((chunk) => chunk.usage);
    expect(telling).toMatchObject([{ choices: [], usage }]);
    expect(chunks.at(-1)).toBe(telling[0]);
    expect((await client.chat.completions.create(asked)).usage).toEqual(usage);
    expect(await ledger(serviceId)).toEqual(
      Array(2).fill(expect.objectContaining({ ...usage, estimated: told === null, outcome: 'finished' })),
    );
  });

  it('leaves as it is written', async () => {
    const { opened, open } = gate();
    const { model } = await models.model(async (e) => {
      await e.piece('first');
      await opened;
      await e.piece(' second');
      await e.done();
    });
    const stream = await client.chat.completions.create({ model, messages: user('x'), stream: true });
    let text = '';
    for await (const { choices } of stream) {
      text += choices[0]?.delta.content ?? '';
      if (text === 'first') open();
    }
    expect(text).toBe('first second');
  });

  it('may be none, or cut off', async () => {
    const { model } = await models.model((e) => finish(e, 'length'));
    const asked = { model, messages: user('x') };
    const [choice] = (await client.chat.completions.create(asked)).choices;
    expect(choice).toMatchObject({ message: { content: '' }, finish_reason: 'length' });
    const chunks = await allOf(await client.chat.completions.create({ ...asked, stream: true }));
    expect(chunks.map(({ choices }) => choices[0]!.finish_reason)).toEqual([null, 'length']);
  });

  it('keeps thoughts apart', async () => {
    const { model } = await models.model(async (e) => {
      await e.chunk({ choices: [{ delta: { reasoning_content: 'let me ' } }] });
      await e.chunk({ choices: [{ delta: { reasoning_content: 'think' } }] });
      await e.piece('42');
      await e.done();
    });
    const { body } = await acme.post('/v1/chat/completions', { model, messages: user('x') });
    expect(body.choices[0].message).toMatchObject({ content: '42', reasoning_content: 'let me think' });
    const events = eventsOf(await (await raw({ model, messages: user('x'), stream: true })).text());
    const thoughts = events.map((chunk) => chunk.choices?.[0]?.delta.reasoning_content ?? '');
    expect([thoughts.join(''), textOf(events)]).toEqual(['let me think', '42']);
  });
});

describe('tools', () => {
  const ask = { messages: user('Weather in Bonn and Ulm?'), tools: [TOOL] };
  const both: Script = async (e) => {
    await e.piece('Let me see.');
    await call(e, { id: 'c1', name: 'weather', args: ['{"ci', 'ty":', '"Bonn"}'] });
    await call(e, { index: 1, id: 'c2', name: 'weather', args: ['{"city":"Ulm"}'] });
    await finish(e, 'tool_calls');
  };
  const called = [
    { id: 'c1', type: 'function', function: { name: 'weather', arguments: '{"city":"Bonn"}' } },
    { id: 'c2', type: 'function', function: { name: 'weather', arguments: '{"city":"Ulm"}' } },
  ];

  it('are called in a whole answer', async () => {
    const { model } = await models.model(both);
    const { choices } = await client.chat.completions.create({ model, ...ask });
    expect(choices[0]).toMatchObject({
      message: { role: 'assistant', content: 'Let me see.', tool_calls: called },
      finish_reason: 'tool_calls',
    });
  });

  it('are called in a stream, as the SDK puts it together', async () => {
    const { model } = await models.model(both);
    const stream = client.chat.completions.stream({ model, ...ask });
    const done: string[] = [];
    stream.on('tool_calls.function.arguments.done', ({ arguments: args }) => done.push(args));
    const { choices } = await stream.finalChatCompletion();
    expect(choices[0]).toMatchObject({
      message: { content: 'Let me see.', tool_calls: called },
      finish_reason: 'tool_calls',
    });
    expect(done).toEqual(['{"city":"Bonn"}', '{"city":"Ulm"}']);
  });

  it('are told once each, also by a provider that repeats or forgets their ids', async () => {
    const { model } = await models.model(async (e) => {
      const part = (fields: object) => e.chunk({ choices: [{ delta: { tool_calls: [fields] } }] });
      await part({ index: 0, id: 'c1', function: { name: 'weather', arguments: '{' } });
      await part({ index: 0, id: 'c1', function: { name: 'weather', arguments: '}' } });
      await part({ index: 1, function: { name: 'weather', arguments: {} } });
      await e.done(null);
    });
    const { choices } = await client.chat.completions.create({ model, ...ask });
    const whole = choices[0]!.message.tool_calls!;
    expect(whole.map(({ id }) => id)).toEqual(['c1', expect.stringMatching(/^[A-Za-z0-9]{9}$/)]);
    const events = eventsOf(await (await raw({ model, ...ask, stream: true })).text());
    const parts = events.flatMap((chunk) => chunk.choices?.[0]?.delta.tool_calls ?? []);
    expect(parts).toEqual([
      { index: 0, id: 'c1', type: 'function', function: { name: 'weather', arguments: '{' } },
      { index: 0, function: { arguments: '}' } },
      {
        index: 1,
        id: expect.stringMatching(/^[A-Za-z0-9]{9}$/),
        type: 'function',
        function: { name: 'weather', arguments: '{}' },
      },
    ]);
  });

  it('have their results sent on in the second round', async () => {
    const { model, serviceId } = await models.model(async (e) => {
      const results = (e.body.messages as { role: string; content: string }[]).filter(
        ({ role }) => role === 'tool',
      );
      if (results.length === 0) {
        await call(e, { id: 'c1', name: 'weather', args: ['{"city":"Bonn"}'] });
        return finish(e, 'tool_calls');
      }
      await e.piece(`It is ${results[0]!.content}.`);
      await e.done();
    });
    const asked = user('Weather in Bonn?');
    const first = await client.chat.completions.create({ model, messages: asked, tools: [TOOL] });
    const { message } = first.choices[0]!;
    expect(message.content).toBeNull();
    const messages: OpenAI.ChatCompletionMessageParam[] = [
      ...asked,
      message,
      { role: 'tool', tool_call_id: message.tool_calls![0]!.id, content: 'sunny' },
    ];
    const second = await client.chat.completions.create({ model, messages, tools: [TOOL] });
    expect(second.choices[0]!.message.content).toBe('It is sunny.');
    expect(upstream.seen(model)[1]!.body.messages).toEqual([
      ...asked,
      { role: 'assistant', content: null, tool_calls: [called[0]] },
      { role: 'tool', tool_call_id: 'c1', content: 'sunny' },
    ]);
    expect(await ledger(serviceId)).toHaveLength(2);
  });

  it('run by the SDK itself come to an answer', async () => {
    const { model } = await models.model(async (e) => {
      const result = (e.body.messages as { role: string; content: string }[]).find(
        ({ role }) => role === 'tool',
      );
      if (result) return e.piece(`It is ${result.content}.`).then(() => e.done());
      await call(e, { id: 'c1', name: 'weather', args: ['{"city":', '"Bonn"}'] });
      await finish(e, 'tool_calls');
    });
    const runner = client.chat.completions.runTools({
      model,
      messages: user('Weather in Bonn?'),
      stream: true,
      tools: [
        {
          type: 'function',
          function: {
            ...TOOL.function,
            description: 'Weather in a city',
            parse: JSON.parse as (text: string) => { city: string },
            function: ({ city }: { city: string }) => `rainy in ${city}`,
          },
        },
      ],
    });
    expect(await runner.finalContent()).toBe('It is rainy in Bonn.');
  });
});

describe('a request that is refused', () => {
  const message = { role: 'user', content: 'x' };
  it.each<[string, Record<string, unknown>, string]>([
    ['no messages', { messages: undefined }, 'messages'],
    ['an empty list', { messages: [] }, 'messages'],
    ['an unknown role', { messages: [message, { role: 'robot', content: 'x' }] }, 'messages[1].role'],
    ['NUL', { messages: [{ role: 'user', content: 'a\0b' }] }, 'messages[0].content'],
    [
      'NUL in a part',
      { messages: [{ role: 'user', content: [{ type: 'text', text: '\0' }] }] },
      'messages[0].content[0].text',
    ],
    ['no content', { messages: [{ role: 'user' }] }, 'messages[0].content'],
    ['a result of no call', { messages: [{ role: 'tool', content: 'x' }] }, 'messages[0].tool_call_id'],
    ['too many messages', { messages: Array(2_049).fill(message) }, 'messages'],
    ['two answers', { n: 2 }, 'n'],
    ['a hot temperature', { temperature: 2.5 }, 'temperature'],
    ['no tokens', { max_tokens: 0 }, 'max_tokens'],
    ['five stops', { stop: ['1', '2', '3', '4', '5'] }, 'stop'],
    ['tools that are none', { tools: [{ type: 'function' }] }, 'tools'],
    ['a stream that is none', { stream: 'yes' }, 'stream'],
    ['a user that is too long', { user: 'x'.repeat(129) }, 'user'],
    ['a sessionId that is too long', { sessionId: 'x'.repeat(129) }, 'sessionId'],
    ['a model that is too long', { model: 'x'.repeat(257) }, 'model'],
    ['no model', { model: undefined }, 'model'],
    ['a body over the limit', { messages: [{ role: 'user', content: 'x'.repeat(1_048_576) }] }, 'body'],
  ])('for %s: 400 that names it, and nothing happens', async (_, more, param) => {
    const { model, serviceId } = await models.model();
    for (const stream of [false, true]) {
      const response = await raw({ model, messages: [message], stream, ...more });
      expect(response.status).toBe(400);
      expect(response.headers.get('content-type')).toMatch(/^application\/json/);
      expect(response.headers.get('x-request-id')).toMatch(/^req_/);
      const { error } = (await response.json()) as { error: Record<string, unknown> };
      expect(error).toMatchObject({ type: 'invalid_request_error', param, message: expect.any(String) });
      expect(Object.keys(error).sort()).toEqual(['code', 'message', 'param', 'type']);
    }
    expect(upstream.seen(model)).toHaveLength(0);
    expect(await ledger(serviceId)).toHaveLength(0);
  });

  it('is a BadRequestError that names the field', async () => {
    const asked = { model: 'main', messages: user('x'), temperature: 3 };
    const error = await failure(client.chat.completions.create(asked));
    expect(error).toBeInstanceOf(OpenAI.BadRequestError);
    expect(error).toMatchObject({ param: 'temperature', type: 'invalid_request_error' });
    expect(error.message).toMatch(/temperature/);
  });

  it('for not being JSON, not saying so, or going nowhere: in the same shape, with x-request-id', async () => {
    const answers = await Promise.all([
      raw('{"model":'),
      raw('[1]'),
      raw('<x/>', { 'content-type': 'application/xml' }),
      raw('{"__proto__":{"a":1}}'),
      fetch(`${app.url}/v1/nothing`, { headers: { authorization: `Bearer ${acme.apiKey}` } }),
      fetch(`${app.url}/v1/chat/completions`, { headers: { authorization: `Bearer ${acme.apiKey}` } }),
    ]);
    expect(answers.map(({ status }) => status)).toEqual([400, 400, 415, 400, 404, 404]);
    const codes = await Promise.all(
      answers.map(async (answer) => {
        expect(answer.headers.get('x-request-id')).toMatch(/^req_/);
        const { error } = (await answer.json()) as { error: { type: string; code: string } };
        expect(error.type).toBe('invalid_request_error');
        return error.code;
      }),
    );
    expect(codes.slice(-2)).toEqual(['unknown_url', 'unknown_url']);
  });
});

describe('a provider that', () => {
  const slow = { idleTimeoutMs: 500, firstPieceTimeoutMs: 500 };
  it.each<[string, Script, new (...args: never[]) => APIError, object, number]>([
    [
      'finds the request wrong',
      (e) => e.fail(400, '{"error":{"message":"too many tokens"}}'),
      OpenAI.BadRequestError,
      { status: 400, type: 'invalid_request_error', message: expect.stringMatching(/too many tokens/) },
      1,
    ],
    [
      'refuses our key, quoting it',
      (e) => e.fail(401, '{"error":{"message":"wrong key upstream-secret"}}'),
      OpenAI.InternalServerError,
      { status: 502, type: 'api_error', message: expect.stringMatching(/wrong key \[key\]/) },
      1,
    ],
    [
      'keeps answering 429',
      (e) => e.fail(429, '{"error":{"message":"slow down"}}'),
      OpenAI.RateLimitError,
      { status: 429, code: 'rate_limit_exceeded', message: expect.stringMatching(/slow down/) },
      3,
    ],
    [
      'keeps failing',
      (e) => e.fail(500, '<html>'),
      OpenAI.InternalServerError,
      { status: 502, type: 'api_error' },
      3,
    ],
    ['says nothing', () => undefined, OpenAI.InternalServerError, { status: 504, type: 'api_error' }, 1],
  ])('%s raises the SDK’s own error, streamed or not', async (_, script, type, shape, attempts) => {
    const provider = await acme.post('/api/admin/model-providers', {
      name: 'slow',
      kind: 'openai-compatible',
      baseUrl: upstream.url,
      credentials: [{ apiKey: 'upstream-secret' }],
      ...(attempts === 1 && slow),
    });
    const { model, serviceId } = await models.model(script, { providerId: provider.body.id });
    for (const stream of [false, true]) {
      const error = await failure(client.chat.completions.create({ model, messages: user('x'), stream }));
      expect(error).toBeInstanceOf(type);
      expect(error).toMatchObject({ ...shape, requestID: expect.stringMatching(/^req_/) });
      if (error.status === 429) expect(Number(error.headers!.get('retry-after'))).toBeGreaterThan(0);
    }
    expect(upstream.seen(model)).toHaveLength(2 * attempts);
    expect(await ledger(serviceId)).toMatchObject(
      Array(2).fill({ outcome: 'failed', attempts, estimated: true, completion_tokens: 0 }),
    );
  });

  it('says when to come back is passed on', async () => {
    const { model } = await models.model((e) => e.fail(429, '{}', { 'retry-after': '3600' }));
    const error = await failure(client.chat.completions.create({ model, messages: user('x') }));
    expect(error).toBeInstanceOf(OpenAI.RateLimitError);
    expect(error.headers!.get('retry-after')).toBe('3600');
    expect(upstream.seen(model)).toHaveLength(1);
  });

  it('breaks off in mid-stream: what came, then an error that the SDK raises, and no end', async () => {
    const { model, serviceId } = await models.model(async (e) => {
      await e.piece('so far');
      e.response.destroy();
    });
    let text = '';
    const reading = (async () => {
      const asked = { model, messages: user('x'), stream: true } as const;
      for await (const chunk of await client.chat.completions.create(asked)) {
        text += chunk.choices[0]?.delta.content ?? '';
        expect(chunk.choices[0]?.finish_reason).toBeNull();
      }
    })();
    const error = await failure(reading);
    expect([text, error.type]).toEqual(['so far', 'api_error']);
    expect(error.message).toMatch(/broke off/);
    const events = eventsOf(await (await raw({ model, messages: user('x'), stream: true })).text());
    expect(events.slice(-2)).toMatchObject([{ error: { type: 'api_error', param: null } }, '[DONE]']);
    const whole = await failure(client.chat.completions.create({ model, messages: user('x') }));
    expect(whole.status).toBe(502);
    expect(await ledger(serviceId)).toMatchObject(Array(3).fill({ outcome: 'failed', estimated: true }));
  });
});

describe('the SDK’s own retries', () => {
  const retrying = () => clientOf(acme, { maxRetries: 2 });
  const once =
    (fail: (e: Exchange) => unknown): Script =>
    async (e) => {
      if (e.attempt === 1) return fail(e);
      await e.piece('at last');
      await e.done();
    };

  it.each<[string, (e: Exchange) => unknown]>([
    ['a failing provider', (e) => e.start().response.end()],
    ['a rate limit', (e) => e.fail(429, '{}', { 'retry-after': '600' })],
  ])('get over %s, each request with a ledger row; without them it is raised at once', async (_, fail) => {
    for (const stream of [false, true]) {
      const { model, serviceId } = await models.model(once(fail));
      const asked = { model, messages: user('x') };
      if (stream) {
        const chunks = await retrying().chat.completions.create({ ...asked, stream });
        expect(textOf(await allOf(chunks))).toBe('at last');
      } else {
        const { choices } = await retrying().chat.completions.create(asked);
        expect(choices[0]!.message.content).toBe('at last');
      }
      expect(upstream.seen(model)).toHaveLength(2);
      expect(await ledger(serviceId)).toMatchObject([{ outcome: 'failed' }, { outcome: 'finished' }]);
    }
    const { model } = await models.model(once(fail));
    await failure(client.chat.completions.create({ model, messages: user('x') }));
    expect(upstream.seen(model)).toHaveLength(1);
  });

  it('wait as long as retry-after says', async () => {
    // What is longer than it may take at all, Parley does not wait for itself.
    const provider = await acme.post('/api/admin/model-providers', {
      name: 'hasty',
      kind: 'openai-compatible',
      baseUrl: upstream.url,
      firstPieceTimeoutMs: 2_000,
    });
    const times: number[] = [];
    const { model } = await models.model(
      async (e) => {
        times.push(performance.now());
        await once((first) => first.fail(429, '{}', { 'retry-after': '2' }))(e);
      },
      { providerId: provider.body.id },
    );
    const { choices } = await retrying().chat.completions.create({ model, messages: user('x') });
    expect(choices[0]!.message.content).toBe('at last');
    expect(times[1]! - times[0]!).toBeGreaterThan(1_900);
  });

  it('are told of by x-should-retry, and not made for what stays wrong', async () => {
    const wrong = await models.model((e) => e.fail(400, '{"error":{"message":"no"}}'));
    await failure(retrying().chat.completions.create({ model: wrong.model, messages: user('x') }));
    expect(upstream.seen(wrong.model)).toHaveLength(1);
    const failing = await models.model((e) => void e.start().response.end());
    const limited = await models.model((e) => e.fail(429, '{}', { 'retry-after': '600' }));
    for (const [model, status, again] of [
      [wrong.model, 400, null],
      ['nobody', 404, null],
      [failing.model, 502, 'true'],
      [limited.model, 429, 'true'],
    ] as const) {
      const response = await raw({ model, messages: user('x') });
      expect([response.status, response.headers.get('x-should-retry')]).toEqual([status, again]);
      await response.body?.cancel();
    }
  });
});

describe('a client that leaves', () => {
  it.each<[string, boolean, boolean]>([
    ['that waits for the whole', false, false],
    ['that waits for the whole, half written', false, true],
    ['of a stream, before its first piece', true, false],
    ['of a stream, in the middle', true, true],
  ])('%s ends the provider’s request, and one ledger row is left', async (_, stream, begun) => {
    const { opened, open } = gate();
    const { model, serviceId } = await models.model(async (e) => {
      if (begun) await e.piece('so far');
      open();
    });
    const leaving = new AbortController();
    const called = client.chat.completions
      .create({ model, messages: user('12345678'), stream }, { signal: leaving.signal })
      .then((answer): unknown => (stream && begun ? allOf(answer as AsyncIterable<unknown>) : answer))
      .catch((error: unknown) => error);
    await opened;
    leaving.abort();
    await upstream.seen(model)[0]!.aborted;
    await called;
    expect(await ledgerOfGone(serviceId)).toMatchObject([
      { outcome: 'stopped', estimated: true, attempts: 1, prompt_tokens: 6 },
    ]);
  });

  it('by leaving the loop does so, too', async () => {
    const { model, serviceId } = await models.model((e) => e.piece('enough'));
    const stream = await client.chat.completions.create({ model, messages: user('x'), stream: true });
    for await (const { choices } of stream) if (choices[0]?.delta.content === 'enough') break;
    await upstream.seen(model)[0]!.aborted;
    expect(await ledgerOfGone(serviceId)).toMatchObject([{ outcome: 'stopped' }]);
  });
});

it('stores usage and nothing else, whatever the ending', async () => {
  const finished = await models.agent();
  const failed = await models.agent((e) => e.fail(400, '{}'));
  const stopped = await models.agent((e) => e.piece('x'));
  const before = await rowCounts();
  expect(Object.keys(before)).toEqual(
    expect.arrayContaining(['dialogues', 'dialogue_messages', 'messages', 'usage_ledger']),
  );
  const messages = user('in confidence');
  await client.chat.completions.create({ model: finished.model, messages, user: 'ann' });
  const stream = await client.chat.completions.create({ model: finished.slug, messages, stream: true });
  await allOf(stream);
  await failure(client.chat.completions.create({ model: failed.slug, messages }));
  for await (const { choices } of await client.chat.completions.create({
    model: stopped.slug,
    messages,
    stream: true,
  }))
    if (choices[0]?.delta.content) break;
  await ledgerOfGone(stopped.serviceId);
  expect(await rowCounts()).toEqual({ ...before, usage_ledger: before.usage_ledger! + 4 });
  expect(await ledger(finished.serviceId)).toMatchObject([
    { outcome: 'finished', assistant_id: null, user_id: 'ann' },
    { outcome: 'finished', assistant_id: finished.assistantId, user_id: acme.keyId },
  ]);
});

describe('a server', () => {
  it('that has too much to do says so, and the SDK comes back', async () => {
    const small = await bootApp({ MAX_CONCURRENT_REPLIES: '1' });
    const { opened, open } = gate();
    const { opened: asked, open: wasAsked } = gate();
    upstream.on('busy', async (e) => {
      wasAsked();
      await opened;
      await e.piece('done');
      await e.done();
    });
    try {
      const tenant = await small.tenant({ baseUrl: upstream.url, model: 'busy' });
      const baseURL = `${small.url}/v1`;
      const busy = new OpenAI({ baseURL, apiKey: tenant.apiKey, maxRetries: 0 });
      const say = (options = {}) =>
        busy.chat.completions.create({ model: 'main', messages: user('x') }, options);
      const first = say();
      await asked;
      const error = await failure(say());
      expect(error).toBeInstanceOf(OpenAI.InternalServerError);
      expect([error.status, error.headers!.get('retry-after')]).toEqual([503, '1']);
      expect(error.headers!.get('x-should-retry')).toBe('true');
      const patient = say({ maxRetries: 5 });
      open();
      expect((await Promise.all([first, patient])).map(({ choices }) => choices[0]!.message.content)).toEqual(
        ['done', 'done'],
      );
    } finally {
      await small.close();
    }
  });

  it('that stops ends what it writes with an error, and records it', async () => {
    const stopping = await bootApp();
    upstream.on('endless', (e) => e.piece('so far'));
    const tenant = await stopping.tenant({ baseUrl: upstream.url, model: 'endless' });
    const sdk = new OpenAI({ baseURL: `${stopping.url}/v1`, apiKey: tenant.apiKey, maxRetries: 0 });
    const { opened, open } = gate();
    let waiting = 2;
    const read = async (sessionId?: string) => {
      const asked = {
        model: 'main',
        messages: user('x'),
        stream: true,
        ...(sessionId && kept(sessionId)),
      } as const;
      for await (const { choices } of await sdk.chat.completions.create(asked)) {
        if (choices[0]?.delta.content === 'so far' && (waiting -= 1) === 0) open();
        expect(choices[0]?.finish_reason).toBeNull();
      }
    };
    const errors = Promise.all([failure(read()), failure(read('s1'))]);
    await opened;
    await stopping.app.close();
    for (const error of await errors) expect(error.type).toBe('api_error');
    const rows = await query(stopping.databaseUrl, 'select outcome from usage_ledger');
    expect(rows).toEqual([{ outcome: 'interrupted' }, { outcome: 'interrupted' }]);
    await stopping.close();
  });
});

describe('a conversation with an agent', () => {
  let sessions = 0;
  const newSession = () => `session ${(sessions += 1)} 😀`;
  const system = { role: 'system', content: 'Be brief.' };
  const say = (model: string, content: string, sessionId: string, more: object = {}, sdk = client) =>
    sdk.chat.completions.create({ model, messages: user(content), ...kept(sessionId), ...more });

  const dialoguesOf = async (sessionId: string) =>
    (
      await query<{ dialogue_id: string }>(
        app.databaseUrl,
        'select dialogue_id from dialogue_sessions where name = $1 order by dialogue_id',
        [sessionId],
      )
    ).map((row) => row.dialogue_id);
  const messagesOf = async (dialogueId: string, tenant = acme) => {
    const { body } = await tenant.get(`/api/copywriting/message/list/${dialogueId}`);
    return body as { code: number; total: number; rows: { role: string; content: string; status: string }[] };
  };
  const saidIn = async (dialogueId: string) =>
    (await messagesOf(dialogueId)).rows.map(({ role, content }) => [role, content]);

  it('is kept, remembered, streamed or not, and readable on the assistant platform’s wire', async () => {
    const { slug, model, serviceId, assistantId } = await models.agent();
    const sessionId = newSession();
    const first = await say(slug, 'My name is Ann.', sessionId);
    expect(first).toMatchObject({
      id: expect.stringMatching(/^chatcmpl-\d+$/),
      object: 'chat.completion',
      model: slug,
      choices: [{ message: { role: 'assistant', content: 'My name is Ann.' }, finish_reason: 'stop' }],
      usage: { prompt_tokens: 7, completion_tokens: 5, total_tokens: 12 },
    });
    const stream = await client.chat.completions.create({
      model: `agent:${slug}`,
      messages: user('What is it?'),
      stream: true,
      stream_options: { include_usage: true },
      ...kept(sessionId),
    });
    const chunks = await allOf(stream);
    expect(textOf(chunks)).toBe('What is it?');
    expect(chunks[0]!.choices[0]!.delta).toMatchObject({ role: 'assistant', content: '' });
    expect(chunks.slice(-2)).toMatchObject([
      { choices: [{ finish_reason: 'stop' }] },
      { choices: [], usage: { prompt_tokens: 7, completion_tokens: 5, total_tokens: 12 } },
    ]);
    expect(upstream.seen(model)[1]!.body.messages).toEqual([
      system,
      ...user('My name is Ann.'),
      { role: 'assistant', content: 'My name is Ann.' },
      ...user('What is it?'),
    ]);
    const [dialogueId, ...others] = await dialoguesOf(sessionId);
    expect(others).toEqual([]);
    expect(await saidIn(dialogueId!)).toEqual([
      ['user', 'My name is Ann.'],
      ['assistant', 'My name is Ann.'],
      ['user', 'What is it?'],
      ['assistant', 'What is it?'],
    ]);
    const listed = await acme.get('/api/copywriting/dialogue/list?pageSize=1');
    expect(listed.body.rows).toMatchObject([{ id: dialogueId, manageId: assistantId, totalTokens: 24 }]);
    expect(await messagesOf(dialogueId!, rival)).toMatchObject({ code: 404 });
    const row = { assistant_id: assistantId, outcome: 'finished', estimated: false, attempts: 1 };
    expect(await ledger(serviceId)).toMatchObject([row, row]);
  });

  it('without usage when nobody asked for it, [DONE] last', async () => {
    const { slug } = await models.agent((e) => e.piece(TEXT).then(() => e.done()));
    const asked = { model: slug, messages: user('x'), stream: true, sessionId: newSession() };
    const response = await raw(asked);
    expect(response.headers.get('x-request-id')).toMatch(/^req_/);
    const events = eventsOf(await response.text());
    expect([events.at(-1), textOf(events)]).toEqual(['[DONE]', TEXT]);
    expect(events.some((chunk) => chunk.usage)).toBe(false);
  });

  it('takes what was said before only when it is new', async () => {
    const { slug, model } = await models.agent();
    const sessionId = newSession();
    const before: OpenAI.ChatCompletionMessageParam[] = [
      { role: 'system', content: 'You are Bo.' },
      { role: 'developer', content: 'In rhyme.' },
      {
        role: 'user',
        content: [
          { type: 'text', text: 'one' },
          { type: 'text', text: 'two' },
        ],
      },
      {
        role: 'assistant',
        content: null,
        tool_calls: [{ id: 'c', type: 'function', function: { name: 'f', arguments: '' } }],
      },
      { role: 'tool', tool_call_id: 'c', content: 'ran' },
      { role: 'assistant', content: 'three' },
    ];
    const ask = (messages: OpenAI.ChatCompletionMessageParam[]) =>
      client.chat.completions.create({ model: slug, messages, ...kept(sessionId) });
    await ask([...before, ...user('four'), { role: 'assistant', content: 'after' }]);
    await ask([{ role: 'system', content: 'Forget it.' }, ...user('never said'), ...user('five')]);
    const history = [
      system,
      { role: 'system', content: 'You are Bo.' },
      { role: 'system', content: 'In rhyme.' },
      ...user('one\ntwo'),
      { role: 'assistant', content: 'three' },
      ...user('four'),
    ];
    expect(upstream.seen(model).map(({ body }) => body.messages)).toEqual([
      history,
      [...history, { role: 'assistant', content: 'four' }, ...user('five')],
    ]);
    const [dialogueId] = await dialoguesOf(sessionId);
    expect((await saidIn(dialogueId!)).slice(-5)).toEqual([
      ['assistant', 'three'],
      ['user', 'four'],
      ['assistant', 'four'],
      ['user', 'five'],
      ['assistant', 'five'],
    ]);
  });

  it('of another user, agent or tenant is another one, whatever its name', async () => {
    const [mine, other, theirs] = [await models.agent(), await models.agent(), await rivals.agent()];
    const sessionId = newSession();
    const theirClient = clientOf(rival);
    await say(mine.slug, 'of the key', sessionId);
    await say(mine.slug, 'of ann', sessionId, { user: 'ann' });
    await client.chat.completions.create(
      { model: mine.slug, messages: user('of bob'), user: 'ann', ...kept(sessionId) },
      { headers: { 'user-id': 'bob' } },
    );
    await say(other.slug, 'of another agent', sessionId);
    await say(theirs.slug, 'of the rival', sessionId, {}, theirClient);
    await say(mine.slug, 'ann again', sessionId, { user: 'ann' });
    expect(await dialoguesOf(sessionId)).toHaveLength(5);
    const lengths = upstream.seen(mine.model).map(({ body }) => (body.messages as unknown[]).length);
    expect(lengths).toEqual([2, 2, 2, 4]);
    expect(upstream.seen(theirs.model)[0]!.body.messages).toHaveLength(2);
    const users = (await ledger(mine.serviceId)).map(({ user_id: id }) => id as string);
    expect(users).toEqual([acme.keyId, 'ann', 'bob', 'ann']);
  });

  it('whose name is no text, or whose user is none, is 400 and none begins', async () => {
    const { slug } = await models.agent();
    for (const more of [
      ...['\ud800', '\ud801', 'a\udc00'].map((sessionId) => ({ sessionId })),
      { sessionId: newSession(), user: '\ud800' },
    ]) {
      const body = { model: slug, messages: user('x'), ...more };
      const { status, body: answer } = await acme.post('/v1/chat/completions', body);
      expect([more, status, answer.error.type]).toEqual([more, 400, 'invalid_request_error']);
    }
    // U+FFFD is a character like any other, and nobody else's.
    const named = `\ufffd ${newSession()}`;
    await say(slug, 'one', named);
    expect(await dialoguesOf(named)).toHaveLength(1);
    const body = { model: slug, messages: user('x') };
    const latin = await acme.post('/v1/chat/completions', body, { 'user-id': 'Andr\xe9' });
    expect([latin.status, latin.text]).toEqual([400, expect.stringContaining('user-id: must be UTF-8')]);
  });

  it('named like the dialogue of a rival does not go on in that one', async () => {
    const theirs = await rivals.agent();
    const sessionId = newSession();
    await say(theirs.slug, 'secret', sessionId, {}, clientOf(rival));
    const [dialogueId] = await dialoguesOf(sessionId);
    const { slug, model } = await models.agent();
    await say(slug, 'hello', dialogueId!);
    expect(upstream.seen(model)[0]!.body.messages).toEqual([system, ...user('hello')]);
    expect((await messagesOf(dialogueId!, rival)).total).toBe(2);
  });

  it('of two first turns at once is one: the second gets 409, and by the SDK’s retry its answer', async () => {
    for (let round = 0; round < 5; round += 1) {
      const { opened, open } = gate();
      const { slug, model } = await models.agent(async (e) => {
        await opened;
        await e.piece('ok');
        await e.done();
      });
      const sessionId = newSession();
      const calls = ['one', 'two'].map((content) => say(slug, content, sessionId));
      const settled = calls.map((one, i) =>
        one.then(
          () => i,
          () => i,
        ),
      );
      // Nobody has been answered yet: whoever is first was refused.
      const loser = await Promise.race(settled);
      const error = await failure(calls[loser]!);
      expect(error).toBeInstanceOf(OpenAI.ConflictError);
      expect(error.code).toBe('reply_in_progress');
      expect(error.headers!.get('x-should-retry')).toBe('true');
      const again = say(slug, 'again', sessionId, {}, clientOf(acme, { maxRetries: 10 }));
      open();
      expect((await calls[1 - loser]!).choices[0]!.message.content).toBe('ok');
      expect((await again).choices[0]!.message.content).toBe('ok');
      const [dialogueId, ...others] = await dialoguesOf(sessionId);
      expect(others).toEqual([]);
      expect(await saidIn(dialogueId!)).toEqual([
        ['user', ['one', 'two'][1 - loser]],
        ['assistant', 'ok'],
        ['user', 'again'],
        ['assistant', 'ok'],
      ]);
      expect(upstream.seen(model)).toHaveLength(2);
    }
  });

  it('goes on when the client has left', async () => {
    for (const stream of [true, false]) {
      const { opened, open } = gate();
      const { opened: begun, open: begin } = gate();
      const { slug, serviceId } = await models.agent(async (e) => {
        await e.piece('half ');
        begin();
        await opened;
        await e.piece('whole');
        await e.done();
      });
      const sessionId = newSession();
      const leaving = new AbortController();
      const asked = { model: slug, messages: user('x'), stream, ...kept(sessionId) };
      const called = client.chat.completions
        .create(asked, { signal: leaving.signal })
        .catch((error: unknown) => error);
      await begun;
      leaving.abort();
      await called;
      open();
      expect(await ledgerOfGone(serviceId)).toMatchObject([{ outcome: 'finished' }]);
      const [dialogueId] = await dialoguesOf(sessionId);
      expect((await messagesOf(dialogueId!)).rows[1]).toMatchObject({
        content: 'half whole',
        status: 'finished',
      });
    }
  });

  it('that fails raises the same errors, with one ledger row, and goes on', async () => {
    const { slug, serviceId, model } = await models.agent(async (e) => {
      if (e.attempt === 1) return e.fail(429, '{}', { 'retry-after': '600' });
      if (e.attempt === 2) return e.start().response.end();
      if (e.attempt === 3) return e.piece('so far').then(() => e.response.destroy());
      await e.piece('better');
      await e.done();
    });
    const sessionId = newSession();
    const limited = await failure(say(slug, 'one', sessionId));
    expect(limited).toBeInstanceOf(OpenAI.RateLimitError);
    expect(Number(limited.headers!.get('retry-after'))).toBeGreaterThan(0);
    const failed = await failure(say(slug, 'two', sessionId, { stream: true }));
    expect(failed).toBeInstanceOf(OpenAI.InternalServerError);
    let text = '';
    const reading = (async () => {
      const asked = { model: slug, messages: user('three'), stream: true, ...kept(sessionId) } as const;
      for await (const { choices } of await client.chat.completions.create(asked))
        text += choices[0]?.delta.content ?? '';
    })();
    expect((await failure(reading)).type).toBe('api_error');
    expect(text).toBe('so far');
    expect((await say(slug, 'four', sessionId)).choices[0]!.message.content).toBe('better');
    expect((await ledger(serviceId)).map(({ outcome }) => outcome as string)).toEqual([
      'failed',
      'failed',
      'failed',
      'finished',
    ]);
    expect(upstream.seen(model)[3]!.body.messages).toEqual([
      system,
      ...user('one'),
      ...user('two'),
      ...user('three'),
      { role: 'assistant', content: 'so far' },
      ...user('four'),
    ]);
  });

  it('that fails is not said again by the SDK: the turn is kept', async () => {
    const { slug, model, serviceId } = await models.agent((e) => void e.start().response.end());
    const sessionId = newSession();
    const error = await failure(say(slug, 'once', sessionId, {}, clientOf(acme, { maxRetries: 2 })));
    expect([error.status, error.headers!.get('x-should-retry')]).toEqual([502, 'false']);
    const [dialogueId] = await dialoguesOf(sessionId);
    expect((await messagesOf(dialogueId!)).rows).toMatchObject([
      { role: 'user', content: 'once' },
      { role: 'assistant', content: '', status: 'failed' },
    ]);
    expect(upstream.seen(model)).toHaveLength(1);
    expect(await ledger(serviceId)).toHaveLength(1);
  });

  it.each([false, true])('that is erased while another process waits for its reply: 404', async (stream) => {
    const other = await bootApp({}, app.databaseUrl);
    const { opened, open } = gate();
    const { slug, serviceId } = await models.agent(async (e) => {
      await e.piece('half');
      await opened;
      await e.done();
    });
    const sessionId = newSession();
    const headers = { 'idempotency-key': `erased ${stream}` };
    const asked = { model: slug, messages: user('x'), ...kept(sessionId) };
    try {
      const writing = await client.chat.completions.create({ ...asked, stream: true }, { headers });
      const looks = jest.spyOn(other.app.nest.get(DialoguesRepository), 'findReply');
      const elsewhere = new OpenAI({ baseURL: `${other.url}/v1`, apiKey: acme.apiKey, maxRetries: 0 });
      const waiting = failure(elsewhere.chat.completions.create({ ...asked, stream }, { headers }));
      // Found as the key's, found to be read, and looked at again: it waits.
      await eventually(async () => looks.mock.calls.length >= 3);
      const [dialogueId] = await dialoguesOf(sessionId);
      await query(app.databaseUrl, 'delete from dialogues where id = $1', [dialogueId]);
      expect(await waiting).toBeInstanceOf(OpenAI.NotFoundError);
      writing.controller.abort();
      open();
      expect(await ledgerOfGone(serviceId)).toHaveLength(1);
    } finally {
      open();
      await other.close();
    }
  });

  it('that another wire stops ends with what it has', async () => {
    const { slug, serviceId } = await models.agent((e) => e.piece('half'));
    const sessionId = newSession();
    const asked = { model: slug, messages: user('x'), stream: true, ...kept(sessionId) } as const;
    let text = '';
    let reason: string | null | undefined;
    for await (const { choices } of await client.chat.completions.create(asked)) {
      text += choices[0]?.delta.content ?? '';
      reason = choices[0]?.finish_reason;
      if (choices[0]?.delta.content !== 'half') continue;
      const [dialogueId] = await dialoguesOf(sessionId);
      await acme.get(`/api/copywriting/dialogue/sse/close/${dialogueId}`);
    }
    expect([text, reason]).toEqual(['half', 'stop']);
    expect(await ledger(serviceId)).toMatchObject([{ outcome: 'stopped' }]);
  });

  it('takes the client’s parameters over the agent’s', async () => {
    const { slug, model } = await models.agent(undefined, { parameters: { temperature: 0.2, top_p: 0.3 } });
    await say(slug, 'x', newSession(), { temperature: 0, seed: 5 });
    expect(upstream.seen(model)[0]!.body).toMatchObject({ temperature: 0, top_p: 0.3, seed: 5 });
  });

  it('is not told twice what has one Idempotency-Key', async () => {
    const { slug, model } = await models.agent();
    const sessionId = newSession();
    const headers = { 'idempotency-key': `key of ${sessionId}`.replace(' 😀', '') };
    const body = { model: slug, messages: user('pay'), ...kept(sessionId) };
    const answers = [];
    for (let n = 0; n < 2; n += 1) answers.push(await client.chat.completions.create(body, { headers }));
    expect(answers[1]!.id).toBe(answers[0]!.id);
    expect(answers[1]!.choices).toEqual(answers[0]!.choices);
    const other = await failure(
      client.chat.completions.create({ ...body, messages: user('pay more') }, { headers }),
    );
    expect(other).toBeInstanceOf(OpenAI.UnprocessableEntityError);
    expect(upstream.seen(model)).toHaveLength(1);
    const [dialogueId] = await dialoguesOf(sessionId);
    expect((await messagesOf(dialogueId!)).total).toBe(2);
  });

  it.each<[string, object, string]>([
    ['with a model service', { model: 'service' }, 'sessionId'],
    ['with tools of the client', { tools: [TOOL] }, 'tools'],
    ['of nothing the user said', { messages: [{ role: 'system', content: 'x' }] }, 'messages'],
    ['of an empty turn', { messages: user('') }, 'messages[0].content'],
    [
      'of pictures',
      { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: PIXEL } }] }] },
      'messages[0].content[0]',
    ],
    ['without a name', { sessionId: '' }, 'sessionId'],
  ])('%s is refused, and nothing is stored', async (_, more, param) => {
    const { slug, serviceId } = await models.agent();
    const before = await rowCounts();
    const asked = { model: slug, messages: user('x'), sessionId: newSession(), ...more };
    const response = await raw(asked);
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: { type: 'invalid_request_error', param } });
    expect(await rowCounts()).toEqual(before);
    expect(await ledger(serviceId)).toHaveLength(0);
  });
});
