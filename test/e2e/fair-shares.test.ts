import { request } from 'node:http';
import { connect } from 'node:net';
import { Client } from 'pg';
import { Config } from '../../src/config';
import { FairShares } from '../../src/fairness';
import { ask, bootApp, eventually, says, SseClient, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { Im } from '../support/im-rest';
import { gate, Upstream } from '../support/upstream';

const LARGE_BYTES = 40_000;

let upstream: Upstream;
let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;
let im: Im;

const counts = () => app.app.nest.get(FairShares).counts;

beforeAll(async () => {
  upstream = await Upstream.start();
  app = await bootApp({
    TENANT_MAX_REQUESTS: '3',
    TENANT_REQUESTS_AT_WORK: '1',
    TENANT_LARGE_BODY_BYTES_PER_SECOND: String(LARGE_BYTES),
  });
  const settings = { baseUrl: upstream.url, model: 'held' };
  [acme, rival] = await Promise.all([app.tenant(settings), app.tenant(settings)]);
  im = new Im(app.url, acme.apiKey);
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

const completion = { model: 'main', messages: [{ role: 'user', content: 'hello' }] };
const conversationsOf = (tenant: TestTenant) => tenant.get('/api/v1/im/conversations?userId=ann');

/** Of `tenant`, so many requests that wait for a provider until they are let go. */
async function held(tenant: TestTenant, count: number): Promise<() => Promise<number[]>> {
  const { opened, open } = gate();
  const before = upstream.seen('held').length;
  upstream.on('held', async (exchange) => {
    await opened;
    await exchange.piece('there you are');
    await exchange.done();
  });
  const answers = Array.from({ length: count }, () => tenant.post('/v1/chat/completions', completion));
  await eventually(async () => upstream.seen('held').length === before + count);
  return async () => {
    open();
    return (await Promise.all(answers)).map(({ status }) => status);
  };
}

describe('a tenant that has as many requests under way as it may', () => {
  it("is refused on every wire in that wire's shape, with retry-after, and nobody else is", async () => {
    const letGo = await held(acme, 3);
    const message = 'This tenant has 3 requests under way; come back when some are answered.';
    const [rest, admin, openAi, platform, agents] = await Promise.all([
      conversationsOf(acme),
      acme.get('/api/admin/assistants'),
      acme.post('/v1/chat/completions', completion),
      acme.get('/api/copywriting/dialogue/list'),
      acme.get('/api/v1/sessions'),
    ]);
    for (const { status, headers } of [rest, admin, openAi, platform, agents]) {
      expect(status).toBe(429);
      expect(headers['retry-after']).toBe('1');
    }
    expect(rest.body).toEqual({ error: message, code: 'RATE_LIMITED' });
    expect(admin.headers['content-type']).toMatch(/^application\/problem\+json/);
    expect(admin.body).toMatchObject({ title: 'RATE_LIMITED', status: 429, detail: message });
    expect(openAi.body).toEqual({
      error: { message, type: 'rate_limit_error', param: null, code: 'rate_limit_exceeded' },
    });
    expect(openAi.headers['x-should-retry']).toBe('true');
    expect(platform.body).toEqual({ code: 429, msg: message });
    expect(agents.body).toEqual({ error: message });
    expect((await conversationsOf(rival)).status).toBe(200);
    expect(await letGo()).toEqual([200, 200, 200]);
    await eventually(async () => (await conversationsOf(acme)).status === 200);
  });

  it('has room for more when its replies stream', async () => {
    const { opened, open } = gate();
    upstream.on('held', async (exchange) => {
      await exchange.piece('one');
      await opened;
      await exchange.done();
    });
    const streams: SseClient[] = [];
    for (let n = 0; n < 4; n += 1) streams.push(await acme.send(says('hello')));
    for (const stream of streams) await stream.has(2);
    expect((await conversationsOf(acme)).status).toBe(200);
    open();
    for (const stream of streams) expect((await stream.end()).at(-1)!.data).toMatchObject({ isEnd: true });
  });
});

describe('a tenant whose requests wait for the database', () => {
  let lock: Client;

  /** The group is locked: whoever wants in has to wait. */
  beforeEach(async () => {
    await conversationsOf(rival);
    await im.post('/groups', { groupId: 'g1' });
    lock = new Client({ connectionString: app.databaseUrl });
    await lock.connect();
    await lock.query('begin');
    await lock.query(`select id from conversations where tenant_id = $1 and kind = 'group' for update`, [
      acme.id,
    ]);
  });
  afterEach(() => lock.end());

  it('lets others through, and has its own done in the end', async () => {
    const adding = ['ann', 'bob', 'cid'].map((user) => im.post('/groups/g1/members', { users: [user] }));
    await eventually(async () => counts().waiting > 0);
    // Its own next request is refused, another tenant's is answered.
    const refused = im.post('/groups/g1/members', { users: ['dan'] });
    expect((await conversationsOf(rival)).status).toBe(200);
    expect((await refused).status).toBe(429);
    await lock.query('rollback');
    expect((await Promise.all(adding)).map(({ status }) => status)).toEqual([200, 200, 200]);
    await eventually(async () => counts().atWork === 0 && counts().waiting === 0);
    expect((await im.get('/groups/g1')).body).toMatchObject({ memberCount: 3 });
    expect((await rival.get('/api/v1/im/groups/g1')).status).toBe(404);
  });

  it('a client that leaves the queue has nothing done', async () => {
    await im.post('/groups', { groupId: 'g2' });
    const first = im.post('/groups/g1/members', { users: ['eve'] });
    await eventually(async () => counts().atWork === 1);
    const leaving = request(`${app.url}/api/v1/im/groups/g2/members`, {
      method: 'POST',
      headers: { 'x-api-key': acme.apiKey, 'content-type': 'application/json' },
    }).on('error', () => undefined);
    leaving.end(JSON.stringify({ users: ['left'] }));
    await eventually(async () => counts().waiting === 1);
    leaving.destroy();
    await eventually(async () => counts().waiting === 0);
    await lock.query('rollback');
    expect((await first).status).toBe(200);
    expect((await im.get('/groups/g2')).body).toMatchObject({ memberCount: 0 });
    const rows = await query(app.databaseUrl, `select 1 from conversation_members where user_id = 'left'`);
    expect(rows).toEqual([]);
  });
});

describe('large bodies', () => {
  const body = (length: number) => ({
    type: 'single',
    source: 'ann',
    target: 'bob',
    msg: { content: 'x'.repeat(length) },
  });

  it('past the bytes a second are refused before they are read, until those are there; small ones and others are not', async () => {
    await conversationsOf(rival);
    const post = (tenant: TestTenant, length: number) => tenant.post('/api/v1/im/messages', body(length));
    // Each takes all that is there: but for the first one there is nothing left, however fast they are.
    const answers = await Promise.all([1, 2, 3].map(() => post(acme, LARGE_BYTES)));
    const refused = answers.find(({ status }) => status === 429)!;
    expect(refused.body).toEqual({
      error: `This tenant sends more than ${LARGE_BYTES} bytes a second in bodies over 16384 bytes; come back later.`,
      code: 'RATE_LIMITED',
    });
    expect(Number(refused.headers['retry-after'])).toBeGreaterThanOrEqual(1);
    expect(answers.some(({ status }) => status === 200)).toBe(true);
    expect((await post(acme, 100)).status).toBe(200);
    expect((await post(rival, LARGE_BYTES)).status).toBe(200);
    await eventually(async () => (await post(acme, LARGE_BYTES)).status === 200);
  });

  it('that are over the limit anyway do not count: they are not read', async () => {
    await conversationsOf(rival);
    const over = 'x'.repeat(app.app.nest.get(Config).env.BODY_LIMIT_BYTES + 1);
    await eventually(
      async () => (await acme.post('/api/v1/im/messages', body(LARGE_BYTES / 2))).status === 200,
    );
    for (let n = 0; n < 2; n += 1) expect((await acme.post('/api/v1/im/messages', over)).status).toBe(413);
  });

  it('in chunks that come with their head count as well, and are refused before they are parsed', async () => {
    await conversationsOf(rival);
    await eventually(async () => {
      const one = await acme.post('/api/v1/im/messages', body(LARGE_BYTES / 2));
      return one.status === 200;
    });
    // No JSON: whoever parses it says 400.
    const text = 'x'.repeat(LARGE_BYTES);
    const chunked = (tenant: TestTenant): Promise<number> =>
      new Promise((resolve, reject) => {
        const { port, hostname } = new URL(app.url);
        const socket = connect({ port: Number(port), host: hostname });
        const head = `POST /api/v1/im/messages HTTP/1.1\r\nhost: x\r\nx-api-key: ${tenant.apiKey}\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n`;
        socket.once('error', reject).once('data', (answer) => {
          socket.destroy();
          resolve(Number(answer.toString().split(' ')[1]));
        });
        // In one write.
        socket.write(`${head}${text.length.toString(16)}\r\n${text}\r\n0\r\n\r\n`);
      });
    const statuses: number[] = [];
    for (let n = 0; n < 3; n += 1) statuses.push(await chunked(acme));
    expect(statuses).toContain(429);
    expect(await chunked(rival)).toBe(400);
    await eventually(async () => (await chunked(acme)) === 400);
    // Beside each other, and small ones are let in all the same as soon as it is known that they are.
    const beside = await Promise.all([1, 2, 3].map(() => chunked(acme)));
    expect(beside).toContain(429);
  });

  it('count also when they come in chunks', async () => {
    await conversationsOf(rival);
    const chunked = (length: number): Promise<number> =>
      new Promise((resolve, reject) => {
        const outgoing = request(`${app.url}/api/v1/im/messages`, {
          method: 'POST',
          headers: { 'x-api-key': acme.apiKey, 'content-type': 'application/json' },
        });
        outgoing.once('error', reject).once('response', (response) => {
          response.resume();
          resolve(response.statusCode!);
        });
        // The head first, so that the body comes after it.
        outgoing.flushHeaders();
        const text = JSON.stringify(body(length));
        for (let at = 0; at < text.length; at += 10_000) outgoing.write(text.slice(at, at + 10_000));
        outgoing.end();
      });
    await eventually(async () => (await chunked(3 * LARGE_BYTES)) === 400);
    await eventually(async () => (await chunked(3 * LARGE_BYTES)) === 429);
    expect((await ask(app.url, 'GET', '/health')).status).toBe(200);
  });
});
