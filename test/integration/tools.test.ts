import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Config } from '../../src/config';
import { SecretBox } from '../../src/common';
import { Outbound } from '../../src/outbound';
import { ToolSources, type Toolbox, type ToolSource } from '../../src/tools';
import { ToolNetwork } from '../../src/tools/tool-network';
import { freePort, startEverything, type Everything } from '../support/everything';

const ID = '4711';
const TOKEN = 'Bearer token-of-the-tests-123';

interface Seen {
  readonly method: string;
  readonly url: string;
  readonly headers: IncomingMessage['headers'];
  readonly body: string;
}

let everything: Everything;
let shop: Server;
let shopUrl: string;
const seen: Seen[] = [];
const behaviours = new Map<string, (request: IncomingMessage, response: ServerResponse) => void>();
const networks: Outbound[] = [];
const boxes: Toolbox[] = [];

function toolSources(setting: 'auto' | 'refuse' = 'auto'): ToolSources {
  const config = Config.load({ NODE_ENV: 'test', PRIVATE_PROVIDER_ADDRESSES: setting });
  const box = new SecretBox('secret-of-the-tests-0123456789abcdef');
  const secrets = {
    seal: (text: string, id: string) => box.seal(text, `tool:${id}`),
    open: (sealed: string, id: string) => box.open(sealed, `tool:${id}`),
    readable: (sealed: string, id: string) => box.tryOpen(sealed, `tool:${id}`) !== null,
  };
  const outbound = new Outbound(config);
  networks.push(outbound);
  return new ToolSources(secrets, new ToolNetwork(outbound));
}

const never = () => new AbortController().signal;

async function open(sources: readonly ToolSource[], by = toolSources()): Promise<Toolbox> {
  const checked = await by.check(JSON.parse(JSON.stringify(sources)));
  const toolbox = await by.open(by.seal(checked, ID), ID, never());
  boxes.push(toolbox);
  return toolbox;
}

const call = (toolbox: Toolbox, name: string, args: unknown = {}, signal = never()) =>
  toolbox.call(name, JSON.stringify(args), signal);

beforeAll(async () => {
  everything = await startEverything();
  shop = createServer((request, response) => {
    let body = '';
    request.setEncoding('utf8').on('data', (text: string) => (body += text));
    request.on('end', () => {
      const url = request.url!;
      seen.push({ method: request.method!, url, headers: request.headers, body });
      const behave = behaviours.get(url.split('?')[0]!);
      if (behave) return behave(request, response);
      response.setHeader('content-type', 'application/json');
      response.end(JSON.stringify({ method: request.method, url, body }));
    });
  });
  await new Promise<void>((resolve) => shop.listen(0, '127.0.0.1', resolve));
  shopUrl = `http://127.0.0.1:${(shop.address() as AddressInfo).port}`;
});
afterEach(async () => {
  await Promise.all(boxes.splice(0).map((toolbox) => toolbox.close()));
  await Promise.all(networks.splice(0).map((network) => network.onApplicationShutdown()));
  seen.length = 0;
  behaviours.clear();
});
afterAll(async () => {
  await everything.stop();
  shop.closeAllConnections();
  await new Promise((resolve) => shop.close(resolve));
});

