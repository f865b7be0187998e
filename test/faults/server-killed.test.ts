import { readFile, stat } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { ask, eventually, says, SseClient } from '../support/app';
import { ended, Server } from '../support/server';
import { Upstream } from '../support/upstream';

let upstream: Upstream;
beforeAll(async () => {
  upstream = await Upstream.start();
});
afterAll(() => upstream.close());

const provider = () => ({ OPENAI_BASE_URL: upstream.url, OPENAI_API_KEY: 'x', OPENAI_MODEL: 'faulty' });
const send = ({ quickstart: q }: Server, body: unknown) =>
  SseClient.open(q.url, 'POST', `/api/copywriting/dialogue/sse/send-message/${q.assistantVersionId}`, body, {
    'x-api-key': q.apiKey,
  });
const rows = async ({ quickstart: q }: Server, id: string) =>
  (
    (await ask(q.url, 'GET', `/api/copywriting/message/list/${id}`, undefined, { 'x-api-key': q.apiKey }))
      .body as {
      rows: { id: string; content: string; status: string; role: string }[];
    }
  ).rows;

it('killed in the middle of a reply: interrupted within 15 s of the restart, the text kept, the next turn works', async () => {
  upstream.on('faulty', async (exchange) => {
    if (exchange.attempt === 1) return exchange.pieces('this ', 'much ', 'was ', 'said');
    await exchange.piece('and on');
    return exchange.done();
  });
  let server = await Server.start(provider());
  try {
    const client = await send(server, says('tell me'));
    await client.has(5);
    const id = client.record.id as string;
    const replyId = client.events[0]!.id.split(':')[0]!;
    // Promised is a checkpoint every 2 s; what the metrics can't tell, the database's own rows do after the kill.
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    await server.end('SIGKILL');

    server = await Server.start(provider(), server.dataDir);
    const restarted = Date.now();
    const reply = await eventually(
      async () => (await rows(server, id)).find((row) => row.id === replyId && row.status !== 'streaming'),
      15_000,
    );
    expect(Date.now() - restarted).toBeLessThan(15_000);
    expect(reply).toMatchObject({ status: 'interrupted', content: 'this much was said' });

    const { quickstart: q } = server;
    const resumed = await SseClient.open(
      q.url,
      'GET',
      `/copywriting/dialogue/sse/resume/${replyId}`,
      undefined,
      { 'x-api-key': q.apiKey, 'last-event-id': `${replyId}:2` },
    );
    await resumed.end();
    expect(resumed.text).toBe('this much was said');
    expect(resumed.last).toMatchObject({ status: 'interrupted', isEnd: true });

    const next = await send(server, says('go on', { id }));
    await next.end();
    expect(next.last).toMatchObject({ status: 'finished' });
    expect(upstream.seen('faulty').at(-1)!.body.messages.slice(1)).toEqual([
      { role: 'user', content: 'tell me' },
      { role: 'assistant', content: 'this much was said' },
      { role: 'user', content: 'go on' },
    ]);
  } finally {
    await server.remove();
  }
}, 90_000);

it('prints the same at every start, keeps its secrets to itself, stops with exit code 0', async () => {
  let server = await Server.start();
  try {
    const file = join(server.dataDir, 'quickstart.json');
    const first = JSON.parse(await readFile(file, 'utf8')) as Record<string, string>;
    expect(Object.keys(first).sort()).toEqual(
      [
        'url',
        'tenantId',
        'apiKey',
        'rootKey',
        'appKey',
        'appSecret',
        'agentId',
        'assistantId',
        'assistantVersionId',
        'modelServiceId',
      ].sort(),
    );
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    const client = await send(server, says('echo me'));
    await client.end();
    expect(client.text).toMatch(/demo.*You said: echo me$/s);
    expect(client.events.length).toBeGreaterThan(5);
    expect(await server.end('SIGTERM')).toBe(0);

    server = await Server.start({}, server.dataDir);
    const second = JSON.parse(await readFile(file, 'utf8')) as Record<string, string>;
    expect({ ...second, url: '' }).toEqual({ ...first, url: '' });
    expect(server.output).toContain(first.apiKey);
    expect(await rows(server, client.record.id as string)).toHaveLength(2);

    const double = Server.launch({ PARLEY_DATA_DIR: server.dataDir });
    expect(await ended(double.child)).toBe(1);
    expect(double.output.join('')).toMatch(/^parley: another Parley is already using .*\n$/);
  } finally {
    await server.remove();
  }
}, 90_000);

describe('a start that can not be', () => {
  const fails = async (env: Record<string, string>): Promise<string> => {
    const { child, output } = Server.launch(env);
    expect(await ended(child)).toBe(1);
    return output.join('');
  };

  it('says why in one line', async () => {
    for (const PORT of ['x', '0x2600'])
      expect(await fails({ PORT })).toBe(
        'parley: PORT must be a whole number from 0 to 65535, in decimal digits\n',
      );
    expect(await fails({ PARLEY_ROOT_KEY: ' '.repeat(40) })).toBe(
      'parley: PARLEY_ROOT_KEY must not begin or end with a blank\n',
    );
    expect(await fails({ NODE_ENV: 'production' })).toMatch(
      /^parley: PARLEY_SECRET_KEY is required[^\n]*\n$/,
    );
    expect(await fails({ DATABASE_URL: 'mysql://x' })).toMatch(
      /^parley: DATABASE_URL must be a URL[^\n]*\n$/,
    );
    expect(
      await fails({
        DATABASE_URL: 'postgres://u:very-secret@127.0.0.1:1/x',
        PARLEY_SECRET_KEY: 's'.repeat(32),
        PARLEY_ROOT_KEY: 'r'.repeat(32),
      }),
    ).toBe('parley: DATABASE_URL: nothing answers at that host and port (is PostgreSQL running?)\n');
    expect(
      await fails({
        DATABASE_URL: process.env.TEST_POSTGRES_URL!.replace(/:[^:@]+@/, ':wrong@'),
        PARLEY_SECRET_KEY: 's'.repeat(32),
        PARLEY_ROOT_KEY: 'r'.repeat(32),
      }),
    ).toBe('parley: DATABASE_URL: PostgreSQL refuses that user or password\n');
    for (const PARLEY_DATA_DIR of ['/dev/null/parley', '/proc/parley/deeper'])
      expect(await fails({ PARLEY_DATA_DIR })).toMatch(
        new RegExp(`^parley: [^\\n]*${PARLEY_DATA_DIR}[^\\n]*not writable[^\\n]*\\n$`),
      );
  }, 90_000);

  it('names the port that is taken', async () => {
    const taken = createServer();
    await new Promise<void>((resolve) => taken.listen(0, '127.0.0.1', resolve));
    const { port } = taken.address() as AddressInfo;
    try {
      const server = await Server.start();
      await server.end('SIGTERM');
      expect(await fails({ PORT: String(port), PARLEY_DATA_DIR: server.dataDir })).toMatch(
        new RegExp(`^parley: port ${port} is already in use[^\\n]*\\n$`),
      );
      await server.remove();
    } finally {
      taken.close();
    }
  }, 60_000);
});
