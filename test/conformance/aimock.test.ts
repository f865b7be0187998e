import { LLMock } from '@copilotkit/aimock';
import { bootApp, says, type TestApp } from '../support/app';

/** A provider that somebody else wrote: what we believe of OpenAI-compatible endpoints must hold there, too. */
let app: TestApp;
let mock: LLMock;

beforeAll(async () => {
  mock = new LLMock({ port: 0 });
  mock.onMessage('hello', { content: 'Hi there, 你好 😀! How can I help you today?' });
  mock.onMessage('break', { error: { message: 'The engine is on fire', type: 'server_error' }, status: 500 });
  await mock.start();
  app = await bootApp();
});
afterAll(async () => {
  await app.close();
  await mock.stop();
});

it('streams through a mock of OpenAI that is not ours', async () => {
  const [acme, rival] = await Promise.all([
    app.tenant({ baseUrl: `${mock.url}/v1`, model: 'gpt-4o' }),
    app.tenant({ baseUrl: `${mock.url}/v1`, model: 'gpt-4o' }),
  ]);
  const client = await acme.send(says('hello'));
  await client.end();
  expect(client.text).toBe('Hi there, 你好 😀! How can I help you today?');
  expect(client.last).toMatchObject({ status: 'finished', totalTokens: expect.any(Number) });
  expect(client.last.totalTokens).toBeGreaterThan(0);
  const asked = mock.getRequests().at(-1)!;
  expect(asked.body).toMatchObject({
    model: 'gpt-4o',
    stream: true,
    messages: [
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'hello' },
    ],
  });
  const { body } = await rival.get(`/copywriting/message/list/${client.record.id}`);
  expect(body).toMatchObject({ code: 404 });
});

it('tells of its failure', async () => {
  const acme = await app.tenant({ baseUrl: `${mock.url}/v1`, model: 'gpt-4o' });
  const client = await acme.send(says('break'));
  await client.end();
  expect(client.last).toMatchObject({
    status: 'failed',
    error: { code: 502, msg: expect.stringContaining('on fire') },
  });
});