describe('an MCP server', () => {
  const docs = (more: Partial<ToolSource> = {}): ToolSource =>
    ({ type: 'mcp', name: 'docs', url: everything.url, ...more }) as ToolSource;

  it('offers its tools, which answer', async () => {
    const toolbox = await open([docs()]);
    expect(toolbox.failures).toEqual([]);
    const echo = toolbox.tools.find(({ name }) => name === 'docs_echo');
    expect(echo).toMatchObject({
      description: expect.any(String),
      parameters: { type: 'object', properties: { message: { type: 'string' } }, required: ['message'] },
    });
    for (const { name } of toolbox.tools) expect(name).toMatch(/^[A-Za-z0-9_-]{1,64}$/);
    expect(await call(toolbox, 'docs_echo', { message: 'hällo 😀' })).toEqual({
      content: 'Echo: hällo 😀',
      isError: false,
    });
    const sums = await Promise.all([1, 2, 3].map((a) => call(toolbox, 'docs_get-sum', { a, b: 1 })));
    expect(sums.map(({ content }) => content)).toEqual(
      [2, 3, 4].map((sum) => expect.stringContaining(String(sum))),
    );
  });

  it('is confined to what is allowed, and what it lacks is noted', async () => {
    const toolbox = await open([docs({ allow: ['echo', 'nothing'] })]);
    expect(toolbox.tools.map(({ name }) => name)).toEqual(['docs_echo']);
    expect(toolbox.failures).toEqual([{ source: 'docs', message: 'its server does not offer nothing' }]);
    expect(await call(toolbox, 'docs_get-sum', { a: 1, b: 2 })).toEqual({
      content: 'There is no tool "docs_get-sum".',
      isError: true,
    });
  });

  it('says what was wrong with the arguments, and passes on no pictures', async () => {
    const toolbox = await open([docs()]);
    const wrong = await call(toolbox, 'docs_echo', {});
    expect(wrong).toEqual({ content: expect.stringContaining('message'), isError: true });
    for (const text of ['[]', 'nonsense', '"x"', '1', 'null']) {
      expect(await toolbox.call('docs_echo', text, never())).toEqual({
        content: 'The arguments of "docs_echo" must be one JSON object.',
        isError: true,
      });
    }
    const image = await call(toolbox, 'docs_get-tiny-image');
    expect(image.content).toContain('[image/png, left out: it is not text]');
    expect((await toolbox.call('docs_get-tiny-image', '', never())).isError).toBe(false);
  });

  it('is asked once a minute for its tools: a known list needs no connection', async () => {
    const by = toolSources();
    const stored = by.seal(await by.check([docs()]), ID);
    const first = await by.open(stored, ID, never());
    const other = await startEverything();
    await first.close();
    const moved = [{ ...stored[0]!, url: other.url }] as typeof stored;
    const before = await by.open(moved, ID, never());
    await before.close();
    await other.stop();
    const after = await by.open(moved, ID, never());
    boxes.push(after);
    expect(after.tools).toEqual(before.tools);
    expect(await call(after, 'docs_echo', { message: 'x' })).toEqual({
      content: '"docs_echo" failed: its server can not be reached.',
      isError: true,
    });
    expect((await by.open(moved, 'another', never())).failures).toEqual([
      { source: 'docs', message: 'its server can not be reached' },
    ]);
  });

  it('is stopped by its caller, and goes on for the next', async () => {
    const toolbox = await open([docs()]);
    const controller = new AbortController();
    const slow = call(
      toolbox,
      'docs_trigger-long-running-operation',
      { duration: 20, steps: 2 },
      controller.signal,
    );
    const reason = new Error('enough');
    setImmediate(() => controller.abort(reason));
    await expect(slow).rejects.toBe(reason);
    await expect(call(toolbox, 'docs_echo', { message: 'x' }, controller.signal)).rejects.toBe(reason);
    expect((await call(toolbox, 'docs_echo', { message: 'still here' })).content).toBe('Echo: still here');
  });

  it('that is none is a failure beside which the others work', async () => {
    behaviours.set('/mcp', (_, response) =>
      response.writeHead(500).end('at Object.<anonymous> (/srv/x.js:1:1)'),
    );
    behaviours.set('/elsewhere', (_, response) =>
      response.writeHead(302, { location: 'http://10.0.0.1/' }).end(),
    );
    const toolbox = await open([
      docs(),
      docs({ name: 'broken', url: `${shopUrl}/mcp` }),
      docs({ name: 'moved', url: `${shopUrl}/elsewhere` }),
      docs({ name: 'absent', url: `http://127.0.0.1:${await freePort()}/mcp` }),
      docs({ name: 'text', url: `${shopUrl}/text` }),
    ]);
    expect(toolbox.failures).toEqual([
      { source: 'broken', message: 'its server answered with status 500' },
      { source: 'moved', message: 'its server answered with status 302, a redirect, which is not followed' },
      { source: 'absent', message: 'its server can not be reached' },
      { source: 'text', message: expect.any(String) },
    ]);
    expect(JSON.stringify(toolbox.failures)).not.toMatch(/127\.0|10\.0|http:|\.js/);
    expect((await call(toolbox, 'docs_echo', { message: 'x' })).isError).toBe(false);
  });

  it('that never answers costs 5 s, or no more than its caller wants', async () => {
    behaviours.set('/silent', () => undefined);
    const silent = docs({ url: `${shopUrl}/silent` });
    const toolbox = await open([silent]);
    expect(toolbox.failures).toEqual([{ source: 'docs', message: 'it did not answer within 5 s' }]);
    const by = toolSources();
    const controller = new AbortController();
    const opening = by.open(by.seal([silent], ID), ID, controller.signal);
    const reason = new Error('enough');
    controller.abort(reason);
    await expect(opening).rejects.toBe(reason);
  });

  it('is sent the headers, and an answer over 1 MiB is refused', async () => {
    let big = false;
    behaviours.set('/scripted', (request, response) => {
      if (request.method !== 'POST') return response.writeHead(405).end();
      const { id, method } = JSON.parse(seen.at(-1)!.body) as { id?: number; method: string };
      if (id === undefined) return response.writeHead(202).end();
      if (method === 'server/discover') return response.writeHead(400).end();
      const results: Record<string, unknown> = {
        initialize: {
          protocolVersion: '2025-06-18',
          capabilities: { tools: {} },
          serverInfo: { name: 's', version: '1' },
        },
        'tools/list': { tools: [{ name: 'say', inputSchema: { type: 'object', pattern: '\0\ud800' } }] },
        'tools/call': {
          content: [
            {
              type: 'text',
              text: big ? 'x'.repeat(2_000_000) : `\0you sent ${request.headers.authorization}`,
            },
          ],
        },
      };
      const message = JSON.stringify({ jsonrpc: '2.0', id, result: results[method] });
      if (big) response.setHeader('content-type', 'text/event-stream').end(`data: ${message}\n\n`);
      else response.setHeader('content-type', 'application/json').end(message);
    });
    const source = docs({
      url: `${shopUrl}/scripted`,
      headers: { Authorization: TOKEN },
    });
    const toolbox = await open([source]);
    expect(toolbox.tools).toEqual([
      { name: 'docs_say', description: '', parameters: { type: 'object', pattern: '\uFFFD\uFFFD' } },
    ]);
    expect(await call(toolbox, 'docs_say')).toEqual({ content: '\uFFFDyou sent [hidden]', isError: false });
    expect(seen.every(({ headers }) => headers.authorization === TOKEN)).toBe(true);
    big = true;
    expect(await call(toolbox, 'docs_say')).toEqual({
      content: '"docs_say" failed: its answer is over 1 MiB.',
      isError: true,
    });
    big = false;
    expect((await call(toolbox, 'docs_say')).isError).toBe(false);
  });
});

