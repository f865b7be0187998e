import { once } from 'node:events';
import OpenAI from 'openai';
import { WebSocket } from 'ws';
import { bootApp, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { startEverything, type Everything } from '../support/everything';
import { Upstream, type Exchange } from '../support/upstream';

let everything: Everything;
let upstream: Upstream;
let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;
let made = 0;

beforeAll(async () => {
  [everything, upstream, app] = await Promise.all([startEverything(), Upstream.start(), bootApp()]);
  [acme, rival] = await Promise.all([
    app.tenant({ baseUrl: upstream.url }),
    app.tenant({ baseUrl: upstream.url }),
  ]);
});
afterAll(async () => {
  await app.close();
  await upstream.close();
  await everything.stop();
});

/** An assistant whose model has a script of its own, with the tools of the MCP server. */
async function agent(tenant = acme, allow = ['echo', 'get-sum']) {
  made += 1;
  const model = `tooled-${made}`;
  const service = await tenant.post('/api/admin/model-services', {
    name: model,
    model,
    providerId: tenant.providerId,
  });
  const slug = `agent-${made}`;
  const assistant = await tenant.post('/api/admin/assistants', { slug, name: slug });
  const path = `/api/admin/assistants/${assistant.body.id}/versions`;
  const version = await tenant.post(path, {
    modelServiceId: service.body.id,
    tools: [{ type: 'mcp', name: 'all', url: everything.url, allow }],
  });
  expect(version.status).toBe(201);
  expect((await tenant.post(`${path}/${version.body.id}/publish`)).status).toBe(200);
  return { model, slug, versionId: version.body.id as string };
}

const call = (exchange: Exchange, calls: { id: string; name: string; args: string }[]) =>
  exchange.chunk({
    choices: [
      {
        index: 0,
        delta: {
          tool_calls: calls.map(({ id, name, args }, index) => ({
            index,
            id,
            type: 'function',
            function: { name, arguments: args },
          })),
        },
      },
    ],
  });

/** Says something, calls two tools side by side, and answers with what they gave. */
function scriptTwo(model: string): void {
  upstream.on(model, async (exchange) => {
    const results = (exchange.body.messages as { role: string; content: string }[]).filter(
      ({ role }) => role === 'tool',
    );
    if (results.length === 0) {
      await exchange.piece('Let me see. ');
      await call(exchange, [
        { id: 'c1', name: 'all_echo', args: '{"message":"你好"}' },
        { id: 'c2', name: 'all_get-sum', args: '{"a":2,"b":40}' },
      ]);
    } else await exchange.pieces('They say: ', results.map(({ content }) => content).join(' | '));
    await exchange.done();
  });
}

const stepsOf = (replyId: string) =>
  query(
    app.databaseUrl,
    `select number, tool, arguments, result, is_error, tenant_id from reply_steps where message_id = $1 order by number`,
    [replyId],
  );

it('runs the tools that the model calls and asks again, each call stored, and plain wires see only the text', async () => {
  const { model, versionId } = await agent();
  scriptTwo(model);
  const client = await acme.send(
    { speechUserDialogueMessage: { content: 'What is 2 + 40?' } },
    { versionId },
  );
  const events = (await client.end()).map(({ data }) => data as Record<string, unknown>);
  const text = events
    .slice(1)
    .map(({ result }) => result)
    .join('');
  expect(text).toMatch(/^Let me see\. They say: .*你好.* \| .*42/);
  const end = events.at(-1)!;
  // Two questions to the provider, one row that adds them up.
  expect(end).toMatchObject({ status: 'finished', promptTokens: 14, completionTokens: 10 });
  expect(JSON.stringify(events)).not.toContain('all_echo');

  const [first, second] = upstream.seen(model);
  expect(first!.body.tools.map((one: { function: { name: string } }) => one.function.name)).toEqual([
    'all_echo',
    'all_get-sum',
  ]);
  expect(second!.body.messages.at(-3)).toMatchObject({
    role: 'assistant',
    content: 'Let me see. ',
    tool_calls: [{ id: 'c1' }, { id: 'c2' }],
  });
  expect(second!.body.messages.slice(-2).map((one: { tool_call_id: string }) => one.tool_call_id)).toEqual([
    'c1',
    'c2',
  ]);

  const steps = await stepsOf(end.messageId as string);
  expect(steps).toMatchObject([
    { number: 1, tool: 'all_echo', arguments: '{"message":"你好"}', is_error: false, tenant_id: acme.id },
    { number: 2, tool: 'all_get-sum', is_error: false, tenant_id: acme.id },
  ]);
  const ledger = await query(
    app.databaseUrl,
    'select attempts, total_tokens from usage_ledger where message_id = $1',
    [end.messageId],
  );
  expect(ledger).toEqual([{ attempts: 2, total_tokens: 24 }]);
});

it('shows tools and what they gave in the event view, in their place', async () => {
  const { model, slug } = await agent();
  scriptTwo(model);
  const url = `${app.url.replace('http', 'ws')}/api/v1/ws`;
  const ws = new WebSocket(url, 'agent.events.v1', { headers: { 'x-api-key': acme.apiKey } });
  const seen: { type: string; payload: Record<string, unknown> }[] = [];
  const done = new Promise<void>((resolve) =>
    ws.on('message', (data: Buffer) => {
      seen.push(JSON.parse(data.toString()) as (typeof seen)[number]);
      if (seen.at(-1)!.type === 'done') resolve();
    }),
  );
  await once(ws, 'open');
  ws.send(JSON.stringify({ type: 'chat', agentId: slug, message: 'What is 2 + 40?' }));
  await done;
  ws.close();
  const types = seen.map(({ type }) => type);
  expect(types.slice(0, 4)).toEqual(['status', 'text', 'tool', 'tool']);
  expect(types.filter((type) => type === 'tool_result')).toHaveLength(2);
  expect(types.lastIndexOf('tool_result')).toBeLessThan(types.lastIndexOf('text'));
  expect(seen[2]!.payload).toMatchObject({ tool: 'all_echo', args: { message: '你好' } });
});

it('goes on when a tool fails, is not there or gets nonsense', async () => {
  const { model, versionId } = await agent();
  upstream.on(model, async (exchange) => {
    if (exchange.attempt === 1) {
      await call(exchange, [
        { id: 'a', name: 'no_such_tool', args: '{}' },
        { id: 'b', name: 'all_get-sum', args: 'not json' },
      ]);
    } else await exchange.piece('I could not.');
    await exchange.done();
  });
  const client = await acme.send({ speechUserDialogueMessage: { content: 'Try' } }, { versionId });
  const end = (await client.end()).at(-1)!.data as Record<string, unknown>;
  expect(end).toMatchObject({ status: 'finished' });
  expect(await stepsOf(end.messageId as string)).toMatchObject([{ is_error: true }, { is_error: true }]);
});

it('asks no more than nine times: the last time with tools that may not be called', async () => {
  const { model, versionId } = await agent();
  upstream.on(model, async (exchange) => {
    if (exchange.body.tool_choice !== 'none')
      await call(exchange, [{ id: `c${exchange.attempt}`, name: 'all_echo', args: '{"message":"x"}' }]);
    else await exchange.piece('Enough.');
    await exchange.done();
  });
  const client = await acme.send({ speechUserDialogueMessage: { content: 'For ever' } }, { versionId });
  const events = (await client.end()).map(({ data }) => data as Record<string, unknown>);
  expect(events.at(-2)).toMatchObject({ result: 'Enough.' });
  expect(upstream.seen(model)).toHaveLength(9);
  // Some providers refuse a conversation with calls and without tools.
  expect(upstream.seen(model).at(-1)!.body.tools).toHaveLength(2);
  expect(await stepsOf(events.at(-1)!.messageId as string)).toHaveLength(8);
});

it('gives the provider back what it wants back, and arguments that are an object', async () => {
  const { model, versionId } = await agent();
  const signature = { google: { thought_signature: 'sig-1' } };
  const raw = (id: string, args: string, more: object = {}) => ({
    index: 0,
    id,
    type: 'function',
    function: { name: 'all_echo', arguments: args },
    ...more,
  });
  upstream.on(model, async (exchange) => {
    if (exchange.attempt < 3) {
      const delta = (given: object) => exchange.chunk({ choices: [{ index: 0, delta: given }] });
      await delta({ reasoning_content: 'First ' });
      await delta({ reasoning_content: 'I look.' });
      // All with number 0, ids that begin anew in the next round, one cut off.
      await delta({ tool_calls: [raw('call_0', '{"message":"x"}', { extra_content: signature })] });
      await delta({ tool_calls: [raw('call_1', '{"message":"y')] });
    } else await exchange.piece('Done.');
    await exchange.done();
  });
  const client = await acme.send({ speechUserDialogueMessage: { content: 'Look' } }, { versionId });
  expect((await client.end()).at(-1)!.data).toMatchObject({ status: 'finished' });
  const messages = upstream.seen(model).at(-1)!.body.messages as {
    role: string;
    tool_call_id?: string;
    tool_calls?: { id: string; function: { arguments: string } }[];
  }[];
  const asked = messages.filter(({ role }) => role === 'assistant');
  expect(asked).toHaveLength(2);
  for (const message of asked) {
    expect(message).toMatchObject({
      reasoning_content: 'First I look.',
      tool_calls: [{ extra_content: signature, function: { arguments: '{"message":"x"}' } }, {}],
    });
    for (const { function: called } of message.tool_calls!)
      expect(JSON.parse(called.arguments)).toBeInstanceOf(Object);
  }
  const ids = asked.flatMap(({ tool_calls: calls }) => calls!.map(({ id }) => id));
  expect(new Set(ids).size).toBe(4);
  const answered = messages.filter(({ role }) => role === 'tool').map(({ tool_call_id: id }) => id);
  expect(answered).toEqual(ids);
});

it('forces a call in the first round alone', async () => {
  const { model, slug } = await agent();
  scriptTwo(model);
  const client = new OpenAI({ baseURL: `${app.url}/v1`, apiKey: acme.apiKey });
  const messages = [{ role: 'user' as const, content: 'What is 2 + 40?' }];
  await client.chat.completions.create({
    model: slug,
    messages,
    tool_choice: 'required',
    parallel_tool_calls: true,
  });
  expect(upstream.seen(model).map(({ body }) => [body.tool_choice, body.parallel_tool_calls])).toEqual([
    ['required', true],
    [undefined, true],
  ]);
});

it('stops in the middle of its tools', async () => {
  const { model, versionId } = await agent(acme, ['trigger-long-running-operation']);
  let called = (): void => undefined;
  const calling = new Promise<void>((resolve) => (called = resolve));
  upstream.on(model, async (exchange) => {
    await call(exchange, [
      { id: 'long', name: 'all_trigger-long-running-operation', args: '{"duration":600,"steps":1}' },
    ]);
    await exchange.done();
    called();
  });
  const client = await acme.send({ speechUserDialogueMessage: { content: 'Take your time' } }, { versionId });
  await calling;
  const { id } = (await client.has(1))[0]!.data as { id: string };
  expect((await acme.get(`/api/copywriting/dialogue/sse/close/${id}`)).status).toBe(200);
  expect((await client.end()).at(-1)!.data).toMatchObject({ status: 'stopped' });
  expect(upstream.seen(model)).toHaveLength(1);
});

it('runs for an agent on the OpenAI wire, unless the client brings tools of its own', async () => {
  const { model, slug } = await agent();
  scriptTwo(model);
  const client = new OpenAI({ baseURL: `${app.url}/v1`, apiKey: acme.apiKey });
  const messages = [{ role: 'user' as const, content: 'What is 2 + 40?' }];
  const answer = await client.chat.completions.create({ model: slug, messages });
  expect(answer.choices[0]!.message.content).toMatch(/42/);
  expect(answer.choices[0]!.message.tool_calls).toBeUndefined();
  expect(answer.usage).toMatchObject({ prompt_tokens: 14 });

  const own = { type: 'function' as const, function: { name: 'all_echo', parameters: { type: 'object' } } };
  const asked = await client.chat.completions.create({ model: slug, messages, tools: [own] });
  expect(asked.choices[0]!.message.tool_calls).toHaveLength(2);
  expect(upstream.seen(model)).toHaveLength(3);
});

it("keeps a rival's steps apart", async () => {
  const { model, versionId } = await agent(rival);
  scriptTwo(model);
  const foreign = await acme.send({ speechUserDialogueMessage: { content: 'x' } }, { versionId });
  expect(foreign.status).toBe(404);
  const client = await rival.send({ speechUserDialogueMessage: { content: 'x' } }, { versionId });
  const { messageId } = (await client.end()).at(-1)!.data as { messageId: string };
  expect(await stepsOf(messageId)).toMatchObject([{ tenant_id: rival.id }, { tenant_id: rival.id }]);
});
