import { createServer, type IncomingHttpHeaders, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { EnvHttpProxyAgent, getGlobalDispatcher, setGlobalDispatcher } from 'undici';
import { Config } from '../../src/config';
import {
  download,
  DownloadError,
  Outbound,
  RefusedAddressError,
  type OutboundPolicy,
} from '../../src/outbound';
import { LocalOutbound, TestNames } from '../support/outbound';

const POOL = { connectMs: 2_000, silenceMs: 5_000 };
const PUBLIC = '8.8.8.8';

/** A server on an address of this machine that writes down who came. */
class Place {
  readonly seen: { url: string; headers: IncomingHttpHeaders }[] = [];
  connections = 0;
  location = '';

  private constructor(
    readonly server: Server,
    readonly address: string,
  ) {}

  static async open(address: string): Promise<Place> {
    const server = createServer((request, response) => {
      place.seen.push({ url: request.url!, headers: request.headers });
      if (request.url === '/moved') response.writeHead(307, { location: place.location }).end();
      else response.end('here');
    });
    server.on('connection', () => (place.connections += 1));
    const place = new Place(server, address);
    await new Promise<void>((resolve) => server.listen(0, address, resolve));
    return place;
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }
  url(host = this.address, path = '/'): string {
    return `http://${host}:${this.port}${path}`;
  }
  close(): void {
    this.server.closeAllConnections();
    this.server.close();
  }
}

let inside: Place;
let elsewhere: Place;
const opened: Outbound[] = [];
const kept = <T extends Outbound>(outbound: T): T => {
  opened.push(outbound);
  return outbound;
};
const production = (env: Record<string, string> = {}, names = new TestNames()): Outbound =>
  kept(
    new Outbound(
      Config.load({ NODE_ENV: 'production', PARLEY_SECRET_KEY: 's'.repeat(32), ...env }),
      names.lookup,
    ),
  );

async function reached(outbound: Outbound, policy: OutboundPolicy, url: string): Promise<boolean> {
  try {
    const { body } = await outbound.request(policy, url, { method: 'GET' }, POOL);
    await body.dump();
    return true;
  } catch (error) {
    expect(error).toBeInstanceOf(RefusedAddressError);
    return false;
  }
}

beforeAll(async () => {
  [inside, elsewhere] = await Promise.all([Place.open('127.0.0.1'), Place.open('127.0.0.2')]);
});
beforeEach(() => {
  for (const place of [inside, elsewhere])
    Object.assign(place, { connections: 0, location: '' }).seen.length = 0;
});
afterEach(() => Promise.all(opened.splice(0).map((outbound) => outbound.onApplicationShutdown())));
afterAll(() => [inside, elsewhere].forEach((place) => place.close()));

const TENANTS = ['provider', 'tool', 'webhook', 'media'] as const;

describe('in production', () => {
  it.each(TENANTS)('%s: no way of writing a private address leads to it', async (policy) => {
    const outbound = production();
    for (const host of [
      '127.0.0.1',
      '2130706433',
      '0x7f.1',
      '127.1',
      '[::ffff:127.0.0.1]',
      '[::ffff:7f00:1]',
      '[::127.0.0.1]',
      'localhost',
    ])
      expect([host, await reached(outbound, policy, inside.url(host))]).toEqual([host, false]);
    expect(inside.connections).toBe(0);
  });

  it.each(TENANTS)(
    '%s: a name that led outside when it was saved does not lead inside later',
    async (policy) => {
      const names = new TestNames().set('moves.example', [PUBLIC], ['127.0.0.1']);
      const outbound = production({}, names);
      const url = inside.url('moves.example');
      await outbound.check(policy, 'url', url);
      expect(await reached(outbound, policy, url)).toBe(false);
      await expect(outbound.check(policy, 'url', url)).rejects.toMatchObject({
        message: 'url: must not lead to a private address',
      });
      expect([inside.connections, names.asked.length]).toEqual([0, 3]);
    },
  );

  it.each(TENANTS)('%s: a name is refused as a whole when one of its addresses is', async (policy) => {
    for (const addresses of [
      [PUBLIC, '127.0.0.1'],
      ['127.0.0.1', PUBLIC],
      ['2a00:1450:4001:81b::200e', '::ffff:127.0.0.1'],
    ]) {
      const outbound = production({}, new TestNames().set('both.example', addresses));
      const url = inside.url('both.example');
      await expect(outbound.check(policy, 'url', url)).rejects.toMatchObject({ code: 'BAD_INPUT' });
      expect(await reached(outbound, policy, url)).toBe(false);
    }
    expect(inside.connections).toBe(0);
  });

  it("the platform's own providers lead anywhere", async () => {
    const outbound = production({}, new TestNames().set('model.internal', ['127.0.0.1']));
    await outbound.check('operator', 'baseUrl', inside.url());
    expect(await reached(outbound, 'operator', inside.url())).toBe(true);
    expect(await reached(outbound, 'operator', inside.url('model.internal'))).toBe(true);
  });

  it('a connection that is open under one policy is not used under another', async () => {
    const outbound = production();
    for (let n = 0; n < 6; n += 1) expect(await reached(outbound, 'operator', inside.url())).toBe(true);
    expect(inside.connections).toBeLessThan(6);
    for (const policy of TENANTS) expect(await reached(outbound, policy, inside.url())).toBe(false);
    expect(inside.seen).toHaveLength(6);
  });
});

it.each<[Record<string, string>, Partial<Record<OutboundPolicy, boolean>>]>([
  [{ PRIVATE_PROVIDER_ADDRESSES: 'allow' }, { provider: true, tool: true }],
  [{ PRIVATE_WEBHOOK_ADDRESSES: 'allow' }, { webhook: true }],
  [{ PRIVATE_ADDRESSES_ALLOWED: '10.0.0.0/8, 127.0.0.0/30' }, { provider: true, tool: true, webhook: true }],
  [{ PRIVATE_ADDRESSES_ALLOWED: '127.0.0.1' }, { provider: true, tool: true, webhook: true }],
  [{ PRIVATE_ADDRESSES_ALLOWED: '10.0.0.0/8,127.0.0.2,::1' }, {}],
  [{ NODE_ENV: 'development' }, { provider: true, tool: true, webhook: true }],
  [{ NODE_ENV: 'development', PRIVATE_PROVIDER_ADDRESSES: 'refuse' }, { webhook: true }],
  [
    { NODE_ENV: 'development', PRIVATE_WEBHOOK_ADDRESSES: 'refuse' },
    { provider: true, tool: true },
  ],
])('%p lets in %p', async (env, allowed) => {
  const outbound = production(env);
  for (const policy of TENANTS) {
    const answer = await reached(outbound, policy, inside.url());
    expect([policy, answer]).toEqual([policy, allowed[policy] ?? false]);
    const check = outbound.check(policy, 'url', inside.url()).then(
      () => true,
      () => false,
    );
    expect([policy, await check]).toEqual([policy, answer]);
  }
});

it.each(['10.0.0.0/33', '10.0.0', 'host.example', '10.0.0.0/8/8', '10.0.0.1/', '::/129'])(
  'PRIVATE_ADDRESSES_ALLOWED=%s is refused at the start',
  (text) => {
    expect(() => Config.load({ PRIVATE_ADDRESSES_ALLOWED: text })).toThrow(
      /^PRIVATE_ADDRESSES_ALLOWED must be/,
    );
  },
);

describe('a redirect', () => {
  it('is an answer like any other, and takes no credential along', async () => {
    const outbound = production();
    inside.location = elsewhere.url();
    const headers = { authorization: 'Bearer of-the-provider' };
    const { statusCode, body } = await outbound.request(
      'operator',
      inside.url(undefined, '/moved'),
      { method: 'POST', headers, body: '{}' },
      POOL,
    );
    await body.dump();
    expect([statusCode, elsewhere.connections]).toEqual([307, 0]);
    const fetched = await outbound.fetch('operator', inside.url(undefined, '/moved'), { headers }, POOL);
    expect([fetched.status, elsewhere.connections]).toEqual([307, 0]);
  });

  const limits = { maxBytes: 1_000, timeoutMs: 5_000, maxRedirects: 2, signal: new AbortController().signal };

  it('of a file is followed, without the credentials of an address', async () => {
    const outbound = kept(new LocalOutbound());
    inside.location = elsewhere.url('127.0.0.2', '/file');
    const from = inside.url(undefined, '/moved').replace('http://', 'http://me:secret@');
    expect((await download(outbound, from, limits)).toString()).toBe('here');
    for (const { headers } of [...inside.seen, ...elsewhere.seen]) {
      expect(headers).not.toHaveProperty('authorization');
      expect(headers).not.toHaveProperty('cookie');
      expect(headers).not.toHaveProperty('referer');
    }
  });

  it('of a file is refused where it leads inside, by address or by name, and after too many', async () => {
    const names = new TestNames().set('inner.example', ['127.0.0.2']);
    const outbound = kept(new LocalOutbound((address) => address === '127.0.0.2', {}, names.lookup));
    for (const host of ['127.0.0.2', 'inner.example']) {
      inside.location = elsewhere.url(host);
      await expect(download(outbound, inside.url(undefined, '/moved'), limits)).rejects.toThrow(
        RefusedAddressError,
      );
    }
    expect(elsewhere.connections).toBe(0);
    inside.location = 'file:///etc/hosts';
    await expect(download(outbound, inside.url(undefined, '/moved'), limits)).rejects.toThrow(DownloadError);
    inside.location = '/moved';
    inside.seen.length = 0;
    await expect(download(outbound, inside.url(undefined, '/moved'), limits)).rejects.toThrow(
      /one address to/,
    );
    expect(inside.seen).toHaveLength(3);
  });
});

it("the environment's proxy is not asked", async () => {
  const proxy = await Place.open('127.0.0.1');
  const before = getGlobalDispatcher();
  const asked = new EnvHttpProxyAgent({ httpProxy: proxy.url(), noProxy: '' });
  setGlobalDispatcher(asked);
  try {
    const outbound = production();
    expect(await reached(outbound, 'operator', inside.url())).toBe(true);
    expect((await outbound.fetch('operator', inside.url(), {}, POOL)).status).toBe(200);
    expect(proxy.connections).toBe(0);
  } finally {
    setGlobalDispatcher(before);
    await asked.close();
    proxy.close();
  }
});
