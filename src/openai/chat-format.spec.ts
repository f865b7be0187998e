import { createParser } from 'eventsource-parser';
import fc from 'fast-check';
import { AppError, type AppErrorOptions, type ErrorCode } from '../common';
import { CallNumbering, ToolCalls, type ToolCallDelta } from '../model-services';
import { answerRecord, ChunkFormat, DONE, replyChunks, usageRecord } from './chat-format';
import { openAiErrors, TURN_KEPT } from './errors';

const usage = { promptTokens: 3, completionTokens: 4, totalTokens: 7 };
const told = { prompt_tokens: 3, completion_tokens: 4, total_tokens: 7 };
const formatOf = (includeUsage = false) =>
  new ChunkFormat('chatcmpl-1', 'gpt "4"\n', 1_700_000_000, includeUsage);

/** As a client reads them. */
function read(events: string): any[] {
  const read: unknown[] = [];
  const parser = createParser({
    onEvent: ({ data }) => read.push(data === '[DONE]' ? data : JSON.parse(data)),
    onError: (error) => {
      throw error;
    },
  });
  parser.feed(events);
  return read;
}
const deltas = (events: string) => read(events).map((chunk) => chunk.choices[0].delta);

/** Any UTF-16 at all: lone surrogates, NUL, line ends of every kind. */
const utf16 = fc.array(fc.integer({ min: 0, max: 0xffff })).map((units) => String.fromCharCode(...units));
const piece = fc.oneof(
  utf16,
  fc.string({ unit: 'grapheme' }),
  fc.constantFrom('\n\n', '\r', 'data: x\n\n', '"'),
);

describe('pieces', () => {
  it('are exactly the text when a client puts them together', () => {
    fc.assert(
      fc.property(fc.array(piece), (pieces) => {
        const said = deltas(formatOf().pieces(pieces)).map(({ content }) => content as string);
        expect(said).toEqual(pieces);
        const thought = deltas(formatOf().reasoning(pieces)).map(
          ({ reasoning_content: text }) => text as string,
        );
        expect(thought.join('')).toBe(pieces.join(''));
      }),
    );
  });

  it('carry what identifies the answer, whatever that is', () => {
    fc.assert(
      fc.property(piece, piece, (id, model) => {
        expect(read(new ChunkFormat(id, model, 5, false).pieces(['x']))).toEqual([
          {
            id,
            object: 'chat.completion.chunk',
            created: 5,
            model,
            system_fingerprint: null,
            choices: [{ index: 0, delta: { content: 'x' }, logprobs: null, finish_reason: null }],
          },
        ]);
      }),
    );
  });

  it('follow who speaks', () => {
    expect(deltas(formatOf().first())).toEqual([{ role: 'assistant', content: '', refusal: null }]);
  });
});

describe('the end', () => {
  it('is the reason, and no usage that nobody asked for', () => {
    const [last, done, ...more] = read(formatOf().end('length', usage));
    expect(last.choices).toEqual([{ index: 0, delta: {}, logprobs: null, finish_reason: 'length' }]);
    expect(last).not.toHaveProperty('usage');
    expect([done, more]).toEqual(['[DONE]', []]);
  });

  it('tells usage in one chunk of its own that has no choices', () => {
    const events = formatOf(true).end('stop', usage);
    expect(read(events).map((chunk) => [chunk.choices?.length, chunk.usage])).toEqual([
      [1, undefined],
      [0, told],
      [undefined, undefined],
    ]);
    expect(events.endsWith(DONE)).toBe(true);
  });
});

describe('calls of tools', () => {
  /** What a client makes of them that adds text to text, as the SDKs do. */
  function accumulated(events: string): unknown[] {
    const calls: Record<string, any>[] = [];
    for (const { tool_calls: parts } of deltas(events)) {
      for (const { index, id = '', type, function: part } of parts) {
        const call = (calls[index] ??= { id: '', type: '', function: { name: '', arguments: '' } });
        call.id += id;
        call.type = type ?? call.type;
        call.function.name += part.name ?? '';
        call.function.arguments += part.arguments;
      }
    }
    return calls;
  }
  const whole = (given: ToolCallDelta[]) => {
    const calls = new ToolCalls();
    calls.add(given);
    return calls.all;
  };

  it.each<[string, unknown[]]>([
    [
      'begin with id and name',
      [
        { index: 0, id: 'c1', function: { name: 'f', arguments: '' } },
        { index: 0, function: { arguments: '{}' } },
      ],
    ],
    [
      'are mixed',
      [
        { index: 0, id: 'c1', function: { name: 'f', arguments: '{' } },
        { index: 1, id: 'c2', function: { name: 'g' } },
        { index: 0, function: { arguments: '}' } },
        { index: 1, function: { arguments: '[]' } },
      ],
    ],
    [
      'repeat id and name with every piece',
      [
        { index: 0, id: 'c1', function: { name: 'f', arguments: '{' } },
        { index: 0, id: 'c1', function: { name: 'f', arguments: '}' } },
      ],
    ],
    [
      'have no id',
      [
        { index: 0, function: { name: 'f', arguments: '{}' } },
        { index: 1, function: { name: 'g', arguments: '{}' } },
      ],
    ],
    [
      'tell the name late',
      [
        { index: 0, id: 'c1', function: {} },
        { index: 0, function: { name: 'f', arguments: '{}' } },
      ],
    ],
  ])('that %s are the same streamed and whole', (_, given) => {
    const format = formatOf();
    const numbering = new CallNumbering();
    const deltas = given.flatMap((raw) => numbering.read([raw]));
    const events = deltas.map((one) => format.toolCalls([one])).join('');
    expect(accumulated(events)).toEqual(whole(deltas));
  });
});

