import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { WebSocket } from 'ws';
import { readProxyHeaders } from '../../src/common/http';
import { ask, bootApp, type TestApp, type TestTenant } from '../support/app';
import { imToken } from '../support/im';
import { lifeOf } from '../support/socket-life';

/** "In front of it" of docs/operations.md: whose address counts, by `x-forwarded-for` and by the PROXY protocol. */
const CLIENT = '203.0.113.9';
const OTHER = '198.51.100.4';

async function keyFor(
  tenant: TestTenant,
  app: TestApp,
  allowedAddresses: string[],
): Promise<Record<string, string>> {
  const path = `/api/admin/tenants/${tenant.id}/api-keys`;
  const made = await ask(
    app.url,
    'POST',
    path,
    { name: 'narrow', scopes: ['admin', 'dialogue', 'im'], allowedAddresses },
    { 'x-api-key': app.rootKey },
  );
  return { 'x-api-key': (made.body as { key: string }).key };
}

/** The address in the newest entry of the tenant's audit log, after a change that came with `headers`. */
async function audited(app: TestApp, tenant: TestTenant, headers: Record<string, string>): Promise<string> {
  const own = { 'x-api-key': tenant.apiKey };
  await ask(
    app.url,
    'PATCH',
    `/api/admin/assistants/${tenant.assistantId}`,
    { name: 'Main' },
    { ...own, ...headers },
  );
  const log = (await tenant.get('/api/admin/audit-log?limit=1')).body as { data: { address: string }[] };
  return log.data[0]!.address;
}

/** The origin of the address that an image made with these headers has. */
async function imageOrigin(
  tenant: TestTenant,
  appId: string,
  headers: Record<string, string>,
): Promise<string> {
  const path = `/api/copywriting/userCopywriting/${appId}`;
  const { body } = await tenant.post(path, { params: { what: 'rose' } }, headers);
  const { url } = (body as { data: { images: { url: string }[] } }).data.images[0]!;
  return url.slice(0, url.indexOf('/', 'https://'.length));
}

async function paintingApp(tenant: TestTenant): Promise<string> {
  const service = await tenant.post('/api/admin/model-services', {
    name: 'painter',
    model: 'echo',
    type: 1,
    providerId: tenant.providerId,
  });
  const made = await tenant.post('/api/admin/generation-apps', {
    name: 'Picture',
    type: 1,
    promptTemplate: 'A {{what}}',
    variables: [{ name: 'what', type: 'text', required: true }],
    modelServiceId: (service.body as { id: string }).id,
  });
  return (made.body as { id: string }).id;
}

const handshake = (url: string, token: string, headers: Record<string, string>) => {
  const ws = new WebSocket(`${url.replace('http', 'ws')}/chat?token=${token}`, { headers });
  return { ws, ...lifeOf(ws, () => undefined) };
};

describe('without TRUST_PROXY', () => {
  let app: TestApp;
  let acme: TestTenant;
  beforeAll(async () => {
    app = await bootApp();
    acme = await app.tenant();
  });
  afterAll(() => app.close());

  it('nothing that a header says of a client is believed', async () => {
    const key = await keyFor(acme, app, [CLIENT]);
    const path = '/api/admin/assistants';
    expect((await ask(app.url, 'GET', path, undefined, { ...key, 'x-forwarded-for': CLIENT })).status).toBe(
      401,
    );
    expect(await audited(app, acme, { 'x-forwarded-for': CLIENT })).toBe('127.0.0.1');
    const asked = { 'x-forwarded-proto': 'https', 'x-forwarded-host': 'evil.example' };
    expect(await imageOrigin(acme, await paintingApp(acme), asked)).toBe(app.url);
  });
});

