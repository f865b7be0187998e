import { request, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { fastify } from 'fastify';
import { giveUpSlowReaders } from '../../src/common/http';
import { SseStreams } from '../../src/realtime';
import { bootApp, eventually, says, SseClient, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { eventsOf } from '../support/openai-chat';
import { Upstream, type Exchange } from '../support/upstream';

const SLOW_SECONDS = 3;
const PIECES_A_WRITE = 500;
/** More than the kernels take on all the way: 40 MB of events, from 9 MB of the provider's. */
const PIECES = 150_000;

let app: TestApp;
let upstream: Upstream;
let acme: TestTenant;
let rival: TestTenant;

beforeAll(async () => {
  [app, upstream] = await Promise.all([
    bootApp({ STREAM_SLOW_READER_SECONDS: String(SLOW_SECONDS), MAX_REPLY_CHARS: '10000000' }),
    Upstream.start(),
  ]);
  [acme, rival] = await Promise.all([
    app.tenant({ baseUrl: upstream.url, model: 'long' }),
    app.tenant({ baseUrl: upstream.url, model: 'short' }),
  ]);
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

/** One character a piece, written as fast as it is taken; how far it came. */
function long(): { written: number; exchange: Exchange | undefined } {
  const state = { written: 0, exchange: undefined as Exchange | undefined };
  upstream.on('long', async (exchange) => {
    state.exchange = exchange;
    const event = `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content: 'x' } }] })}\n\n`;
    const block = event.repeat(PIECES_A_WRITE);
    while (state.written < PIECES && !exchange.response.destroyed) {
      await exchange.raw(block);
      state.written += PIECES_A_WRITE;
    }
    if (!exchange.response.destroyed) await exchange.done();
  });
  return state;
}

/** Asks, and reads nothing until it is told to. */
async function paused(path: string, body: unknown): Promise<IncomingMessage> {
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    const headers = { 'x-api-key': acme.apiKey, 'content-type': 'application/json' };
    request(app.url + path, { method: 'POST', agent: false, headers })
      .once('response', resolve)
      .once('error', reject)
      .end(JSON.stringify(body));
  });
  return response.pause();
}

async function rest(response: IncomingMessage): Promise<string> {
  let text = '';
  for await (const chunk of response.setEncoding('utf8')) text += chunk as string;
  return text;
}

/** What this process holds for sockets that don't take it: the application runs in it, and the provider with 64 KiB. */
function bytesWaiting(): number {
  const handles = (
    process as unknown as { _getActiveHandles(): { writableLength?: number }[] }
  )._getActiveHandles();
  return handles.reduce((sum, { writableLength = 0 }) => sum + writableLength, 0);
}

const completion = { model: 'main', stream: true, messages: [{ role: 'user', content: 'x' }] };
const sendPath = (): string => `/copywriting/dialogue/sse/send-message/${acme.versionId}`;
const ledger = (): Promise<{ outcome: string; count: number }[]> =>
  query(
    app.databaseUrl,
    `select outcome, count(*)::int as count from usage_ledger where tenant_id = ${acme.id} group by outcome`,
  );

it('reads a model no further for a client that reads nothing, then ends it, says so and bills once', async () => {
  const model = long();
  const response = await paused('/v1/chat/completions', completion);
  await model.exchange!.aborted;
  expect(model.written).toBeLessThan(PIECES);
  expect(bytesWaiting()).toBeLessThan(4 * 1_048_576);
  const text = await rest(response);
  const events = eventsOf(text);
  expect(events.at(-1)).toBe('[DONE]');
  expect(events.at(-2)).toMatchObject({ error: { code: 'read_too_slowly', type: 'invalid_request_error' } });
  expect(events.length).toBeLessThan(PIECES);
  expect(await eventually(async () => (await ledger()).length > 0 && ledger())).toEqual([
    { outcome: 'stopped', count: 1 },
  ]);
  // A stranger is served meanwhile and after.
  const other = await rival.post('/v1/chat/completions', { ...completion, stream: false });
  expect(other.body.choices[0].message.content).toBe('x');
}, 60_000);

it('waits for a client that reads on in time, which gets all of it', async () => {
  const model = long();
  const response = await paused('/v1/chat/completions', completion);
  // The provider has come to a stop: everything between it and the client is full.
  let before = -1;
  await eventually(async () => {
    const still = model.written === before && model.written > 0;
    before = model.written;
    return still;
  });
  const events = eventsOf(await rest(response));
  const said = events.map((event) => (event as { choices?: { delta: { content?: string } }[] }).choices?.[0]);
  expect(said.filter((choice) => choice?.delta.content === 'x')).toHaveLength(PIECES);
  expect(events.at(-1)).toBe('[DONE]');
}, 60_000);

it('writes a kept reply to its end whoever reads, ends the stream of who does not, and has the rest for it', async () => {
  long();
  const response = await paused(sendPath(), says('much'));
  const [row] = await eventually(async () => {
    const rows = await query<{ id: string; chars: number }>(
      app.databaseUrl,
      `select id, length(content) as chars from dialogue_messages where status = 'finished' and length(content) > 1000`,
    );
    return rows.length > 0 && rows;
  }, 60_000);
  expect(row!.chars).toBe(PIECES);
  expect(bytesWaiting()).toBeLessThan(1_048_576);
  // It is let go a while after it has stopped reading; then there are some seconds left to read that it was.
  await eventually(async () => app.app.nest.get(SseStreams).size === 0, 20_000);
  const text = await rest(response);
  expect(text).toContain(': ended, for it was read too slowly');
  const ids = [...text.matchAll(/^id: (.*)$/gm)].map(([, id]) => id!);
  const count = ids.length - 1;
  expect(count).toBeLessThan(PIECES);
  const again = await SseClient.open(
    app.url,
    'GET',
    `/api/copywriting/dialogue/sse/resume/${row!.id}`,
    undefined,
    { 'x-api-key': acme.apiKey, 'last-event-id': ids.at(-1)! },
  );
  await again.end();
  expect(again.text.length).toBe(PIECES - count);
  expect(again.last).toMatchObject({ isEnd: true, status: 'finished' });
  expect(await ledger()).toContainEqual({ outcome: 'finished', count: 2 });
}, 90_000);

it('lets a client go that reads nothing of an answer that is sent whole', async () => {
  const server = fastify();
  giveUpSlowReaders(server, 500);
  server.get('/', async () => Buffer.alloc(48 * 1_048_576));
  const gone = Promise.withResolvers<boolean>();
  server.addHook('onRequest', async (_request, { raw }) => {
    raw.once('close', () => gone.resolve(raw.writableFinished));
  });
  await server.listen({ port: 0, host: '127.0.0.1' });
  const { port } = server.server.address() as AddressInfo;
  const response = await new Promise<IncomingMessage>((resolve, reject) =>
    request({ port, host: '127.0.0.1', agent: false }).once('response', resolve).once('error', reject).end(),
  );
  response.pause();
  expect(await gone.promise).toBe(false);
  response.destroy();
  await server.close();
}, 30_000);
