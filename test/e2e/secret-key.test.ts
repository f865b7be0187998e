import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type IncomingHttpHeaders, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BlobLinks, type BlobHash } from '../../src/blobs';
import type { TenantId } from '../../src/common';
import { Quickstart } from '../../src/quickstart';
import { named, SealedValues } from '../../src/sealed-values';
import { UserTokens } from '../../src/tenancy';
import { signature } from '../../src/webhooks';
import {
  bootApp,
  eventually,
  ROOT_KEY,
  says,
  SECRET_KEY,
  type TestApp,
  type TestTenant,
} from '../support/app';
import { freshDatabase, query } from '../support/database';
import { Hooked } from '../support/im-rest';

const NEW_KEY = 'another-secret-of-the-tests-0123456789';
const KEY = 'sk-provider-0a1b2c3d4e5f';

let database: { url: string; drop: () => Promise<void> };
let provider: Server;
let asked: IncomingHttpHeaders[] = [];

const origin = () => `http://127.0.0.1:${(provider.address() as AddressInfo).port}`;
const spec = {
  openapi: '3.1.0',
  info: { title: 'x', version: '1' },
  paths: { '/orders': { get: { operationId: 'orders' } } },
};

beforeAll(async () => {
  provider = createServer((request, response) => {
    asked.push(request.headers);
    request.resume();
    response
      .writeHead(200, { 'content-type': 'application/json' })
      .end(JSON.stringify({ data: [{ embedding: [1, 2], index: 0 }] }));
  });
  await new Promise<void>((resolve) => provider.listen(0, '127.0.0.1', resolve));
});
beforeEach(async () => {
  asked = [];
  database = await freshDatabase();
});
afterEach(() => database.drop());
afterAll(() => {
  provider.closeAllConnections();
  provider.close();
});

interface Sealed {
  readonly acme: TestTenant;
  readonly hooked: Hooked;
  readonly providerPath: string;
  readonly versionPath: string;
  readonly token: string;
}

/** A tenant with one of everything that is sealed or signed. */
async function furnished(app: TestApp): Promise<Sealed> {
  const hooked = await Hooked.make(app, ['message.created'], undefined, {
    baseUrl: `${origin()}/v1`,
    provider: { credentials: [{ apiKey: KEY }], headers: { 'x-tenant': 'acme-header-1' } },
    service: { name: 'chats' },
  });
  const acme = hooked.tenant;
  await acme.post('/api/admin/model-services', {
    name: 'embeds',
    model: 'embeds',
    type: 2,
    providerId: acme.providerId,
  });
  const versions = `/api/admin/assistants/${acme.assistantId}/versions`;
  const version = await acme.post(versions, {
    modelServiceId: acme.serviceId,
    tools: [
      { type: 'openapi', name: 'plain', spec, baseUrl: origin() },
      { type: 'openapi', name: 'shop', spec, baseUrl: origin(), headers: { authorization: KEY } },
    ],
  });
  const token = await new UserTokens(SECRET_KEY).sign({
    tenantId: acme.id as TenantId,
    userId: 'ann',
    client: 'pc',
    keyId: null,
    issuedAt: Date.now(),
    expiresAt: Date.now() + 60_000,
  });
  return {
    acme,
    hooked,
    providerPath: `/api/admin/model-providers/${acme.providerId}`,
    versionPath: `${versions}/${version.body.id}`,
    token,
  };
}

/** The same tenant, as the server at `url` has it. */
const at = (app: TestApp, path: string, key: string, method = 'GET', body?: unknown) =>
  fetch(`${app.url}${path}`, {
    method,
    headers: { 'x-api-key': `Bearer ${key}`, 'content-type': 'application/json' },
    ...(body !== undefined && { body: JSON.stringify(body) }),
  }).then(async (answer) => ({
    status: answer.status,
    headers: answer.headers,
    body: (await answer.json()) as any,
  }));

