import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { ask, bootApp, eventually, says, type TestApp } from '../support/app';
import { freshDatabase, query } from '../support/database';
import { gate, Upstream } from '../support/upstream';

/** The way to Postgres, which a test can cut and mend: to the application it is a server that stopped and started. */
class Line {
  private readonly sockets = new Set<Socket>();
  private server: Server | undefined;
  private port = 0;

  constructor(private readonly target: URL) {}

  async up(): Promise<string> {
    this.server = createServer((socket) => {
      const onward = connect(Number(this.target.port), this.target.hostname);
      for (const [from, to] of [
        [socket, onward],
        [onward, socket],
      ] as const) {
        this.sockets.add(from);
        from.pipe(to);
        from.on('error', () => to.destroy()).on('close', () => to.destroy());
      }
    });
    await new Promise<void>((resolve) => this.server!.listen(this.port, '127.0.0.1', resolve));
    this.port = (this.server.address() as AddressInfo).port;
    const url = new URL(this.target);
    url.port = String(this.port);
    return url.toString();
  }

  async down(): Promise<void> {
    const closed = new Promise((resolve) => this.server!.close(resolve));
    for (const socket of this.sockets) socket.destroy();
    this.sockets.clear();
    await closed;
  }
}

let app: TestApp;
let line: Line;
let upstream: Upstream;
let database: Awaited<ReturnType<typeof freshDatabase>>;

beforeAll(async () => {
  [upstream, database] = await Promise.all([Upstream.start(), freshDatabase()]);
  line = new Line(new URL(database.url));
  app = await bootApp({ LOG_LEVEL: 'silent' }, await line.up());
});
afterAll(async () => {
  await app.close();
  await database.drop();
  await upstream.close();
});

it('requests fail clearly meanwhile, replies in progress are not lost, the service recovers by itself', async () => {
  const { opened, open } = gate();
  upstream.on('echo', async (exchange) => {
    await exchange.piece('before, ');
    await opened;
    await exchange.piece('during');
    await exchange.done();
  });
  const [acme, rival] = await Promise.all([
    app.tenant({ baseUrl: upstream.url }),
    app.tenant({ baseUrl: upstream.url }),
  ]);
  const client = await acme.send(says('hold on'));
  await client.has(2);

  await line.down();
  const refused = await acme.post(`/copywriting/dialogue/sse/send-message/${acme.versionId}`, says('x'));
  expect(refused.body).toMatchObject({ code: 503, msg: expect.stringContaining('database') as unknown });
  expect(refused.headers['retry-after']).toBe('1');
  expect((await rival.get('/api/admin/assistants')).body).toMatchObject({
    title: 'STORAGE_UNAVAILABLE',
    status: 503,
  });
  expect((await ask(app.url, 'GET', '/health')).status).toBe(200);
  expect((await ask(app.url, 'GET', '/health/ready')).status).toBe(503);
  // The reply goes on for its reader; its end waits, because it is told only once it is stored.
  open();
  await client.has(3);
  expect(client.text).toBe('before, during');
  // Keys are known from before: a wrong one is still told from a right one.
  expect(
    (await ask(app.url, 'GET', '/copywriting/dialogue/list', undefined, { 'x-api-key': `${acme.apiKey}x` }))
      .status,
  ).toBe(401);

  await line.up();
  await client.end();
  expect(client.last).toMatchObject({ status: 'finished', totalTokens: 12 });
  await eventually(async () => (await ask(app.url, 'GET', '/health/ready')).status === 200);
  const stored = await query(database.url, 'select content, status from dialogue_messages where id = $1', [
    client.last.messageId,
  ]);
  expect(stored).toEqual([{ content: 'before, during', status: 'finished' }]);
  expect(await query(database.url, 'select 1 from usage_ledger')).toHaveLength(1);
  const next = await acme.send(says('and on', { id: client.record.id as string }));
  await next.end();
  expect(next.last).toMatchObject({ status: 'finished' });
  expect(await query(database.url, `select 1 from dialogue_messages where status = 'streaming'`)).toEqual([]);
}, 60_000);
