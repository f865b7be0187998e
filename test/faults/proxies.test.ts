import { readFile } from 'node:fs/promises';
import { request as requestTls } from 'node:https';
import { createServer, type IncomingMessage, type Server as HttpServer } from 'node:http';
import { WebSocket } from 'ws';
import { readProxyHeaders } from '../../src/common/http';
import { eventually, makeTenant, says, SseClient, type TestTenant } from '../support/app';
import { freshDatabase } from '../support/database';
import { freePort, HOST, installed, KINDS, Proxy, type ProxyName } from '../support/proxies';
import { Server } from '../support/server';
import { gate, Upstream } from '../support/upstream';

/** "In front of it" of docs/operations.md: each file of deploy/proxies, run by the proxy it is for. */
interface Expected {
  readonly name: ProxyName;
  /** How a stream ends for its client when the server is killed: as if it were whole, or cut off. */
  readonly killed: 'clean' | 'cut';
}
const PROXIES: readonly Expected[] = [
  { name: 'nginx', killed: 'cut' },
  { name: 'haproxy', killed: 'cut' },
  { name: 'haproxy-tcp', killed: 'cut' },
  { name: 'caddy', killed: 'clean' },
  { name: 'apache', killed: 'cut' },
];
/** The client's address; the proxy's is 127.0.0.1. */
const CLIENT = '127.0.0.2';
const ROOT_KEY = 'root-key-of-the-proxies-0123456789abcdef';

interface Sent {
  readonly method?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: unknown;
}

/** One request through the proxy, on a connection of its own. */
function through(proxy: Proxy, path: string, { method, headers, body }: Sent = {}): Promise<IncomingMessage> {
  const payload = body === undefined ? undefined : JSON.stringify(body);
  return new Promise((resolve, reject) => {
    const outgoing = requestTls({
      host: '127.0.0.1',
      port: proxy.port,
      localAddress: CLIENT,
      servername: HOST,
      ca: proxy.certificate,
      agent: false,
      path,
      method: method ?? (payload === undefined ? 'GET' : 'POST'),
      headers: {
        host: `${HOST}:${proxy.port}`,
        // As browsers send it: nothing on the way may take it for leave to collect pieces.
        'accept-encoding': 'gzip, br',
        ...(payload !== undefined && {
          'content-type': 'application/json',
          'content-length': Buffer.byteLength(payload),
        }),
        ...headers,
      },
    });
    outgoing.once('response', resolve).once('error', reject).end(payload);
  });
}

async function textOf(response: IncomingMessage): Promise<string> {
  let text = '';
  for await (const part of response.setEncoding('utf8')) text += part as string;
  return text;
}

