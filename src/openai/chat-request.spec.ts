import fc from 'fast-check';
import { AppError } from '../common';
import { parseChatRequest } from './chat-request';

const hello = [{ role: 'user', content: 'hello' }];
const parse = (more: Record<string, unknown> = {}) =>
  parseChatRequest({ model: 'gpt', messages: hello, ...more });
const messageOf = (message: unknown) => parse({ messages: [message] }).messages[0];

/** The field that was refused; null: none was. */
function refused(body: unknown): string | null {
  try {
    parseChatRequest(body);
    return null;
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
    expect(error.code).toBe('BAD_INPUT');
    expect(error.errors).toHaveLength(1);
    return error.errors[0]!.field;
  }
}

describe('parseChatRequest', () => {
  it('needs a model and a message', () => {
    expect(parse()).toEqual({
      model: 'gpt',
      messages: hello,
      stream: false,
      includeUsage: false,
      user: undefined,
      sessionId: undefined,
      parameters: {},
    });
  });

  it('passes parameters on as they came, ignores what it does not know, and takes null for absent', () => {
    const parameters = {
      temperature: 0,
      top_p: 1,
      presence_penalty: -2,
      frequency_penalty: 2,
      max_tokens: 1,
      max_completion_tokens: 10_000_000,
      seed: -7,
      stop: ['\n', 'END'],
      tools: [{ type: 'function', function: { name: 'f', parameters: { type: 'object' }, strict: true } }],
      tool_choice: { type: 'function', function: { name: 'f' } },
      parallel_tool_calls: false,
      response_format: { type: 'json_schema', json_schema: { name: 'x', schema: {} } },
      reasoning_effort: 'high',
      verbosity: 'low',
      logit_bias: { '50256': -100 },
    };
    expect(parse({ ...parameters, top_k: 3, metadata: {}, n: 1 }).parameters).toEqual(parameters);
    const none = Object.fromEntries(Object.keys(parameters).map((name) => [name, null]));
    const absent = { ...none, n: null, user: null, sessionId: null, stream: null, stream_options: null };
    expect(parse(absent)).toEqual(parse());
    expect(parse({ stop: 'END' }).parameters).toEqual({ stop: 'END' });
    expect(parse({ tool_choice: 'required' }).parameters).toEqual({ tool_choice: 'required' });
  });

  it('reads how the answer is wanted, for whom, and in which conversation', () => {
    const asked = { stream: true, stream_options: { include_usage: true }, user: 'ann', sessionId: 's 1' };
    expect(parse(asked)).toMatchObject({ stream: true, includeUsage: true, user: 'ann', sessionId: 's 1' });
    expect(parse({ user: '' }).user).toBeUndefined();
    expect(parse({ stream_options: { include_usage: 'yes' } }).includeUsage).toBe(false);
  });

  it.each<[string, unknown]>([
    ['body', null],
    ['body', 'x'],
    ['body', []],
    ['model', { messages: hello }],
    ['model', { model: '', messages: hello }],
    ['model', { model: 'x'.repeat(257), messages: hello }],
    ['messages', { model: 'gpt' }],
    ['messages', { model: 'gpt', messages: [] }],
    ['messages', { model: 'gpt', messages: {} }],
    ['messages', { model: 'gpt', messages: Array(2_049).fill(hello[0]) }],
  ])('refuses %s that is none', (field, body) => expect(refused(body)).toBe(field));

  it.each<[string, unknown[]]>([
    ['stream', ['true', 1]],
    ['stream_options', [true, []]],
    ['n', [2, 0, '1']],
    ['user', [7, 'x'.repeat(129), 'a\0b']],
    ['sessionId', [7, '', 'x'.repeat(129), 'a\0b', '\ud800', 'a\udc00b']],
    ['user', ['\ud801', 'a\udfff']],
    ['model', ['\ud800']],
    ['temperature', [-0.1, 2.1, '1', {}]],
    ['top_p', [-1, 1.01]],
    ['presence_penalty', [3]],
    ['frequency_penalty', [-3]],
    ['max_tokens', [0, 1.5, -1, '5']],
    ['max_completion_tokens', [0, 10_000_001]],
    ['seed', [0.5, 2 ** 60]],
    ['stop', ['', ['a', 'b', 'c', 'd', 'e'], [1], 'x'.repeat(1_001)]],
    ['tools', [{}, ['f'], [{ type: 'function', function: {} }], Array(129).fill({})]],
    ['tool_choice', ['f', true]],
    ['parallel_tool_calls', ['true']],
    ['response_format', ['json_object', {}]],
    ['reasoning_effort', ['', 1]],
    ['verbosity', ['loud']],
    ['logit_bias', [[1]]],
  ])('refuses a wrong %s', (field, values) => {
    for (const value of values) {
      const body = { model: 'gpt', messages: hello, [field]: value };
      expect([value, refused(body)]).toEqual([value, field]);
    }
  });
});

