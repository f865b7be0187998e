import { getMetadataStorage } from 'class-validator';
import { Strangers } from '../../src/common/http';
import { ask, bootApp, eventually, ROOT_KEY, type TestApp, type TestTenant } from '../support/app';
import { Line as AnyLine } from '../support/line';

/** What bounds those who have shown no key yet, and every body before it is validated. */
const BODY = 2_048;
let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;
beforeAll(async () => {
  app = await bootApp({
    BODY_MAX_MEMBERS: '400',
    BODY_MAX_OBJECT_MEMBERS: '200',
    BODY_MAX_ELEMENTS: '300',
    BODY_MAX_DEPTH: '20',
    BODY_SECONDS: '1',
    STRANGER_BODY_BYTES: String(BODY),
    STRANGER_BODY_SECONDS: '1',
    STRANGER_BODIES: '3',
    STRANGER_BODIES_PER_ADDRESS: '2',
    STRANGER_CONNECTIONS: '12',
    STRANGER_CONNECTIONS_PER_ADDRESS: '8',
  });
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
afterEach(() => eventually(async () => app.app.nest.get(Strangers).count === 0));
afterAll(() => app.close());

/** Of this server. */
const Line = { open: (localAddress?: string): Promise<AnyLine> => AnyLine.open(app.url, localAddress) };

const TOKEN = `POST /chat/oauth/token HTTP/1.1\ncontent-type: application/json`;
const wires = (): [string, string, Record<string, string>, (answer: any) => string][] => [
  ['IM', '/chat/oauth/token', {}, ({ msg }) => msg],
  ['IM, REST', '/api/v1/im/messages', { 'x-api-key': acme.apiKey }, ({ error }) => error],
  ['platform', '/api/copywriting/dialogue/sse/send-message', { 'x-api-key': acme.apiKey }, ({ msg }) => msg],
  ['agent channel', '/api/v1/agents', { 'x-api-key': acme.apiKey }, ({ error }) => error],
  [
    'OpenAI',
    '/v1/chat/completions',
    { authorization: `Bearer ${acme.apiKey}` },
    ({ error }) => error.message,
  ],
  ['admin', '/api/admin/tenants', { 'x-api-key': ROOT_KEY }, ({ detail }) => detail],
];

describe('a body is bounded before it is validated, on every wire', () => {
  const many = (count: number, from = 0) =>
    Object.fromEntries(Array.from({ length: count }, (_, i) => [`f${from + i}`, 1]));
  it.each<[string, string, string]>([
    ['members of one object', JSON.stringify(many(201)), 'has an object of more than 200 members'],
    [
      'members in all',
      JSON.stringify({ a: many(150), b: many(150), c: many(100) }),
      'has more than 400 members',
    ],
    ['elements', JSON.stringify({ a: Array(301).fill(1) }), 'has more than 300 array elements'],
    ['levels', `{"a":${'['.repeat(20)}${']'.repeat(20)}}`, 'is nested deeper than 20 levels'],
  ])('%s', async (_, body, said) => {
    for (const [wire, path, headers, message] of wires()) {
      const answer = await ask(app.url, 'POST', path, body, headers);
      // A stranger's weighs too much before it holds too much.
      if (wire === 'IM' && body.length > BODY) expect(answer.status).toBe(413);
      else expect([wire, answer.status, message(answer.body)]).toEqual([wire, 400, `body: ${said}`]);
    }
  });

  it('deeper than any parser walks by itself is 400 as well', async () => {
    const deep = `{"msg":${'['.repeat(50_000)}${']'.repeat(50_000)},"type":"single","target":"x"}`;
    expect((await acme.post('/api/v1/im/messages', deep)).status).toBe(400);
  });

  it('so are the fields of a form', async () => {
    const headers = { 'content-type': 'application/x-www-form-urlencoded' };
    const form = (count: number): string => Array.from({ length: count }, (_, i) => `f${i}=`).join('&');
    const within = await ask(app.url, 'POST', '/chat/oauth/token', form(200), headers);
    expect(within.body.msg).toContain('appKey: is required');
    const past = await ask(app.url, 'POST', '/chat/oauth/token', form(201), headers);
    expect([past.status, past.body]).toEqual([400, { code: 1001, msg: 'body: has more than 200 fields' }]);
    const proto = await ask(app.url, 'POST', '/chat/oauth/token', '__proto__=1', headers);
    expect([proto.status, proto.body.msg]).toEqual([400, 'body: must not have a field __proto__']);
  });

  it('no list is walked that does not say how long it may be', () => {
    const walked = ['arrayUnique', 'nestedValidation'];
    const unbounded: string[] = [];
    const { validationMetadatas } = getMetadataStorage() as unknown as {
      validationMetadatas: Map<
        { name: string },
        { propertyName: string; name?: string; type: string; each: boolean }[]
      >;
    };
    for (const [type, checks] of validationMetadatas)
      for (const { propertyName, name, type: kind, each } of checks)
        if (
          (each || walked.includes(name ?? kind)) &&
          checks.some((one) => one.propertyName === propertyName && one.name === 'isArray') &&
          !checks.some((one) => one.propertyName === propertyName && one.name === 'arrayMaxSize')
        )
          unbounded.push(`${type.name}.${propertyName}`);
    expect([...new Set(unbounded)]).toEqual([]);
    expect(validationMetadatas.size).toBeGreaterThan(20);
  });
});

describe('who is it, before what does he say', () => {
  it('every route that needs a key asks for it before there is a body', async () => {
    const asked = app.app.routes.filter(({ method }) => ['POST', 'PUT', 'PATCH'].includes(method));
    const open: string[] = [];
    for (const { method, url } of asked) {
      const path = url.replace(/:\w+/g, '1').replace('*', 'x');
      const line = await Line.open();
      // Not a byte of it is ever sent: whoever waits for it does not answer.
      line.say(`${method} ${path} HTTP/1.1\ncontent-type: application/json\ncontent-length: 1000000`);
      const status = await line.status();
      line.socket.destroy();
      if (status !== 401) open.push(`${url} ${status}`);
    }
    expect(open).toEqual(['/chat/oauth/token 413']);
    expect(asked.length).toBeGreaterThan(30);
  });

  it('a key without the scope is refused before there is a body, too, and a path that is none', async () => {
    const key = await ask(
      app.url,
      'POST',
      `/api/admin/tenants/${rival.id}/api-keys`,
      { name: 'usage', scopes: ['usage'] },
      { 'x-api-key': ROOT_KEY },
    );
    const { key: narrow } = key.body as { key: string };
    for (const [path, status] of [
      ['/api/v1/im/messages', 403],
      ['/api/admin/assistants', 403],
      ['/nowhere', 404],
    ]) {
      const line = await Line.open();
      line.say(
        `POST ${path} HTTP/1.1\nx-api-key: ${narrow}\ncontent-type: application/json\ncontent-length: 900`,
      );
      expect([path, await line.status()]).toEqual([path, status]);
      line.socket.destroy();
    }
  });

  it('who is refused while he speaks gets to read why, and the connection goes on', async () => {
    const line = await Line.open();
    const head = 'POST /api/v1/im/messages HTTP/1.1\ncontent-type: application/json\ncontent-length: 300000';
    line.say(head, 'x'.repeat(300_000));
    expect(await line.status()).toBe(401);
    expect(line.text).toContain('UNAUTHENTICATED');
    line.text = '';
    line.say('GET /health HTTP/1.1');
    expect(await line.status()).toBe(200);
    line.socket.destroy();
  });

  it('of a stranger 16 KiB are taken, here as many as are configured', async () => {
    const body = (size: number): string => JSON.stringify({ appKey: 'x'.repeat(size - 13) });
    expect(body(BODY)).toHaveLength(BODY);
    expect((await ask(app.url, 'POST', '/chat/oauth/token', body(BODY))).status).toBe(400);
    const past = await ask(app.url, 'POST', '/chat/oauth/token', body(BODY + 1));
    expect([past.status, past.body.code]).toEqual([413, 1001]);
  });
});

describe('bodies under way', () => {
  it('a stranger’s that trickles is ended, with an answer', async () => {
    const line = await Line.open();
    line.say(`${TOKEN}\ncontent-length: 1000`, '{"appKey":');
    expect(await line.status()).toBe(408);
    expect(line.text).toContain('{"code":1000,"msg":"The request body did not arrive in time."}');
    await line.ended();
  });

  it('so is one of who showed a key, when it comes too slowly', async () => {
    const line = await Line.open();
    line.say(
      `POST /v1/chat/completions HTTP/1.1\nauthorization: Bearer ${acme.apiKey}\ncontent-type: application/json\ncontent-length: 1000`,
      '{"model":',
    );
    expect(await line.status()).toBe(408);
    expect(line.text).toContain('did not arrive in time');
    await line.ended();
  });

  it('of strangers no more than so many of an address and in all', async () => {
    const waiting = await Promise.all(['127.0.0.1', '127.0.0.1', '127.0.0.2'].map((from) => Line.open(from)));
    for (const line of waiting) line.say(`${TOKEN}\ncontent-length: 1000`, '{');
    // Each is asked for until the three before are counted.
    await eventually(async () => (await tokenFrom('127.0.0.1')).startsWith('429'));
    await eventually(async () => (await tokenFrom('127.0.0.3')).startsWith('503'));
    expect((await acme.get('/api/copywriting/dialogue/list')).status).toBe(200);
    for (const line of waiting) line.socket.destroy();
    await eventually(async () => (await tokenFrom('127.0.0.1')).startsWith('400'));
  });

  async function tokenFrom(address: string): Promise<string> {
    const line = await Line.open(address);
    line.say(`${TOKEN}\ncontent-length: 2`, '{}');
    const status = await line.status();
    if (status === 429 || status === 503) expect(line.text).toContain('retry-after: 1');
    line.socket.destroy();
    return String(status);
  }
});

describe('connections of strangers', () => {
  it('of one address, and in all; who showed a key or a token is none', async () => {
    const lines: AnyLine[] = [];
    const fill = async (address: string, count: number) => {
      for (let i = 0; i < count; i += 1) lines.push(await Line.open(address));
    };
    const own = await Line.open();
    own.say(`GET /api/copywriting/dialogue/list HTTP/1.1\nx-api-key: ${acme.apiKey}`);
    expect(await own.status()).toBe(200);
    await fill('127.0.0.1', 8);
    const excess = await Line.open();
    expect(await excess.status()).toBe(429);
    expect(excess.text).toContain('retry-after: 1');
    expect(excess.text).toContain('"code":"RATE_LIMITED"');
    await excess.ended();
    // The same port, the same count: a handshake is a stranger's until its token was good.
    const handshake = await Line.open();
    expect(await handshake.status()).toBe(429);
    await fill('127.0.0.2', 4);
    const past = await Line.open('127.0.0.3');
    expect(await past.status()).toBe(503);
    expect(past.text).toContain('"code":"OVERLOADED"');
    own.text = '';
    own.say('GET /health HTTP/1.1');
    expect(await own.status()).toBe(200);
    // One of them shows a key, and makes room.
    lines[0]!.say(`GET /api/copywriting/dialogue/list HTTP/1.1\nx-api-key: ${rival.apiKey}`);
    expect(await lines[0]!.status()).toBe(200);
    const next = await Line.open('127.0.0.3');
    next.say('GET /health HTTP/1.1');
    expect(await next.status()).toBe(200);
    for (const line of [...lines, own, next]) line.socket.destroy();
    await eventually(async () => (await acme.get('/api/copywriting/dialogue/list')).status === 200);
  });

  it('a refused handshake’s is closed, whether its client closes it or not', async () => {
    const line = await Line.open();
    line.say(
      'GET /chat?token=none HTTP/1.1\nconnection: upgrade\nupgrade: websocket\nsec-websocket-version: 13\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==',
    );
    expect(await line.status()).toBe(401);
    await line.ended();
  });
});