describe('a stored reply', () => {
  const end = { status: 'finished', credits: 0, ...usage } as const;
  const format = replyChunks(formatOf(true), ({ error }) =>
    error ? `data: ${JSON.stringify(error)}\n\n` : null,
  );

  it('is its pieces, and with the end the reason and [DONE]', () => {
    expect(deltas(format({ first: 1, offset: 0, pieces: ['a', 'b'] }))).toEqual([
      { content: 'a' },
      { content: 'b' },
    ]);
    const all = read(format({ first: 3, offset: 2, pieces: ['c'], end }));
    expect(all.map((chunk) => chunk.choices?.[0]?.finish_reason)).toEqual([
      null,
      'stop',
      undefined,
      undefined,
    ]);
    expect(all.at(-2).usage).toEqual(told);
  });

  it('that failed is what came of it, and the error', () => {
    const error = { code: 502, message: 'broke off' };
    const all = read(
      format({ first: 1, offset: 0, pieces: ['a'], end: { ...end, status: 'failed', error } }),
    );
    expect(all.slice(1)).toEqual([error]);
  });
});

describe('a whole answer', () => {
  const answer = {
    id: 'chatcmpl-1',
    model: 'gpt',
    created: 5,
    text: 'hi',
    reasoning: '',
    toolCalls: [],
    usage,
  };
  const called = [{ id: 'c1', type: 'function', function: { name: 'f', arguments: '{}' } }] as const;

  it('is one message with its usage', () => {
    expect(answerRecord({ ...answer, finishReason: 'stop' })).toEqual({
      id: 'chatcmpl-1',
      object: 'chat.completion',
      created: 5,
      model: 'gpt',
      choices: [
        {
          index: 0,
          message: { role: 'assistant', content: 'hi', refusal: null },
          logprobs: null,
          finish_reason: 'stop',
        },
      ],
      usage: usageRecord(usage),
    });
  });

  it('has null for content where there are calls alone, and an empty text where there is nothing', () => {
    const messageOf = (more: object) =>
      answerRecord({ ...answer, finishReason: 'x', ...more }).choices[0]!.message;
    expect(messageOf({ text: '', toolCalls: called })).toMatchObject({ content: null, tool_calls: called });
    expect(messageOf({ toolCalls: called })).toMatchObject({ content: 'hi', tool_calls: called });
    expect(messageOf({ text: '' })).toEqual({ role: 'assistant', content: '', refusal: null });
    expect(messageOf({ reasoning: 'hm' })).toMatchObject({ content: 'hi', reasoning_content: 'hm' });
  });
});

describe('an error', () => {
  const rendered = (code: ErrorCode, options: AppErrorOptions = {}) => {
    const { status, body, headers } = openAiErrors.render(new AppError(code, options));
    return { status, again: headers?.['x-should-retry'], ...(body as { error: object }).error };
  };

  it('names the field as the client wrote it', () => {
    const errors = [{ field: 'messages.0.content.12.text', message: 'x' }];
    expect(rendered('BAD_INPUT', { errors })).toMatchObject({ param: 'messages[0].content[12].text' });
    expect(rendered('BODY_TOO_LARGE')).toMatchObject({ status: 400, param: 'body' });
  });

  it('says whether to send the request again', () => {
    const again = (code: ErrorCode, cause?: unknown) => rendered(code, { cause }).again;
    for (const code of ['BAD_INPUT', 'UNAUTHENTICATED', 'FORBIDDEN', 'NOT_FOUND'] as const)
      expect(again(code)).toBeUndefined();
    // The SDKs would, by the status alone.
    for (const code of ['CONFLICT', 'INTERNAL'] as const) expect(again(code)).toBe('false');
    for (const code of ['REPLY_IN_PROGRESS', 'RATE_LIMITED', 'PROVIDER_FAILED', 'OVERLOADED'] as const) {
      expect(again(code)).toBe('true');
      expect(again(code, TURN_KEPT)).toBe('false');
    }
  });
});