describe('with another key', () => {
  let app: TestApp;
  let sealed: Sealed;
  beforeEach(async () => {
    const before = await bootApp({}, database.url);
    sealed = await furnished(before);
    await before.close();
    app = await bootApp({}, database.url, { secretKey: NEW_KEY });
  });
  afterEach(() => app.close());

  const ours = (path: string, method?: string, body?: unknown) =>
    at(app, path, sealed.acme.apiKey, method, body);

  it('providers are listed and read, say what has to be entered again, and can be given it', async () => {
    const { providerPath } = sealed;
    const neighbour = await ours('/api/admin/model-providers', 'POST', {
      name: 'neighbour',
      kind: 'openai-compatible',
      baseUrl: origin(),
      credentials: [{ apiKey: 'sk-x' }],
    });
    expect(neighbour.body).toMatchObject({ credentialStatus: 'ok', headersStatus: 'ok' });
    const unreadable = {
      credentialStatus: 'enter-again',
      credentials: [],
      headersStatus: 'enter-again',
      headers: {},
    };
    const list = await ours('/api/admin/model-providers');
    expect(list.body.data).toMatchObject([unreadable, { name: 'neighbour', credentialStatus: 'ok' }]);
    expect((await ours(providerPath)).body).toMatchObject(unreadable);
    const renamed = await ours(providerPath, 'PATCH', { name: 'renamed' });
    expect([renamed.status, renamed.body]).toMatchObject([200, { ...unreadable, name: 'renamed' }]);

    const embeds = { model: 'embeds', input: 'x' };
    const refused = await ours('/v1/embeddings', 'POST', embeds);
    expect([refused.status, refused.body.error.code]).toEqual([502, 'credential_unreadable']);
    expect(refused.body.error.message).toMatch(/can not be read any more: enter it again/);
    expect(refused.headers.get('x-should-retry')).toBe('false');
    expect(asked).toEqual([]);

    const half = await ours(providerPath, 'PATCH', { credentials: [{ apiKey: 'sk-entered-again' }] });
    expect(half.body).toMatchObject({ credentialStatus: 'ok', headersStatus: 'enter-again' });
    const whole = await ours(providerPath, 'PATCH', { headers: { 'x-tenant': 'again' } });
    expect(whole.body).toMatchObject({ credentialStatus: 'ok', headersStatus: 'ok' });
    await eventually(async () => (await ours('/v1/embeddings', 'POST', embeds)).status === 200);
    expect(asked.at(-1)).toMatchObject({ authorization: 'Bearer sk-entered-again', 'x-tenant': 'again' });
    // A rival knows nothing of it.
    const rival = await app.tenant();
    expect((await rival.get(providerPath)).status).toBe(404);
  });

  it('a reply ends as failed and says why', async () => {
    const rival = await app.tenant();
    const client = await rival.send(says('hello'));
    await client.end();
    expect(client.last).toMatchObject({ status: 'finished' });
    const chat = await ours('/v1/chat/completions', 'POST', {
      model: 'chats',
      messages: [{ role: 'user', content: 'x' }],
    });
    expect([chat.status, chat.body.error.code]).toEqual([502, 'credential_unreadable']);
    const rows = await query(database.url, `select outcome from usage_ledger where tenant_id = $1`, [
      sealed.acme.id,
    ]);
    expect(rows).toEqual([{ outcome: 'failed' }]);
  });

  it('tools say it; the others of their version are used', async () => {
    const { body } = await ours(sealed.versionPath);
    expect(body.tools.map(({ name, headersStatus }: any) => [name, headersStatus])).toEqual([
      ['plain', undefined],
      ['shop', 'enter-again'],
    ]);
    const again = await ours(sealed.versionPath.replace(/\/\d+$/, ''), 'POST', {
      modelServiceId: body.modelServiceId,
      tools: [{ type: 'openapi', name: 'shop', spec, baseUrl: origin(), headers: { authorization: KEY } }],
    });
    expect(again.body.tools).toMatchObject([{ headersStatus: 'ok' }]);
  });

  it('webhooks say it, wait, and can be given another secret', async () => {
    const { hooked } = sealed;
    const path = `/api/v1/im${hooked.path}`;
    expect((await ours(path)).body).toMatchObject({ secretStatus: 'enter-again' });
    const message = { type: 'single', source: 'ann', target: 'bob', msg: { content: 'hello' } };
    expect((await ours('/api/v1/im/messages', 'POST', message)).status).toBeLessThan(300);
    await hooked.all(({ last_error: error }) => error?.includes('can not be read any more') ?? false);
    expect(hooked.receiver.received).toEqual([]);

    const replaced = await ours(`${path}/secret`, 'POST');
    expect([replaced.status, replaced.body]).toMatchObject([200, { id: hooked.hook.id, secretStatus: 'ok' }]);
    expect(replaced.body.secret).toMatch(/^whsec_/);
    await query(database.url, 'update webhook_deliveries set next_at = now()');
    const [delivery] = await hooked.receiver.has(1);
    const { 'parley-timestamp': time, 'parley-signature': signed } = delivery!.headers;
    expect(signed).toBe(signature(replaced.body.secret as string, String(time), delivery!.text));
    const rival = await app.tenant();
    expect((await rival.post(`${path}/secret`)).status).toBe(404);
  });

  it('the start names what can not be read', async () => {
    const found = await app.app.nest.get(SealedValues).unreadable();
    const { acme, hooked } = sealed;
    expect(found.map(({ what, id }) => [what, id])).toEqual([
      ['model provider', acme.providerId],
      ['assistant', sealed.versionPath.split('/').at(-1)],
      ['webhook', hooked.hook.id],
    ]);
    const text = named(found);
    expect(text).toContain(`model provider "provider" (${acme.providerId}) of tenant ${acme.id}`);
    expect(text).toContain('assistant "main, version 2"');
    expect(text).not.toContain('sk-provider');
    expect(await app.app.nest.get(SealedValues).reseal()).toMatchObject({
      resealed: 0,
      current: 0,
      unreadable: [{ id: acme.providerId }, {}, {}],
    });
  });
});