describe('an OpenAPI document', () => {
  const spec = {
    openapi: '3.0.3',
    info: { title: 'shop', version: '1' },
    servers: [{ url: 'http://{host}/', variables: { host: { default: 'shop.invalid' } } }],
    paths: {
      '/orders/{id}': {
        parameters: [{ name: 'id', in: 'path', required: true, schema: { type: 'string' } }],
        get: {
          operationId: 'getOrder',
          summary: 'One order',
          parameters: [
            { name: 'fields', in: 'query', schema: { type: 'array', items: { type: 'string' } } },
            { name: 'X-Trace', in: 'header', schema: { type: 'string' } },
            { name: 'Authorization', in: 'header', schema: { type: 'string' } },
          ],
        },
        put: {
          operationId: 'putOrder',
          requestBody: {
            required: true,
            content: { 'application/json': { schema: { $ref: '#/components/schemas/Order' } } },
          },
        },
      },
      ...Object.fromEntries(
        ['missing', 'broken', 'slow', 'huge', 'moved', 'empty', 'picture'].map((name) => [
          `/${name}`,
          { get: { operationId: name } },
        ]),
      ),
    },
    components: { schemas: { Order: { type: 'object', properties: { count: { type: 'integer' } } } } },
  };
  const source = (more: Record<string, unknown> = {}): ToolSource => ({
    type: 'openapi',
    name: 'shop',
    spec,
    baseUrl: `${shopUrl}/v1/`,
    ...more,
  });

  it('makes tools of its operations, which send path, query, headers and body', async () => {
    const toolbox = await open([source({ headers: { authorization: TOKEN } })]);
    expect(toolbox.failures).toEqual([]);
    expect(toolbox.tools[0]).toEqual({
      name: 'shop_getOrder',
      description: 'One order',
      parameters: {
        type: 'object',
        properties: {
          id: { type: 'string' },
          fields: { type: 'array', items: { type: 'string' } },
          'X-Trace': { type: 'string' },
        },
        required: ['id'],
        additionalProperties: false,
      },
    });
    const got = await call(toolbox, 'shop_getOrder', { id: 'a/b?c#ü', fields: ['x', 'y&z'], 'X-Trace': 't' });
    expect(got.isError).toBe(false);
    expect(seen.at(-1)).toMatchObject({
      method: 'GET',
      url: '/v1/orders/a%2Fb%3Fc%23%C3%BC?fields=x&fields=y%26z',
      headers: { authorization: TOKEN, 'x-trace': 't' },
    });
    await call(toolbox, 'shop_putOrder', { id: 7, body: { count: 2 } });
    expect(seen.at(-1)).toMatchObject({
      method: 'PUT',
      url: '/v1/orders/7',
      headers: { 'content-type': 'application/json' },
      body: '{"count":2}',
    });
  });

  it('lets no argument out of its place', async () => {
    const toolbox = await open([source({ headers: { 'X-Trace': 'configured' } })]);
    for (const id of ['..', '.', '%2e%2e']) {
      const result = await call(toolbox, 'shop_getOrder', { id });
      if (id.startsWith('.')) expect(result.isError).toBe(true);
      else expect(seen.at(-1)!.url).toBe('/v1/orders/%252e%252e');
    }
    seen.length = 0;
    for (const args of [
      { id: '' },
      {},
      { id: 'x', Authorization: 'mine' },
      { id: 'x', 'X-Trace': 'a\r\nhost: b' },
      { id: 'x', body: {} },
    ]) {
      expect((await call(toolbox, 'shop_getOrder', args)).isError).toBe(true);
    }
    expect(seen).toEqual([]);
    await call(toolbox, 'shop_getOrder', { id: 'x', 'X-Trace': 'mine' });
    expect(seen.at(-1)!.headers['x-trace']).toBe('configured');
  });

  it('passes on what a refusal says, and nothing of a breakdown', async () => {
    behaviours.set('/v1/missing', (request, response) =>
      response
        .writeHead(404, { 'content-type': 'text/plain' })
        .end(`no order; ${request.headers.authorization}`),
    );
    behaviours.set('/v1/broken', (_, response) => response.writeHead(503).end('at /srv/app.js:3'));
    behaviours.set('/v1/moved', (_, response) =>
      response.writeHead(307, { location: `${shopUrl}/stolen` }).end(),
    );
    behaviours.set('/v1/empty', (_, response) => response.writeHead(204).end());
    behaviours.set('/v1/picture', (_, response) =>
      response.writeHead(200, { 'content-type': 'image/png' }).end('x'),
    );
    const toolbox = await open([source({ headers: { Authorization: TOKEN } })]);
    const answers = [];
    for (const name of ['missing', 'broken', 'moved', 'empty', 'picture']) {
      answers.push(await call(toolbox, `shop_${name}`));
    }
    expect(answers).toEqual([
      { content: 'its server answered with status 404: no order; [hidden]', isError: true },
      { content: 'its server answered with status 503', isError: true },
      { content: 'its server answered with status 307, a redirect, which is not followed', isError: true },
      { content: '(status 204, without content)', isError: false },
      { content: '[an answer of the type image/png, left out: it is not text]', isError: false },
    ]);
    expect(seen.some(({ url }) => url === '/stolen')).toBe(false);
  });

  it('cuts what is huge, never inside a character', async () => {
    const text = `x${'😀'.repeat(700_000)}`; // 2.8 MB
    behaviours.set('/v1/huge', (_, response) =>
      response.writeHead(200, { 'content-type': 'text/plain; charset=utf-8' }).end(text),
    );
    const toolbox = await open([source()]);
    const { content, isError } = await call(toolbox, 'shop_huge');
    expect(isError).toBe(false);
    expect(content.length).toBeGreaterThan(65_000);
    expect(content.length).toBeLessThanOrEqual(65_536);
    expect(content.isWellFormed()).toBe(true);
    expect(content).toMatch(/\n\[cut: .*65536\]$/);
  });

  it('stops a slow call with its caller', async () => {
    const arrived = new Promise<void>((resolve) => behaviours.set('/v1/slow', () => resolve()));
    const toolbox = await open([source()]);
    const controller = new AbortController();
    const slow = call(toolbox, 'shop_slow', {}, controller.signal);
    await arrived;
    const reason = new Error('enough');
    controller.abort(reason);
    await expect(slow).rejects.toBe(reason);
  });

  it('opens under the id it was sealed with only', async () => {
    const by = toolSources();
    const stored = by.seal([source({ headers: { authorization: TOKEN } })], ID);
    expect(JSON.stringify(stored)).not.toContain('token-of-the-tests');
    const toolbox = await by.open(stored, 'another', never());
    expect(toolbox.tools).toEqual([]);
    expect(toolbox.failures).toEqual([
      { source: 'shop', message: 'its headers can not be unsealed; enter them again' },
    ]);
  });
});

