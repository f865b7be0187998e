import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { gzipSync } from 'node:zlib';
import { Turns } from '../../src/common/http';
import { ask, bootApp, eventually, ROOT_KEY, type TestApp, type TestTenant } from '../support/app';
import { Line } from '../support/line';

/** What one connection may ask for before it has read, and what it may offer with a request. */
let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;
beforeAll(async () => {
  app = await bootApp();
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
afterAll(() => app.close());

const get = (path: string, headers = ''): string => `GET ${path} HTTP/1.1\r\nhost: x\r\n${headers}\r\n`;
const keyOf = ({ apiKey }: TestTenant): string => `x-api-key: ${apiKey}\r\n`;
const statuses = (line: Line): number[] =>
  [...line.text.matchAll(/HTTP\/1\.1 (\d{3})/g)].map(([, status]) => Number(status));

/** A connection that has shown a key. */
async function known(tenant: TestTenant): Promise<Line> {
  const line = await Line.open(app.url);
  line.socket.write(get('/v1/models', keyOf(tenant)));
  expect(await line.status()).toBe(200);
  line.text = '';
  return line;
}

describe('requests of one connection', () => {
  it('are answered in their order, up to four of a stranger', async () => {
    const line = await Line.open(app.url);
    line.socket.write(get('/health') + get('/docs/openapi.json') + get('/nowhere') + get('/health'));
    await eventually(async () => statuses(line).length === 4);
    expect(statuses(line)).toEqual([200, 200, 404, 200]);
    line.socket.write(get('/health'));
    await eventually(async () => statuses(line).length === 5);
    line.socket.destroy();
  });

  it('past that are told to come back, behind the answers before them, and the connection is closed', async () => {
    const line = await Line.open(app.url);
    line.socket.write(get('/health').repeat(6));
    await line.ended();
    expect(statuses(line)).toEqual([200, 200, 200, 200, 429]);
    expect(line.text).toContain('"code":"RATE_LIMITED"');
    expect(line.text).toContain('retry-after: 1');
  });

  it('of who showed a key are sixteen; the rival is not met', async () => {
    const line = await known(acme);
    line.socket.write(get('/v1/models', keyOf(acme)).repeat(17));
    await line.ended();
    expect(statuses(line)).toEqual([...Array<number>(16).fill(200), 429]);
    expect((await rival.get('/v1/models')).status).toBe(200);
  });

  it('so many more that nobody could be told cut it off, whatever they ask for', async () => {
    for (const path of ['/docs/openapi.json', '/docs/swagger-ui-bundle.js']) {
      const line = await Line.open(app.url);
      line.socket.pause();
      line.socket.write(get(path).repeat(300));
      line.socket.resume();
      await line.ended();
      // At the most the first one was begun.
      expect(statuses(line).length).toBeLessThanOrEqual(1);
    }
  });

  it('begin when the answer before them has left: a body may follow, and a refusal of one', async () => {
    const line = await known(acme);
    const body = JSON.stringify({ type: 'single', source: 'a', target: 'b', msg: { c: 1 } });
    const post = (key: string, sent = body): string =>
      `POST /api/v1/im/messages HTTP/1.1\r\nhost: x\r\n${key}content-type: application/json\r\ncontent-length: ${sent.length}\r\n\r\n${sent}`;
    line.socket.write(post(keyOf(acme)) + post('') + post(keyOf(acme)) + get('/health'));
    await eventually(async () => statuses(line).length === 4);
    expect(statuses(line)).toEqual([200, 401, 200, 200]);
    line.socket.destroy();
  });

  it('begin when the answer before has left; one that nobody reads ends the connection', async () => {
    const began: string[] = [];
    const answers: Record<string, Buffer> = {
      '/small': Buffer.alloc(10),
      '/large': Buffer.alloc(33_554_432),
    };
    const turns = new Turns({ atOnce: () => 4, unreadMs: 200 });
    const server = createServer(
      turns.inTurn(({ url = '' }, response) => {
        began.push(url);
        response.end(answers[url]);
      }),
    );
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as AddressInfo;
    const line = await Line.open(`http://127.0.0.1:${port}`);
    line.socket.pause();
    line.socket.write(get('/small') + get('/large') + get('/small') + get('/small'));
    await eventually(async () => began.length === 2);
    await eventually(
      async () => (await new Promise<number>((resolve) => server.getConnections((_, n) => resolve(n)))) === 0,
    );
    expect(began).toEqual(['/small', '/large']);
    line.socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
});

describe('what a request offers', () => {
  it('HTTP/2 in the clear is not taken up: the answer comes in HTTP/1.1', async () => {
    const offer =
      'connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n';
    const line = await Line.open(app.url);
    line.socket.write(get('/v1/models', keyOf(acme) + offer));
    expect(await line.status()).toBe(200);
    line.text = '';
    line.socket.write(get('/v1/models', offer));
    expect(await line.status()).toBe(401);
    line.socket.destroy();
  });

  it('a packed body is 415 on every wire, before it is read', async () => {
    const wires: [string, Record<string, string>, (answer: any) => string][] = [
      ['/chat/oauth/token', {}, ({ msg }) => msg],
      ['/api/v1/im/messages', { 'x-api-key': acme.apiKey }, ({ error }) => error],
      ['/api/copywriting/dialogue/sse/send-message', { 'x-api-key': acme.apiKey }, ({ msg }) => msg],
      ['/api/v1/agents', { 'x-api-key': acme.apiKey }, ({ error }) => error],
      ['/v1/chat/completions', { authorization: `Bearer ${acme.apiKey}` }, ({ error }) => error.message],
      ['/api/admin/tenants', { 'x-api-key': ROOT_KEY }, ({ detail }) => detail],
    ];
    for (const [path, headers, message] of wires) {
      const packed = { ...headers, 'content-type': 'application/json', 'content-encoding': 'gzip' };
      const line = await Line.open(app.url);
      const head = Object.entries(packed).map(([name, value]) => `${name}: ${value}\n`);
      line.say(`POST ${path} HTTP/1.1\n${head.join('')}content-length: 900`);
      expect([path, await line.status()]).toEqual([path, 415]);
      await eventually(async () => line.text.endsWith('}'));
      expect(message(JSON.parse(line.text.slice(line.text.indexOf('\r\n\r\n') + 4)))).toContain(
        'content-encoding',
      );
      expect(line.text).toContain('accept-encoding: identity');
      line.socket.destroy();
    }
    const key = { 'x-api-key': acme.apiKey, 'content-type': 'application/json' };
    const plain = await ask(app.url, 'POST', '/api/v1/im/messages', '{}', {
      ...key,
      'content-encoding': 'identity',
    });
    expect(plain.status).toBe(400);
    const nobody = await ask(app.url, 'POST', '/api/v1/im/messages', gzipSync('{}').toString('latin1'), {
      'content-type': 'application/json',
      'content-encoding': 'gzip',
    });
    expect(nobody.status).toBe(401);
  });

  it('a body on demand is asked for when its sender was let in, not before', async () => {
    const body = JSON.stringify({ type: 'single', source: 'a', target: 'b', msg: { c: 1 } });
    const head = (key: string): string =>
      `POST /api/v1/im/messages HTTP/1.1\n${key}content-type: application/json\nexpect: 100-continue\ncontent-length: ${body.length}`;
    const stranger = await Line.open(app.url);
    stranger.say(head(''));
    await stranger.ended();
    expect(statuses(stranger)).toEqual([401]);
    const line = await Line.open(app.url);
    line.say(head(`x-api-key: ${acme.apiKey}\n`));
    expect(await line.status()).toBe(100);
    line.socket.write(body);
    await eventually(async () => statuses(line).length === 2);
    expect(statuses(line)).toEqual([100, 200]);
    line.text = '';
    line.say(`GET /health HTTP/1.1\nexpect: something`);
    expect(await line.status()).toBe(417);
    line.socket.destroy();
  });
});

it('the OpenAPI document is one for all, and asked for anew only when it is another', async () => {
  const first = await ask(app.url, 'GET', '/docs/openapi.json');
  expect(first.body.openapi).toMatch(/^3\./);
  const { etag } = first.headers as { etag: string };
  const again = await ask(app.url, 'GET', '/docs/openapi.json', undefined, { 'if-none-match': etag });
  expect([again.status, again.text]).toEqual([304, '']);
  const page = await ask(app.url, 'GET', '/docs/swagger-ui-init.js');
  expect(page.text).toContain('"swaggerUrl": "/docs/openapi.json"');
  expect(page.text.length).toBeLessThan(5_000);
});