it('with the key before as the previous one everything goes on, is sealed anew while a server runs, and needs it no more', async () => {
  const before = await bootApp({}, database.url);
  const sealed = await furnished(before);
  const { acme, hooked, providerPath, versionPath, token } = sealed;
  const shared = await fetch(`${before.url}/api/admin/model-providers`, {
    method: 'POST',
    headers: { 'x-api-key': ROOT_KEY, 'content-type': 'application/json' },
    body: JSON.stringify({
      name: 'shared',
      kind: 'openai-compatible',
      baseUrl: origin(),
      credentials: [{ apiKey: KEY }],
    }),
  });
  expect(shared.status).toBe(201);
  const changed = await bootApp({}, database.url, { secretKey: NEW_KEY, previousSecretKey: SECRET_KEY });
  const fine = async (app: TestApp): Promise<void> => {
    const get = (path: string) => at(app, path, acme.apiKey);
    expect((await get(providerPath)).body).toMatchObject({ credentialStatus: 'ok', headersStatus: 'ok' });
    expect((await get(versionPath)).body.tools[1]).toMatchObject({ headersStatus: 'ok' });
    expect((await get(`/api/v1/im${hooked.path}`)).body).toMatchObject({ secretStatus: 'ok' });
    asked = [];
    expect(
      (await at(app, '/v1/embeddings', acme.apiKey, 'POST', { model: 'embeds', input: 'x' })).status,
    ).toBe(200);
    expect(asked).toMatchObject([{ authorization: `Bearer ${KEY}`, 'x-tenant': 'acme-header-1' }]);
  };
  try {
    // As an earlier release wrote it: the same bytes under the same key, without its name.
    await query(
      database.url,
      `update model_providers set credentials = regexp_replace(credentials, '^v2\\.[^.]+', 'v1')`,
    );
    await fine(changed);
    expect(await reseal(NEW_KEY, SECRET_KEY)).toEqual({
      code: 0,
      out: 'sealed anew: 4, under this key before: 0\n',
      err: '',
    });
    await fine(changed);
    const again = await changed.app.nest.get(SealedValues).reseal();
    expect(again).toEqual({ resealed: 0, current: 4, unreadable: [] });
  } finally {
    await Promise.all([before.close(), changed.close()]);
  }
  const after = await bootApp({}, database.url, { secretKey: NEW_KEY });
  try {
    await fine(after);
    expect(await after.app.nest.get(SealedValues).unreadable()).toEqual([]);
  } finally {
    await after.close();
  }
  // Tokens and addresses of files that were signed before.
  const [old, both, alone] = [
    new UserTokens(SECRET_KEY),
    new UserTokens(NEW_KEY, SECRET_KEY),
    new UserTokens(NEW_KEY),
  ];
  expect(await both.read(token)).toEqual(await old.read(token));
  expect(await alone.read(token)).toBeNull();
  const hash = 'ab'.repeat(32) as BlobHash;
  const link = new URLSearchParams(new BlobLinks(SECRET_KEY).sign(acme.id as TenantId, hash));
  const check = (links: BlobLinks) =>
    links.check(acme.id as TenantId, hash, link.get('expires'), link.get('signature'));
  expect(check(new BlobLinks(NEW_KEY, SECRET_KEY))).toBeGreaterThan(0);
  expect(check(new BlobLinks(NEW_KEY))).toBeNull();
}, 90_000);

it('the quickstart starts with another key', async () => {
  const dataDir = await mkdtemp(join(tmpdir(), 'parley-secret-key-'));
  const env = {
    NODE_ENV: 'development',
    PARLEY_DATA_DIR: dataDir,
    OPENAI_API_KEY: KEY,
    OPENAI_BASE_URL: `${origin()}/v1`,
  };
  const prepared = async (secretKey: string) => {
    const app = await bootApp(env, database.url, { secretKey });
    try {
      const file = await app.app.nest.get(Quickstart).prepare(app.url, ROOT_KEY);
      const list = await at(app, '/api/admin/model-providers', file.apiKey);
      return { tenantId: file.tenantId, providers: list.body.data };
    } finally {
      await app.close();
    }
  };
  try {
    const first = await prepared(SECRET_KEY);
    const second = await prepared(NEW_KEY);
    expect(second.tenantId).toBe(first.tenantId);
    expect(second.providers).toMatchObject([{ credentialStatus: 'ok', headersStatus: 'ok' }]);
  } finally {
    await rm(dataDir, { recursive: true, force: true });
  }
});

/** The command, as an operator runs it. */
async function reseal(key: string, previous: string) {
  const child = spawn(process.execPath, [join(__dirname, '../../dist/src/reseal.js')], {
    env: {
      PATH: process.env.PATH,
      NODE_ENV: 'production',
      DATABASE_URL: database.url,
      PARLEY_SECRET_KEY: key,
      PARLEY_SECRET_KEY_PREVIOUS: previous,
    },
  });
  let [out, err] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (text: string) => (out += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (err += text));
  const code = await new Promise<number | null>((done) => child.once('close', done));
  return { code, out, err };
}