describe('with TRUST_PROXY', () => {
  let app: TestApp;
  let acme: TestTenant;
  let rival: TestTenant;
  beforeAll(async () => {
    app = await bootApp({ TRUST_PROXY: '127.0.0.1,10.0.0.0/8', IM_CONNECTIONS_PER_ADDRESS: '1' });
    [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
  });
  afterAll(() => app.close());

  it("a key's allow-list and the audit log see the client, not the proxy", async () => {
    const key = await keyFor(acme, app, [CLIENT]);
    const status = async (forwarded?: string): Promise<number> => {
      const headers = { ...key, ...(forwarded !== undefined && { 'x-forwarded-for': forwarded }) };
      return (await ask(app.url, 'GET', '/api/admin/assistants', undefined, headers)).status;
    };
    expect(await status(CLIENT)).toBe(200);
    expect(await status(`${CLIENT}, 10.1.1.1`)).toBe(200);
    expect(await status()).toBe(401);
    expect(await status(OTHER)).toBe(401);
    // Whoever writes the header himself has his own address added by the proxy.
    expect(await status(`${CLIENT}, ${OTHER}`)).toBe(401);
    expect(await status(`${CLIENT}, rubbish`)).toBe(401);

    expect(await audited(app, acme, { 'x-forwarded-for': `${OTHER}, ${CLIENT}` })).toBe(CLIENT);
    expect(await audited(app, rival, { 'x-forwarded-for': 'rubbish' })).toBe('127.0.0.1');
  });

  it('connections are counted by the client, also on the sockets', async () => {
    const token = await imToken(app.url, acme, 1);
    const from = (address: string) => handshake(app.url, token, { 'x-forwarded-for': address });
    const first = from(CLIENT);
    await first.opened;
    expect((await from(`${OTHER}, ${CLIENT}`).refused).status).toBe(429);
    const other = from(OTHER);
    await other.opened;
    for (const { ws, closed } of [first, other]) {
      ws.close();
      await closed;
    }
  });

  it('a stranger who comes past the proxy is believed nothing', async () => {
    const key = await keyFor(acme, app, [CLIENT]);
    const answer = await raw(app.url, '127.0.0.2', '', { ...key, 'x-forwarded-for': CLIENT });
    expect(answer.status).toBe(401);
  });

  it("the addresses of images are the proxy's, where it says something that is one", async () => {
    const appId = await paintingApp(acme);
    const origin = (headers: Record<string, string>) => imageOrigin(acme, appId, headers);
    const host = 'chat.example';
    expect(await origin({ 'x-forwarded-proto': 'https', 'x-forwarded-host': host })).toBe(`https://${host}`);
    expect(await origin({ 'x-forwarded-proto': 'https' })).toBe(app.url.replace('http', 'https'));
    expect(await origin({ 'x-forwarded-host': 'chat.example:8443' })).toBe('http://chat.example:8443');
    expect(await origin({ 'x-forwarded-proto': 'javascript', 'x-forwarded-host': 'a"b' })).toBe(app.url);
  });
});

/** One GET over a connection that begins with `head`, its source being `localAddress`; status 0 when it just ends. */
async function raw(
  url: string,
  localAddress: string,
  head: string | Buffer,
  headers: Record<string, string>,
): Promise<{ status: number; socket: Socket }> {
  const { port } = new URL(url);
  const socket = connect({ host: '127.0.0.1', port: Number(port), localAddress });
  const lines = Object.entries({ host: 'parley.test', connection: 'close', ...headers });
  const request = `GET /api/admin/assistants HTTP/1.1\r\n${lines.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`;
  socket.write(Buffer.concat([Buffer.from(head as string), Buffer.from(request)]));
  let text = '';
  socket.setEncoding('utf8').on('data', (part: string) => (text += part));
  socket.on('error', () => undefined);
  await new Promise((resolve) => socket.once('close', resolve));
  return { status: Number(/^HTTP\/1\.1 (\d+)/.exec(text)?.[1] ?? 0), socket };
}

const v1 = (address: string): string => `PROXY TCP4 ${address} 127.0.0.1 4711 80\r\n`;
const v2 = (address: string): Buffer =>
  Buffer.concat([
    Buffer.from('\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c', 'latin1'),
    Buffer.from([...address.split('.').map(Number), 127, 0, 0, 1, 18, 103, 0, 80]),
  ]);

describe('with PROXY_PROTOCOL=on', () => {
  let app: TestApp;
  let acme: TestTenant;
  let rival: TestTenant;
  let key: Record<string, string>;
  beforeAll(async () => {
    // The tests' own client is 127.0.0.1 and no proxy here; 127.0.0.2 is one.
    app = await bootApp({ TRUST_PROXY: '127.0.0.2', PROXY_PROTOCOL: 'on' });
    [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
    key = await keyFor(acme, app, [CLIENT]);
  });
  afterAll(() => app.close());

  it("what the proxy says is the connection's address, by version 1 and 2", async () => {
    for (const head of [v1, v2]) {
      expect((await raw(app.url, '127.0.0.2', head(CLIENT), key)).status).toBe(200);
      expect((await raw(app.url, '127.0.0.2', head(OTHER), key)).status).toBe(401);
      // Of a client nothing more is believed.
      expect(
        (await raw(app.url, '127.0.0.2', head(OTHER), { ...key, 'x-forwarded-for': CLIENT })).status,
      ).toBe(401);
      const rivals = await keyFor(rival, app, [OTHER]);
      expect((await raw(app.url, '127.0.0.2', head(CLIENT), rivals)).status).toBe(401);
    }
  });

  it('a proxy behind the proxy is believed in its turn', async () => {
    const forwarded = { ...key, 'x-forwarded-for': CLIENT };
    expect((await raw(app.url, '127.0.0.2', v1('127.0.0.2'), forwarded)).status).toBe(200);
  });

  it('a health check of the proxy itself comes through', async () => {
    const local = Buffer.from('\r\n\r\n\0\r\nQUIT\n\x20\0\0\0', 'latin1');
    expect((await raw(app.url, '127.0.0.2', local, { 'x-api-key': acme.apiKey })).status).toBe(200);
    expect((await raw(app.url, '127.0.0.2', 'PROXY UNKNOWN\r\n', { 'x-api-key': acme.apiKey })).status).toBe(
      200,
    );
  });

  it('a proxy that sends none is cut off, a stranger who sends one too', async () => {
    expect((await raw(app.url, '127.0.0.2', '', { 'x-api-key': acme.apiKey })).status).toBe(0);
    expect((await raw(app.url, '127.0.0.1', v1(CLIENT), key)).status).toBe(400);
    expect((await raw(app.url, '127.0.0.1', '', { 'x-api-key': acme.apiKey })).status).toBe(200);
  });

  it('a header may come in pieces, and a body after it', async () => {
    const { port } = new URL(app.url);
    const socket = connect({ host: '127.0.0.1', port: Number(port), localAddress: '127.0.0.2' });
    socket.setNoDelay(true);
    const sent = (bytes: Buffer): Promise<void> => new Promise((done) => socket.write(bytes, () => done()));
    const body = JSON.stringify({ name: 'x'.repeat(50_000) });
    const request =
      `POST /api/admin/assistants HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: ${key['x-api-key']}\r\n` +
      `content-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
    const whole = Buffer.concat([v2(CLIENT), Buffer.from(request)]);
    for (let at = 0; at < 40; at += 1) await sent(whole.subarray(at, at + 1));
    await sent(whole.subarray(40));
    let text = '';
    for await (const part of socket.setEncoding('utf8')) text += part as string;
    // It was read to its end and found too long a name.
    expect(text).toMatch(/^HTTP\/1\.1 400 .*"name/s);
  });

  it('WebSockets come through, and are their clients’', async () => {
    const token = await imToken(app.url, acme, 1);
    const { port } = new URL(app.url);
    const ws = new WebSocket(`ws://127.0.0.1:${port}/chat?token=${token}`, {
      headers: key,
      createConnection: () => {
        const socket = connect({ host: '127.0.0.1', port: Number(port), localAddress: '127.0.0.2' });
        socket.write(v2(CLIENT));
        return socket;
      },
    });
    const life = lifeOf(ws, () => undefined);
    await life.opened;
    ws.close();
    await life.closed;
  });
});