describe('a private address', () => {
  const minimal = { openapi: '3.1.0', paths: { '/x': { get: { operationId: 'x' } } } };

  it('is refused when it is written', async () => {
    const by = toolSources('refuse');
    for (const url of [
      'http://127.0.0.1/',
      'http://localhost:1/',
      'http://[::ffff:10.0.0.1]/',
      'http://2130706433/',
    ]) {
      await expect(by.check([{ type: 'mcp', name: 'a', url }])).rejects.toMatchObject({
        code: 'BAD_INPUT',
        message: 'tools.0.url: must not lead to a private address',
      });
    }
    await expect(
      by.check([{ type: 'openapi', name: 'a', spec: { ...minimal, servers: [{ url: 'http://10.0.0.1' }] } }]),
    ).rejects.toMatchObject({ message: 'tools.0.spec.servers: must not lead to a private address' });
  });

  it('is refused when it is called, as an address and as a name', async () => {
    const by = toolSources('refuse');
    const { port } = new URL(shopUrl);
    const hosts = ['127.0.0.1', 'localhost', '[::1]'];
    const toolbox = await by.open(
      [
        ...hosts.map((host, index) => ({
          type: 'mcp' as const,
          name: `m${index}`,
          url: `http://${host}:${port}/mcp`,
        })),
        ...hosts.map((host, index) => ({
          type: 'openapi' as const,
          name: `o${index}`,
          spec: minimal,
          baseUrl: `http://${host}:${port}`,
        })),
      ],
      ID,
      never(),
    );
    boxes.push(toolbox);
    expect(toolbox.failures).toEqual(
      [0, 1, 2].map((index) => ({ source: `m${index}`, message: 'leads to a private address' })),
    );
    for (const index of [0, 1, 2]) {
      expect(await call(toolbox, `o${index}_x`)).toEqual({
        content: `"o${index}_x" failed: leads to a private address.`,
        isError: true,
      });
    }
    expect(seen).toEqual([]);
  });
});
