import { offer } from './mcp-source';
import type { OpenSource, ToolResult } from './tool';
import { inPlainWords, ToolFailure } from './tool-failure';
import { toolName } from './tool-names';
import { OpenToolbox, type NamedSource } from './toolbox';

const signal = new AbortController().signal;

function source(
  name: string,
  call: OpenSource['call'],
  tools: readonly string[] = ['t'],
  headers?: Record<string, string>,
): NamedSource {
  return {
    name,
    headers,
    source: {
      tools: tools.map((tool) => ({ name: tool, description: '', parameters: {} })),
      notes: [],
      call,
      close: async () => undefined,
    },
  };
}
const answering = (content: string) => async (): Promise<ToolResult> => ({ content, isError: false });

describe('names', () => {
  it('are plain where they can be, else marked by both names', () => {
    expect(toolName('docs', 'get.it', new Set())).toBe('docs_get_it');
    const long = toolName('docs', 'x'.repeat(100), new Set())!;
    expect(long).toMatch(/^docs_x{52}_[0-9a-f]{6}$/);
    expect(long).not.toBe(toolName('docs', 'x'.repeat(101), new Set()));
    const clash = toolName('a', 'b_c', new Set(['a_b_c']))!;
    expect(clash).toMatch(/^a_b_c_[0-9a-f]{6}$/);
    expect(toolName('a', 'b_c', new Set(['a_b_c', clash]))).toBeNull();
  });

  it('lead to the right source', async () => {
    const toolbox = new OpenToolbox(
      [source('a_b', answering('first'), ['c']), source('a', answering('second'), ['b_c', 'b_c'])],
      [],
    );
    expect(toolbox.tools).toHaveLength(2); // the second b_c is nobody's
    const contents = await Promise.all(toolbox.tools.map(({ name }) => toolbox.call(name, '{}', signal)));
    expect(contents.map(({ content }) => content)).toEqual(['first', 'second']);
  });
});

describe('a call', () => {
  it('that takes too long is a result', async () => {
    const toolbox = new OpenToolbox([source('a', () => new Promise(() => undefined))], [], 20);
    expect(await toolbox.call('a_t', '{}', signal)).toEqual({
      content: '"a_t" failed: it took longer than 0.02 s.',
      isError: true,
    });
  });

  it('tells nothing that a foreign error says', async () => {
    const secret = 'Bearer abcdefgh';
    for (const [error, words] of [
      [new Error(`connect to http://10.0.0.1 with ${secret}`), 'the exchange with its server failed'],
      [new TypeError('fetch failed', { cause: { code: 'ECONNREFUSED' } }), 'its server can not be reached'],
      [new TypeError('x', { cause: { code: 'CERT_HAS_EXPIRED' } }), "its server's certificate is not valid"],
      [new ToolFailure(`it says ${secret} and abcdefgh`), 'it says [hidden] and [hidden]'],
    ] as const) {
      const toolbox = new OpenToolbox(
        [source('a', () => Promise.reject(error), ['t'], { authorization: secret })],
        [],
      );
      expect(await toolbox.call('a_t', '', signal)).toEqual({
        content: `"a_t" failed: ${words}.`,
        isError: true,
      });
    }
    expect(inPlainWords({ code: 'constructor' })).toBe('the exchange with its server failed');
  });

  it('rejects with the reason of its signal alone', async () => {
    const reason = new Error('enough');
    const controller = new AbortController();
    const toolbox = new OpenToolbox([source('a', () => new Promise(() => undefined))], []);
    const call = toolbox.call('a_t', '{}', controller.signal);
    controller.abort(reason);
    await expect(call).rejects.toBe(reason);
    await expect(toolbox.call('nothing', '{}', controller.signal)).rejects.toBe(reason);
  });

  it('cuts between characters and says so', async () => {
    for (const length of [65_536, 65_537, 200_000]) {
      for (const text of [`${'x'.repeat(length % 2)}${'😀'.repeat(length >> 1)}`, 'x'.repeat(length)]) {
        const toolbox = new OpenToolbox([source('a', answering(text))], []);
        const { content } = await toolbox.call('a_t', '{}', signal);
        expect(content.isWellFormed()).toBe(true);
        expect(content.length).toBeLessThanOrEqual(65_536);
        expect(content.includes('[cut:')).toBe(length > 65_536);
      }
    }
    const odd = new OpenToolbox([source('a', answering('a\0b\ud800'))], []);
    expect((await odd.call('a_t', '{}', signal)).content).toBe('a\uFFFDb\uFFFD');
  });
});

describe("an MCP server's list", () => {
  const tool = (name: string, inputSchema: unknown = { type: 'object' }) => ({ name, inputSchema });

  it('is cut to what is allowed and bearable', () => {
    const many = offer(Array.from({ length: 70 }, (_, index) => tool(`t${index}`)));
    expect(many.tools).toHaveLength(64);
    expect(many.notes).toEqual(['its server offers 70 tools; only the first 64 are given']);
    const large = offer([tool('a', { type: 'object', description: 'x'.repeat(32_000) }), tool('b')]);
    expect(large.tools.map(({ name }) => name)).toEqual(['b']);
    expect(large.notes).toEqual(['its tool a is left out: its schema is too large']);
    expect(offer([tool('a'), tool('b')], ['b', 'c'])).toMatchObject({
      tools: [{ name: 'b' }],
      notes: ['its server does not offer c'],
    });
  });
});