it('a stop does not wait for a proxy that owes its header', async () => {
  const app = await bootApp({ TRUST_PROXY: '127.0.0.2', PROXY_PROTOCOL: 'on' });
  const { port } = new URL(app.url);
  const socket = connect({ host: '127.0.0.1', port: Number(port), localAddress: '127.0.0.2' });
  await new Promise((resolve) => socket.once('connect', resolve));
  socket.write('PRO');
  const closed = new Promise((resolve) => socket.on('error', () => undefined).once('close', resolve));
  await app.close();
  await closed;
});

it('a proxy that owes its header is waited for, but not for ever', async () => {
  const server = createServer();
  const told: unknown[] = [];
  const admitted: Socket[] = [];
  server.on('connection', (socket) => admitted.push(socket));
  readProxyHeaders(server, { trusts: () => true, timeoutMs: 30, refused: (...why) => told.push(why) });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const socket = connect((server.address() as AddressInfo).port, '127.0.0.1');
  socket.on('error', () => undefined).write('PROXY TCP4 ');
  await new Promise((resolve) => socket.once('close', resolve));
  expect(told).toEqual([['127.0.0.1', 'no PROXY header came within 30 ms']]);
  expect(admitted).toEqual([]);
  await new Promise((resolve) => server.close(resolve));
});
