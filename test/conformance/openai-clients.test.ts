import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { APICallError, generateText, isStepCount, jsonSchema, Output, streamText, tool } from 'ai';
import { bootApp, eventually, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { allOf, call, finish, ScriptedModels } from '../support/openai-chat';
import { gate, Upstream, type Script } from '../support/upstream';

/** A client of the OpenAI-compatible wire that OpenAI did not write: the AI SDK with its provider for such servers. */
let app: TestApp;
let upstream: Upstream;
let acme: TestTenant;
let rival: TestTenant;
let models: ScriptedModels;

beforeAll(async () => {
  [app, upstream] = await Promise.all([bootApp(), Upstream.start()]);
  [acme, rival] = await Promise.all([
    app.tenant({ baseUrl: upstream.url }),
    app.tenant({ baseUrl: upstream.url }),
  ]);
  models = new ScriptedModels(upstream, acme);
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

const providerOf = ({ apiKey }: TestTenant) =>
  createOpenAICompatible({
    name: 'parley',
    baseURL: `${app.url}/v1`,
    apiKey,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
const modelOf = (name: string, tenant = acme) => providerOf(tenant).chatModel(name);
const usage = { inputTokens: 7, outputTokens: 5, totalTokens: 12 };

const city = jsonSchema<{ city: string }>({
  type: 'object',
  properties: { city: { type: 'string' } },
  required: ['city'],
  additionalProperties: false,
});
const weather = tool({
  description: 'Weather in a city',
  inputSchema: city,
  execute: async ({ city }) => `rain in ${city}`,
});

/** Asks for the weather of two cities, and answers with what it is told. */
const forecaster: Script = async (exchange) => {
  const results = (exchange.body.messages as { role: string; content: string }[]).filter(
    ({ role }) => role === 'tool',
  );
  if (results.length === 0) {
    await exchange.piece('Let me see.');
    await call(exchange, { id: 'c1', name: 'weather', args: ['{"ci', 'ty":"Bonn"}'] });
    await call(exchange, { index: 1, id: 'c2', name: 'weather', args: ['{"city":"Ulm"}'] });
    return finish(exchange, 'tool_calls');
  }
  await exchange.pieces('There is ', results.map(({ content }) => content).join(', '));
  await exchange.done();
};

describe('generateText', () => {
  it('gets text, usage and the reason, and hands on what it was given', async () => {
    const { model } = await models.model();
    const result = await generateText({
      model: modelOf(model),
      instructions: 'Echo.',
      prompt: '你好, one two 😀',
      temperature: 0.5,
      topP: 0.9,
      maxOutputTokens: 50,
      stopSequences: ['END'],
      seed: 7,
      providerOptions: { parley: { user: 'ann', reasoningEffort: 'low' } },
    });
    expect(result.text).toBe('你好, one two 😀');
    expect(result.finishReason).toBe('stop');
    expect(result.usage).toMatchObject(usage);
    expect(result.warnings).toEqual([]);
    expect(upstream.seen(model)[0]!.body).toEqual({
      model,
      messages: [
        { role: 'system', content: 'Echo.' },
        { role: 'user', content: '你好, one two 😀' },
      ],
      temperature: 0.5,
      top_p: 0.9,
      max_tokens: 50,
      stop: ['END'],
      seed: 7,
      reasoning_effort: 'low',
      stream: true,
      stream_options: { include_usage: true },
    });
    const rows = await query(
      app.databaseUrl,
      'select l.user_id from usage_ledger l join model_services s on s.id = l.model_service_id where s.name = $1',
      [model],
    );
    expect(rows).toEqual([{ user_id: 'ann' }]);
  });

  it('sends pictures', async () => {
    const { model } = await models.model((e) => e.piece('a dot').then(() => e.done()));
    const image = Buffer.from('89504e470d0a1a0a', 'hex');
    await generateText({
      model: modelOf(model),
      messages: [
        {
          role: 'user',
          content: [
            { type: 'text', text: 'What is this?' },
            { type: 'file', data: image, mediaType: 'image/png' },
          ],
        },
      ],
    });
    expect(upstream.seen(model)[0]!.body.messages[0].content).toEqual([
      { type: 'text', text: 'What is this?' },
      { type: 'image_url', image_url: { url: `data:image/png;base64,${image.toString('base64')}` } },
    ]);
  });

  it('runs a tool of its own and asks again with the result', async () => {
    const { model } = await models.model(forecaster);
    const {
      text,
      steps,
      usage: total,
    } = await generateText({
      model: modelOf(model),
      prompt: 'Weather in Bonn and Ulm?',
      tools: { weather },
      stopWhen: isStepCount(3),
    });
    expect(text).toContain('There is rain in Bonn, rain in Ulm');
    expect(steps.map(({ finishReason }) => finishReason)).toEqual(['tool-calls', 'stop']);
    expect(steps[0]!.toolCalls).toMatchObject([
      { toolCallId: 'c1', toolName: 'weather', input: { city: 'Bonn' } },
      { toolCallId: 'c2', toolName: 'weather', input: { city: 'Ulm' } },
    ]);
    expect(total.totalTokens).toBe(24);
    const [first, second] = upstream.seen(model).map(({ body }) => body);
    expect(first.tools).toMatchObject([{ type: 'function', function: { name: 'weather' } }]);
    expect(second.messages.slice(1)).toEqual([
      {
        role: 'assistant',
        content: 'Let me see.',
        tool_calls: [
          { id: 'c1', type: 'function', function: { name: 'weather', arguments: '{"city":"Bonn"}' } },
          { id: 'c2', type: 'function', function: { name: 'weather', arguments: '{"city":"Ulm"}' } },
        ],
      },
      { role: 'tool', tool_call_id: 'c1', content: 'rain in Bonn' },
      { role: 'tool', tool_call_id: 'c2', content: 'rain in Ulm' },
    ]);
  });

  it('gets structured output, its schema reaching the provider', async () => {
    const { model } = await models.model((e) => e.pieces('{"city"', ':"Köln"}').then(() => e.done()));
    const { output } = await generateText({
      model: modelOf(model),
      prompt: 'Which city?',
      output: Output.object({ schema: city, name: 'answer' }),
    });
    expect(output).toEqual({ city: 'Köln' });
    expect(upstream.seen(model)[0]!.body.response_format).toMatchObject({
      type: 'json_schema',
      json_schema: { name: 'answer', strict: true, schema: { required: ['city'] } },
    });
  });

  it('gets thoughts apart from the answer', async () => {
    const { model } = await models.model(async (e) => {
      await e.chunk({ choices: [{ delta: { reasoning_content: 'hm' } }] });
      await e.piece('42');
      await e.done();
    });
    const { text, finalStep } = await generateText({ model: modelOf(model), prompt: 'x' });
    expect([text, finalStep.reasoningText]).toEqual(['42', 'hm']);
  });
});

describe('streamText', () => {
  it('gets the text as it is written, usage and the reason', async () => {
    const { opened, open } = gate();
    const { model } = await models.model(async (e) => {
      await e.piece('first');
      await opened;
      await e.piece(' second');
      await e.done();
    });
    const result = streamText({ model: modelOf(model), prompt: 'x' });
    const pieces: string[] = [];
    for await (const piece of result.textStream) {
      pieces.push(piece);
      open();
    }
    expect(pieces).toEqual(['first', ' second']);
    expect(await result.usage).toMatchObject(usage);
    expect(await result.finishReason).toBe('stop');
  });

  it('runs a tool of its own and streams what comes of it', async () => {
    const { model } = await models.model(forecaster);
    const result = streamText({
      model: modelOf(model),
      prompt: 'Weather in Bonn and Ulm?',
      tools: { weather },
      stopWhen: isStepCount(3),
    });
    const parts: { type: string; input?: unknown; output?: unknown }[] = await allOf(result.stream);
    expect(parts.filter(({ type }) => type === 'tool-call').map(({ input }) => input)).toEqual([
      { city: 'Bonn' },
      { city: 'Ulm' },
    ]);
    expect(parts.filter(({ type }) => type === 'tool-result').map(({ output }) => output)).toEqual([
      'rain in Bonn',
      'rain in Ulm',
    ]);
    expect(await result.text).toContain('There is rain in Bonn, rain in Ulm');
    expect(upstream.seen(model)).toHaveLength(2);
  });

  it('gets structured output as it grows', async () => {
    const { model } = await models.model((e) => e.pieces('{"city":', '"Kö', 'ln"}').then(() => e.done()));
    const result = streamText({
      model: modelOf(model),
      prompt: 'Which city?',
      output: Output.object({ schema: city }),
    });
    const partial = await allOf(result.partialOutputStream);
    expect(partial.at(-1)).toEqual({ city: 'Köln' });
    expect(await result.output).toEqual({ city: 'Köln' });
  });

  it('is told of a provider that breaks off', async () => {
    const { model } = await models.model(async (e) => {
      await e.piece('so far');
      e.response.destroy();
    });
    const errors: unknown[] = [];
    const result = streamText({
      model: modelOf(model),
      prompt: 'x',
      maxRetries: 0,
      onError: ({ error }) => void errors.push(error),
    });
    expect((await allOf(result.textStream)).join('')).toBe('so far');
    expect(JSON.stringify(errors)).toMatch(/broke off/);
    expect(await result.finishReason).toBe('error');
  });

  it('ends the provider’s request when it is aborted', async () => {
    const { model } = await models.model((e) => e.piece('so far'));
    const leaving = new AbortController();
    const result = streamText({ model: modelOf(model), prompt: 'x', abortSignal: leaving.signal });
    for await (const _ of result.textStream) leaving.abort();
    await upstream.seen(model)[0]!.aborted;
    const [row] = await eventually(async () => {
      const rows = await query<{ outcome: string }>(
        app.databaseUrl,
        'select l.outcome from usage_ledger l join model_services s on s.id = l.model_service_id where s.name = $1',
        [model],
      );
      return rows.length > 0 && rows;
    });
    expect(row).toEqual({ outcome: 'stopped' });
  });
});

describe('an error', () => {
  const fails = (name: string, options: object = {}, tenant = acme): Promise<APICallError> =>
    generateText({ model: modelOf(name, tenant), prompt: 'x', maxRetries: 0, ...options }).then(
      () => {
        throw new Error('did not fail');
      },
      (error: unknown) => {
        if (!APICallError.isInstance(error)) throw error;
        return error;
      },
    );

  it('says what is wrong, and whether to ask again', async () => {
    const { model } = await models.model((e) => e.fail(429, '{}', { 'retry-after': '600' }));
    const limited = await fails(model);
    expect(limited).toMatchObject({ statusCode: 429, isRetryable: true });
    expect(limited.responseHeaders).toMatchObject({
      'retry-after': '600',
      'x-request-id': expect.any(String),
    });
    expect(await fails(model, { temperature: 9 })).toMatchObject({
      statusCode: 400,
      isRetryable: false,
      message: expect.stringMatching(/temperature/),
      data: { error: { type: 'invalid_request_error', param: 'temperature', code: null } },
    });
    expect(await fails('nobody')).toMatchObject({
      statusCode: 404,
      data: { error: { code: 'model_not_found' } },
    });
    expect(await fails(model, {}, { ...acme, apiKey: 'nonsense' })).toMatchObject({ statusCode: 401 });
  });

  it('is all a rival gets of a model', async () => {
    const { model } = await models.model();
    expect(await fails(model, {}, rival)).toMatchObject({ statusCode: 404 });
    expect(upstream.seen(model)).toHaveLength(0);
  });

  it('that may pass is got over by the client’s own retries', async () => {
    const { model } = await models.model(async (e) => {
      if (e.attempt === 1) return e.start().response.end();
      await e.piece('at last');
      await e.done();
    });
    const { text } = await generateText({ model: modelOf(model), prompt: 'x', maxRetries: 1 });
    expect(text).toBe('at last');
    expect(upstream.seen(model)).toHaveLength(2);
  });
});

it('talks with an agent whose conversation is kept', async () => {
  const { slug, model } = await models.agent();
  for (const prompt of ['one', 'two']) {
    const { text } = await generateText({
      model: modelOf(`agent:${slug}`),
      prompt,
      providerOptions: { parley: { sessionId: 'with the AI SDK' } },
    });
    expect(text).toBe(prompt);
  }
  expect(upstream.seen(model)[1]!.body.messages).toEqual([
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'one' },
    { role: 'assistant', content: 'one' },
    { role: 'user', content: 'two' },
  ]);
});