describe.each(PROXIES)('$name', ({ name, killed }) => {
  const here = installed(name);
  const test = (what: string, run: () => Promise<void>): void =>
    here ? it(what, run, 120_000) : it.skip(`${what} (needs ${KINDS[name].command} and openssl)`, run);

  /** What was started, in that order. */
  const ends: (() => Promise<unknown>)[] = [];

  describe('in front of Parley', () => {
    let upstream: Upstream;
    let database: Awaited<ReturnType<typeof freshDatabase>>;
    let port: number;
    let server: Server;
    let proxy: Proxy;
    let acme: TestTenant;
    let rival: TestTenant;

    const env = (): Record<string, string> => ({
      DATABASE_URL: database.url,
      PORT: String(port),
      PARLEY_ROOT_KEY: ROOT_KEY,
      TRUST_PROXY: '127.0.0.1',
      DRAIN_TIMEOUT_MS: '200',
      IM_HEARTBEAT_SECONDS: '1',
      ...(name === 'haproxy-tcp' && { PROXY_PROTOCOL: 'on' }),
    });
    /** Past the proxy: in TCP mode from an address that is no proxy's. */
    const tenants = (url: string) => makeTenant(url, ROOT_KEY, { baseUrl: upstream.url, model: name });

    beforeAll(async () => {
      if (!here) return;
      [upstream, database, port] = await Promise.all([Upstream.start(), freshDatabase(), freePort()]);
      ends.push(() => upstream.close());
      ends.push(() => database.drop());
      // The tenants are made without the PROXY header that a trusted peer would owe.
      server = await Server.start({ ...env(), PROXY_PROTOCOL: 'off' });
      ends.push(() => server.remove());
      const url = server.quickstart.url;
      [acme, rival] = [await tenants(url), await tenants(url)];
      if (name === 'haproxy-tcp') await restart('SIGTERM');
      proxy = await Proxy.start(name, port, await freePort());
      ends.push(() => proxy.stop());
      await again();
    }, 120_000);
    afterAll(async () => {
      for (const end of ends.splice(0).reverse()) await end();
    }, 60_000);

    const restart = async (signal: NodeJS.Signals): Promise<void> => {
      await server.end(signal);
      server = await Server.start(env(), server.dataDir);
    };
    const own = (tenant = acme) => ({ 'x-api-key': `Bearer ${tenant.apiKey}` });
    /** Until the proxy lets requests through, after a start of it or of the server. */
    const again = () =>
      eventually(async () => {
        // Not once, by luck: the other of the two servers is never there.
        for (let i = 0; i < 6; i += 1) {
          const status = await through(proxy, '/chat/oauth/token', { body: {} }).then(
            (response) => (response.resume(), response.statusCode!),
            () => 0,
          );
          if (status < 400 || status >= 500) return false;
        }
        return true;
      });
    const stream = async (path: string, body: unknown): Promise<SseClient> =>
      SseClient.of(await through(proxy, path, { body, headers: { ...own(), accept: 'text/event-stream' } }));
    const talk = (text: string) =>
      stream(`/api/copywriting/dialogue/sse/send-message/${acme.versionId}`, says(text));

    test('each piece of a reply arrives before the next is sent', async () => {
      const count = 8;
      // Together more than any buffer that waits for a first few hundred bytes.
      const piece = (i: number): string => `${i} ${'x'.repeat(200)} `;
      let gates = Array.from({ length: count }, () => gate());
      upstream.on(name, async (exchange) => {
        for (let i = 0; i < count; i += 1) {
          await gates[i]!.opened;
          await exchange.piece(piece(i));
        }
        await exchange.done();
      });
      const whole = Array.from({ length: count }, (_, i) => piece(i)).join('');

      const client = await talk('piece by piece');
      expect(client.response.headers['content-encoding']).toBeUndefined();
      for (let i = 0; i < count; i += 1) {
        gates[i]!.open();
        await client.has(i + 2);
      }
      await client.end();
      expect(client.text).toBe(whole);
      expect(client.last).toMatchObject({ isEnd: true, status: 'finished' });

      gates = Array.from({ length: count }, () => gate());
      // Its status is known with the first piece.
      gates[0]!.open();
      const completion = await through(proxy, '/v1/chat/completions', {
        body: { model: 'main', stream: true, messages: [{ role: 'user', content: 'once more' }] },
        headers: own(),
      });
      expect(completion.statusCode).toBe(200);
      let text = '';
      let wake = (): void => undefined;
      completion.setEncoding('utf8').on('data', (part: string) => {
        text += part;
        wake();
      });
      const over = new Promise<void>((resolve) => completion.once('close', resolve));
      for (let i = 0; i < count; i += 1) {
        gates[i]!.open();
        while (!text.includes(piece(i))) {
          if (completion.closed) throw new Error(`it ended before piece ${i}: ${text}`);
          await Promise.race([over, new Promise<void>((resolve) => (wake = resolve))]);
        }
      }
      await over;
      expect(text.trimEnd().endsWith('data: [DONE]')).toBe(true);
    });

    test('a WebSocket opens, stays, and is told what it asked for', async () => {
      upstream.on(name, async (exchange) => {
        await exchange.pieces('over ', 'a ', 'socket');
        await exchange.done();
      });
      const { ws, opened, frames, closed } = socket();
      await opened;
      expect(ws.protocol).toBe('agent.events.v1');
      // Its server's heartbeat comes through, and so does the answer to it.
      let pings = 0;
      await new Promise<void>((resolve) => ws.on('ping', () => (pings += 1) === 3 && resolve()));
      ws.send(JSON.stringify({ type: 'chat', message: 'Hello' }));
      await eventually(async () => frames.some((frame) => frame.includes('socket')));
      ws.close();
      expect((await closed).code).toBe(1005);
    });

    function socket(tenant = acme) {
      const ws = new WebSocket(`wss://127.0.0.1:${proxy.port}/api/v1/ws`, ['agent.events.v1'], {
        headers: { ...own(tenant), host: `${HOST}:${proxy.port}` },
        ca: proxy.certificate,
        localAddress: CLIENT,
        // Passed on to tls.connect; the types of `ws` leave it out.
        ...({ servername: HOST } as object),
      });
      const frames: string[] = [];
      ws.on('message', (data) => frames.push((data as Buffer).toString()));
      ws.on('error', () => undefined);
      const opened = new Promise<void>((resolve, reject) => ws.once('open', resolve).once('error', reject));
      const closed = new Promise<{ code: number }>((resolve) =>
        ws.once('close', (code) => resolve({ code })),
      );
      return { ws, frames, opened, closed };
    }

    test('the client’s address is known, whatever the client says it is', async () => {
      for (const tenant of [acme, rival]) {
        const changed = await through(proxy, `/api/admin/assistants/${tenant.assistantId}`, {
          method: 'PATCH',
          body: { name: 'Main' },
          headers: { ...own(tenant), 'x-forwarded-for': '203.0.113.9', 'x-forwarded-host': 'evil.example' },
        });
        expect(changed.statusCode).toBe(200);
        changed.resume();
        const log = JSON.parse(
          await textOf(
            await through(proxy, '/api/admin/audit-log?limit=1', {
              headers: { ...own(tenant), 'accept-encoding': 'identity' },
            }),
          ),
        ) as { data: { address: string }[] };
        expect(log.data[0]!.address).toBe(CLIENT);
      }
    });

    test('a stop is told to streams and sockets, and the next request finds the server that came', async () => {
      upstream.on(name, async (exchange) => {
        await exchange.piece('half ');
        await exchange.aborted;
      });
      const client = await talk('stop');
      const { opened, closed } = socket();
      await Promise.all([client.has(2), opened]);
      await restart('SIGTERM');
      await client.end();
      expect(client.last).toMatchObject({ isEnd: true, status: 'interrupted' });
      expect([1001, 1012]).toContain((await closed).code);

      await again();
      upstream.on(name, async (exchange) => {
        await exchange.piece('whole');
        await exchange.done();
      });
      const next = await talk('and on');
      await next.end();
      expect(next.last).toMatchObject({ isEnd: true, status: 'finished' });
    });

    test(`a kill ends a stream ${killed === 'clean' ? 'as if it were whole' : 'in the middle'}, but without the end of a reply; it is not sent again`, async () => {
      upstream.on(name, async (exchange) => {
        await exchange.piece('half ');
        await exchange.aborted;
      });
      const before = upstream.seen(name).length;
      const client = await talk('die');
      const completion = await stream('/v1/chat/completions', {
        model: 'main',
        stream: true,
        messages: [{ role: 'user', content: 'die, too' }],
      });
      const { opened, closed } = socket();
      client.response.on('error', () => undefined);
      completion.response.on('error', () => undefined);
      await Promise.all([client.has(2), completion.has(1), opened]);
      await restart('SIGKILL');
      await Promise.all([client.end(), completion.end()]);
      for (const { response } of [client, completion])
        expect(response.complete ? 'clean' : 'cut').toBe(killed);
      expect(client.events.some(({ data }) => (data as { isEnd?: boolean }).isEnd)).toBe(false);
      expect(completion.events.some(({ data }) => JSON.stringify(data).includes('"finish_reason":"'))).toBe(
        false,
      );
      expect((await closed).code).toBe(1006);
      await again();
      expect(upstream.seen(name)).toHaveLength(before + 2);
    });
  });

  describe('in front of two servers', () => {
    /** Counts the work it is given; healthy as long as it listens. */
    class Worker {
      works = 0;
      /** Takes the request whole and then drops the connection. */
      drops = false;
      private server!: HttpServer;
      constructor(readonly port: number) {}

      async up(): Promise<void> {
        this.server = createServer((request, response) => {
          void textOf(request).then(
            () => {
              if (request.url !== '/work') return response.end('ok');
              this.works += 1;
              return this.drops ? request.socket.destroy() : response.end(`done by ${this.port}`);
            },
            () => undefined,
          );
        });
        if (name === 'haproxy-tcp') readProxyHeaders(this.server, { trusts: () => true });
        await new Promise<void>((done) => this.server.listen(this.port, '127.0.0.1', done));
      }

      async down(): Promise<void> {
        const closed = new Promise((done) => this.server.close(done));
        this.server.closeAllConnections();
        await closed;
      }
    }
    let one: Worker;
    let two: Worker;
    let proxy: Proxy;
    beforeAll(async () => {
      if (!here) return;
      one = new Worker(await freePort());
      two = new Worker(await freePort());
      await Promise.all([one.up(), two.up()]);
      ends.push(() => Promise.all([one.down(), two.down()]));
      proxy = await Proxy.start(name, one.port, two.port);
      ends.push(() => proxy.stop());
      await eventually(async () => (await post()) === 200);
    }, 60_000);
    afterAll(async () => {
      for (const end of ends.splice(0).reverse()) await end();
    }, 60_000);
    /** Its status; 0 when the connection ends without one. */
    const post = (): Promise<number> =>
      through(proxy, '/work', { body: { once: true } }).then(
        (response) => {
          response.on('error', () => undefined).resume();
          return response.statusCode!;
        },
        () => 0,
      );

    const allTaken = async (): Promise<boolean> => {
      for (let i = 0; i < 24; i += 1) if ((await post()) !== 200) return false;
      return true;
    };

    test('a POST that a server took and did not answer is not given to the other', async () => {
      one.drops = two.drops = true;
      for (let i = 0; i < 4; i += 1) {
        const before = one.works + two.works;
        expect([0, 502, 503, 504]).toContain(await post());
        expect(one.works + two.works).toBe(before + 1);
      }
      one.drops = two.drops = false;
    });

    test('a POST that never reached a server goes to the other', async () => {
      await one.down();
      // It finds out by its checks, a second apart.
      if (name === 'caddy') await eventually(allTaken);
      const before = two.works;
      for (let i = 0; i < 4; i += 1) expect(await post()).toBe(200);
      expect(two.works).toBe(before + 4);
      await one.up();
    });

    test('servers that were away are asked again as soon as they are back', async () => {
      await Promise.all([one.down(), two.down()]);
      for (let i = 0; i < 4; i += 1) expect([0, 502, 503, 504]).toContain(await post());
      await Promise.all([one.up(), two.up()]);
      // These wait for their next check, a second away; the others know at once.
      if (name !== 'nginx' && name !== 'apache') await eventually(allTaken);
      for (let i = 0; i < 4; i += 1) expect(await post()).toBe(200);
    });
  });
});

it('HAProxy does not collect pieces for an acknowledgement', async () => {
  // Without it they come all the same, 200 ms late: only the line itself can be looked for.
  expect(await readFile(`${__dirname}/../../deploy/proxies/haproxy.cfg`, 'utf8')).toMatch(
    /^ +option http-no-delay$/m,
  );
});
