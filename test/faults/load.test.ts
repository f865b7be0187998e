import { request } from 'node:http';
import { bootApp, eventually, says, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { gate, Upstream } from '../support/upstream';

let app: TestApp;
let upstream: Upstream;
let acme: TestTenant;
let rival: TestTenant;

beforeAll(async () => {
  [app, upstream] = await Promise.all([bootApp({ MAX_REPLY_CHARS: '10000000' }), Upstream.start()]);
  [acme, rival] = await Promise.all([
    app.tenant({ baseUrl: upstream.url }),
    app.tenant({ baseUrl: upstream.url }),
  ]);
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

it('carries 1,000 streams at once, each with its own pieces', async () => {
  const { opened, open } = gate();
  upstream.on('echo', async (exchange) => {
    const said = (exchange.body as { messages: { content: string }[] }).messages.at(-1)!.content;
    await exchange.piece(`${said}:`);
    await opened;
    await exchange.pieces('a', 'b', 'c');
    await exchange.done();
  });
  const tenants = [acme, rival];
  const clients = await Promise.all(
    Array.from({ length: 1_000 }, (_, n) => tenants[n % 2]!.send(says(`n${n}`))),
  );
  expect(clients.filter(({ status }) => status !== 200)).toEqual([]);
  await Promise.all(clients.map((client) => client.has(2)));
  open();
  await Promise.all(clients.map((client) => client.end()));
  expect(clients.filter((client, n) => client.text !== `n${n}:abc`)).toEqual([]);
  expect(clients.filter(({ last }) => (last as { status: string }).status !== 'finished')).toEqual([]);
  const counts = await query<{ replies: string; ledger: string; open: string }>(
    app.databaseUrl,
    `select (select count(*) from dialogue_messages where status = 'finished' and role = 'assistant') as replies,
       (select count(*) from usage_ledger) as ledger, (select count(*) from replies_in_progress) as open`,
  );
  expect(counts).toEqual([{ replies: '1000', ledger: '1000', open: '0' }]);
}, 120_000);

it('holds nothing back for a client that does not read but one socket buffer, and the reply is finished and stored', async () => {
  const piece = 'x'.repeat(10_000);
  upstream.on('echo', async (exchange) => {
    for (let n = 0; n < 800; n += 1) await exchange.piece(piece);
    await exchange.done();
  });
  const body = Buffer.from(JSON.stringify(says('much')));
  const { hostname, port } = new URL(app.url);
  const response = await new Promise<import('node:http').IncomingMessage>((resolve, reject) => {
    request({
      hostname,
      port,
      method: 'POST',
      path: `/copywriting/dialogue/sse/send-message/${acme.versionId}`,
      agent: false,
      headers: {
        'x-api-key': acme.apiKey,
        'content-type': 'application/json',
        'content-length': body.length,
      },
    })
      .once('response', resolve)
      .once('error', reject)
      .end(body);
  });
  response.pause(); // 8 MB are on their way and nobody takes them
  const stored = await eventually(async () => {
    const [row] = await query<{ chars: number }>(
      app.databaseUrl,
      `select length(content) as chars from dialogue_messages where status = 'finished' and length(content) > 100000`,
    );
    return row;
  });
  expect(stored.chars).toBe(8_000_000);
  const waiting = bytesWaitingInSockets();
  expect(waiting).toBeLessThan(4_000_000);
  // It can still have all of it, whenever it reads on.
  let text = '';
  for await (const chunk of response.setEncoding('utf8')) text += chunk as string;
  const pieces = [...text.matchAll(/^data: (.*)$/gm)].map(
    ([, data]) => (JSON.parse(data!) as { result?: string }).result ?? '',
  );
  expect(pieces.join('').length).toBe(8_000_000);
}, 60_000);

/** What this process holds for sockets that don't take it: the application runs in it. */
function bytesWaitingInSockets(): number {
  const handles = (
    process as unknown as { _getActiveHandles(): { writableLength?: number }[] }
  )._getActiveHandles();
  return handles.reduce((sum, { writableLength = 0 }) => sum + writableLength, 0);
}