describe('a message', () => {
  const tool = { id: 'c1', type: 'function', function: { name: 'f', arguments: '{"a":1}' } };

  it('carries what only the provider understands, with a message and with a call', () => {
    const message = {
      role: 'assistant',
      content: null,
      reasoning_content: 'First I look.',
      cache_control: { type: 'ephemeral' },
      tool_calls: [{ ...tool, extra_content: { google: { thought_signature: 'sig' } } }],
    };
    expect(messageOf(message)).toEqual(message);
  });

  it('takes an empty list of tools, and of calls, for none', () => {
    expect(parse({ tools: [] }).parameters).toEqual({});
    expect(messageOf({ role: 'assistant', content: 'x', tool_calls: [] })).toEqual({
      role: 'assistant',
      content: 'x',
    });
  });

  it.each<[unknown]>([
    [{ role: 'system', content: '' }],
    [{ role: 'developer', content: 'x', name: 'boss' }],
    [{ role: 'user', content: [{ type: 'text', text: '你好 😀' }] }],
    [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'data:,x', detail: 'low' } }] }],
    [{ role: 'user', content: [{ type: 'input_audio', input_audio: { data: 'x', format: 'wav' } }] }],
    [{ role: 'assistant', content: 'x', tool_calls: [tool] }],
    [{ role: 'assistant', content: null, tool_calls: [tool] }],
    [{ role: 'tool', content: 'x', tool_call_id: 'c1' }],
  ])('comes through as it was: %j', (message) => expect(messageOf(message)).toEqual(message));

  it('loses what no provider knows, and lone surrogates', () => {
    expect(messageOf({ role: 'user', content: 'a\ud800b', refusal: null, tool_call_id: 'x' })).toEqual({
      role: 'user',
      content: 'a\ufffdb',
    });
  });

  it.each<[string, unknown]>([
    ['messages.0', 'hello'],
    ['messages.0', null],
    ['messages.0.role', { content: 'x' }],
    ['messages.0.role', { role: 'robot', content: 'x' }],
    ['messages.0.role', { role: 'toString', content: 'x' }],
    ['messages.0.content', { role: 'user' }],
    ['messages.0.content', { role: 'assistant', content: null }],
    ['messages.0.content', { role: 'user', content: 7 }],
    ['messages.0.content', { role: 'user', content: [] }],
    ['messages.0.content', { role: 'user', content: 'a\0b' }],
    ['messages.0.content', { role: 'user', content: Array(257).fill({ type: 'text', text: 'x' }) }],
    ['messages.0.content.1', { role: 'user', content: [{ type: 'text', text: 'x' }, 'y'] }],
    ['messages.0.content.0', { role: 'user', content: [{ text: 'x' }] }],
    ['messages.0.content.0.text', { role: 'user', content: [{ type: 'text' }] }],
    ['messages.0.content.0.text', { role: 'user', content: [{ type: 'text', text: '\0' }] }],
    ['messages.0.content.0.image_url.url', { role: 'user', content: [{ type: 'image_url' }] }],
    [
      'messages.0.content.0.image_url.url',
      { role: 'user', content: [{ type: 'image_url', image_url: { url: 'a\0' } }] },
    ],
    ['messages.0.name', { role: 'user', content: 'x', name: 'x'.repeat(257) }],
    ['messages.0.tool_call_id', { role: 'tool', content: 'x' }],
    ['messages.0.tool_calls', { role: 'assistant', tool_calls: Array(129).fill(tool) }],
    ['messages.0.tool_calls.0', { role: 'assistant', tool_calls: [null] }],
    ['messages.0.tool_calls.0', { role: 'assistant', tool_calls: [{ ...tool, id: '' }] }],
    ['messages.0.tool_calls.0', { role: 'assistant', tool_calls: [{ id: 'c1', function: {} }] }],
    [
      'messages.0.tool_calls.0.function.arguments',
      { role: 'assistant', tool_calls: [{ id: 'c1', function: { name: 'f', arguments: {} } }] },
    ],
  ])('is refused at %s: %j', (field, message) => {
    expect(refused({ model: 'gpt', messages: [message] })).toBe(field);
  });
});

it('throws nothing but BAD_INPUT, naming one field, whatever comes', () => {
  const message = fc.record(
    {
      role: fc.constantFrom('system', 'user', 'assistant', 'tool', 'x'),
      content: fc.oneof(fc.string(), fc.jsonValue()),
      tool_calls: fc.jsonValue(),
      tool_call_id: fc.jsonValue(),
    },
    { requiredKeys: [] },
  );
  const body = fc.record(
    {
      model: fc.oneof(fc.string(), fc.jsonValue()),
      messages: fc.oneof(fc.array(fc.oneof(message, fc.jsonValue())), fc.jsonValue()),
      stop: fc.jsonValue(),
      tools: fc.jsonValue(),
      stream_options: fc.jsonValue(),
    },
    { requiredKeys: [] },
  );
  fc.assert(
    fc.property(fc.oneof(body, fc.jsonValue()), (asked) => {
      refused(asked);
    }),
  );
});
