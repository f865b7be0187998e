import { bootApp, eventually, says, type SseClient, type TestApp, type TestTenant } from '../support/app';
import { gate, Upstream } from '../support/upstream';

/** Of the replies that a process writes at once, some are always left for others. */
let upstream: Upstream;
let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;

const completion = { model: 'main', messages: [{ role: 'user', content: 'hello' }] };
const MESSAGE =
  'This tenant has 2 replies under way, as many as one tenant may; come back when some have ended.';

beforeAll(async () => {
  upstream = await Upstream.start();
  app = await bootApp({ MAX_CONCURRENT_REPLIES: '3' });
  [acme, rival] = await Promise.all([
    app.tenant({ baseUrl: upstream.url, model: 'endless' }),
    app.tenant({ baseUrl: upstream.url, model: 'endless' }),
  ]);
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

function endless(): () => void {
  const { opened, open } = gate();
  upstream.on('endless', async (exchange) => {
    await exchange.piece('well …');
    await opened;
    await exchange.done();
  });
  return open;
}

it("a tenant's endless replies leave room for others, whose one too many is the process's", async () => {
  const open = endless();
  const streams: SseClient[] = [];
  for (let n = 0; n < 2; n += 1) streams.push(await acme.send(says('hello')));
  for (const stream of streams) await stream.has(2);
  // Whatever it asks for, on whatever wire.
  const app1 = await acme.post('/api/admin/generation-apps', {
    name: 'Poem',
    type: 0,
    promptTemplate: 'Write',
    variables: [],
    modelServiceId: acme.serviceId,
  });
  const refused = await Promise.all([
    acme.post('/v1/chat/completions', completion),
    acme.post('/v1/chat/completions', { ...completion, sessionId: 's1' }),
    acme.post(`/api/copywriting/dialogue/sse/send-message/${acme.versionId}`, says('hello')),
    acme.post(`/api/copywriting/userCopywriting/${app1.body.id as string}`, { params: {} }),
  ]);
  for (const { status, headers, text } of refused) {
    expect([status, headers['retry-after']]).toEqual([429, '1']);
    expect(text).toContain(MESSAGE);
  }
  expect(refused[0].body).toMatchObject({ error: { code: 'rate_limit_exceeded' } });

  const stream = await rival.send(says('hello'));
  await stream.has(2);
  const full = await rival.post('/v1/chat/completions', completion);
  expect([full.status, full.headers['retry-after']]).toEqual([503, '1']);

  open();
  for (const one of [...streams, stream])
    expect((await one.end()).at(-1)!.data).toMatchObject({ isEnd: true });
  await eventually(async () => (await acme.post('/v1/chat/completions', completion)).status === 200);
});

it('what ended in any way gives its place back', async () => {
  endless()();
  const unknown = { ...completion, model: 'nobody' };
  for (let n = 0; n < 4; n += 1) {
    expect((await acme.post('/v1/chat/completions', completion)).status).toBe(200);
    expect((await acme.post('/v1/chat/completions', unknown)).status).toBe(404);
    // Refused before anything was stored.
    const foreign = { ...says('hello'), modelServiceId: rival.serviceId };
    const path = `/api/copywriting/dialogue/sse/send-message/${rival.versionId}`;
    expect((await acme.post(path, foreign)).status).toBeGreaterThanOrEqual(400);
  }
  upstream.on('endless', (exchange) => exchange.fail(500, '{}'));
  for (let n = 0; n < 3; n += 1)
    expect((await acme.post('/v1/chat/completions', completion)).status).toBe(502);
  endless()();
  expect((await acme.post('/v1/chat/completions', completion)).status).toBe(200);
});

it('the operator says how many are of one tenant', async () => {
  const narrow = await bootApp({ MAX_CONCURRENT_REPLIES: '10', TENANT_MAX_REPLIES: '1' });
  try {
    const open = endless();
    const tenant = await narrow.tenant({ baseUrl: upstream.url, model: 'endless' });
    const stream = await tenant.send(says('hello'));
    await stream.has(2);
    expect((await tenant.post('/v1/chat/completions', completion)).status).toBe(429);
    open();
    await stream.end();
  } finally {
    await narrow.close();
  }
});
