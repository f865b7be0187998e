import { bootApp, SseClient, says, type TestApp, type TestTenant } from '../support/app';
import { open as openChannel, refusal as channelRefusal } from '../support/channel';
import { device, imToken, refusal, single } from '../support/im';
import { gate, Upstream } from '../support/upstream';

let app: TestApp;
let upstream: Upstream;
let acme: TestTenant;
let rival: TestTenant;

beforeAll(async () => {
  [app, upstream] = await Promise.all([bootApp({ DRAIN_TIMEOUT_MS: '60000' }), Upstream.start()]);
  [acme, rival] = await Promise.all([
    app.tenant({ baseUrl: upstream.url, model: 'slow' }),
    app.tenant({ baseUrl: upstream.url, model: 'slow' }),
  ]);
});
afterAll(() => upstream.close());

it('takes no new work from the signal on, whatever is still being written, and lets that end', async () => {
  const { opened, open } = gate();
  upstream.on('slow', async (exchange) => {
    await exchange.piece('begun ');
    await opened;
    await exchange.piece('ended');
    await exchange.done();
  });
  const token = await imToken(app.url, acme, 'ann');
  const [ann, foreign] = await Promise.all([
    device(app, acme, 'ann', { rich: true }),
    device(app, rival, 'ann', { rich: true }),
  ]);
  const channel = await openChannel(app.url, { key: acme.apiKey });
  const reply = await acme.send(says('x'));
  await reply.has(2);

  // As the signal does: nothing is waited for here.
  const stopped = app.app.close();

  for (const refused of [
    await refusal(app.url, token),
    await refusal(app.url, await imToken(app.url, rival, 'ann')),
    await channelRefusal(app.url, { key: acme.apiKey }),
  ]) {
    expect(refused).toMatchObject({ status: 503, body: { code: 'SHUTTING_DOWN' } });
    expect(refused.headers['retry-after']).toBe('1');
  }
  const said = { messages: [{ role: 'user', content: 'x' }] };
  const asked = [
    await acme.post(`/api/copywriting/dialogue/sse/send-message/${acme.versionId}`, says('y')),
    await rival.post(`/api/copywriting/dialogue/sse/send-message/${rival.versionId}`, says('y')),
    await acme.post('/v1/chat/completions', { model: 'main', ...said }),
    await acme.post('/v1/chat/completions', { model: 'main', stream: true, ...said }),
  ];
  expect(asked.map(({ status, headers }) => [status, headers['retry-after']])).toEqual(
    Array(4).fill([503, '1']),
  );
  expect(await channel.fails({ type: 'chat', message: 'x' })).toMatchObject({ code: 'busy' });
  expect((await acme.get('/health/ready')).status).toBe(503);
  expect((await acme.get('/health')).status).toBe(200);

  // What is short and what goes on is served until then.
  expect((await acme.get('/api/copywriting/dialogue/list')).status).toBe(200);
  ann.send(single('ann', 'bob', { msgId: 1 }));
  expect(await ann.next({ type: 'sent' })).toMatchObject({ seq: 1 });
  const { id } = reply.events[1]!;
  const other = await SseClient.open(
    app.url,
    'GET',
    `/api/copywriting/dialogue/sse/resume/${id.split(':')[0]}`,
    undefined,
    { 'x-api-key': acme.apiKey },
  );
  open();
  await Promise.all([reply.end(), other.end()]);
  expect(reply.text).toBe('begun ended');
  expect(other.last).toMatchObject({ isEnd: true, status: 'finished' });
  for (const peer of [ann, foreign, channel])
    expect(await peer.closed).toEqual({ code: 1012, reason: expect.stringContaining('restarts') as unknown });
  await stopped;
});
