import { demoImage } from '../../src/model-services/drivers/builtin-media';
import { ask, eventually, makeTenant, SseClient, type TestTenant } from '../support/app';
import { freshDatabase, query } from '../support/database';
import { MediaUpstream, type MediaScript } from '../support/media-upstream';
import { Server } from '../support/server';
import { gate, Upstream } from '../support/upstream';

const IMAGE = { data: [{ b64_json: demoImage('x', 0).toString('base64') }] };
const SECRETS = { PARLEY_SECRET_KEY: 's'.repeat(32), PARLEY_ROOT_KEY: 'r'.repeat(40) };

let upstream: MediaUpstream;
let texts: Upstream;
beforeAll(async () => {
  [upstream, texts] = await Promise.all([MediaUpstream.start(), Upstream.start()]);
});
afterAll(() => Promise.all([upstream.close(), texts.close()]));

async function appOn(
  server: Server,
  type: number,
  model: string,
): Promise<{ tenant: TestTenant; path: string }> {
  const { url, rootKey } = server.quickstart;
  const baseUrl = type === 1 ? upstream.url : texts.url;
  const tenant = await makeTenant(url, rootKey, { baseUrl, model, service: { type: 0 } });
  const made = async (path: string, input: object): Promise<string> => {
    const { status, text, body } = await tenant.post(`/api/admin/${path}`, input);
    if (status !== 201) throw new Error(text);
    return (body as { id: string }).id;
  };
  const { providerId } = tenant;
  const modelServiceId = await made('model-services', { name: 'one more', model, type, providerId });
  const id = await made('generation-apps', { name: 'x', type, promptTemplate: 'draw', modelServiceId });
  return { tenant, path: `/api/copywriting/userCopywriting/${id}` };
}

interface Row {
  readonly id: string;
  readonly status: string;
  readonly result: string;
  readonly images: { url: string }[];
}
async function onlyRecord({ quickstart: { url } }: Server, { apiKey }: TestTenant): Promise<Row> {
  const path = '/api/copywriting/userCopywriting/record-list';
  const { body } = await ask(url, 'GET', path, undefined, { 'x-api-key': apiKey });
  expect(body.total).toBe(1);
  return (body as { rows: [Row] }).rows[0];
}
const ended = (server: Server, tenant: TestTenant, withinMs: number) =>
  eventually(async () => {
    const record = await onlyRecord(server, tenant);
    return record.status !== 'running' && record;
  }, withinMs);

/** Sends, and waits until the provider has been asked once, for nothing. */
async function drawing(tenant: TestTenant, path: string, model: string, then: MediaScript) {
  const { opened, open } = gate();
  upstream.on(model, (e) => (e.attempt === 1 ? open() : then(e)));
  const lost = tenant.post(path, {});
  lost.catch(() => undefined);
  await opened;
}

it('killed while it draws: the next start draws it, asking the provider once more', async () => {
  let server = await Server.start();
  try {
    const { tenant, path } = await appOn(server, 1, 'embedded');
    await drawing(tenant, path, 'embedded', (e) => e.json(IMAGE));
    await server.end('SIGKILL');
    server = await Server.start({}, server.dataDir);
    const record = await ended(server, tenant, 40_000);
    expect(record).toMatchObject({ status: 'finished', images: [{ mimeType: 'image/png' }] });
    expect((await fetch(record.images[0]!.url)).status).toBe(200);
    expect(upstream.seen('embedded')).toHaveLength(2);
  } finally {
    await server.remove();
  }
}, 120_000);

describe('of two processes on one database', () => {
  let database: Awaited<ReturnType<typeof freshDatabase>>;
  const start = () => Server.start({ DATABASE_URL: database.url, ...SECRETS });
  const ledger = ({ id }: Row) =>
    query(database.url, 'select outcome from usage_ledger where message_id = $1', [id]);
  beforeAll(async () => {
    database = await freshDatabase();
  });
  afterAll(() => database.drop());

  it('one dies while it draws: the other does, after the lease, and the ledger has it once', async () => {
    const first = await start();
    const { tenant, path } = await appOn(first, 1, 'shared');
    await drawing(tenant, path, 'shared', (e) => e.json(IMAGE));
    const second = await start();
    try {
      await first.end('SIGKILL');
      const killedAt = Date.now();
      const record = await ended(second, tenant, 30_000);
      // Not before the lease is over: the other could be alive.
      expect(Date.now() - killedAt).toBeGreaterThan(5_000);
      expect(record.status).toBe('finished');
      expect(upstream.seen('shared')).toHaveLength(2);
      expect(await ledger(record)).toEqual([{ outcome: 'finished' }]);
    } finally {
      await Promise.all([first.remove(), second.remove()]);
    }
  }, 120_000);

  it('an image whose last attempt dies, too, ends as interrupted', async () => {
    const first = await start();
    const { tenant, path } = await appOn(first, 1, 'cursed');
    await drawing(tenant, path, 'cursed', () => undefined);
    await query(database.url, `update pgboss.job set retry_count = retry_limit where state = 'active'`);
    const second = await start();
    try {
      await first.end('SIGKILL');
      const record = await ended(second, tenant, 40_000);
      expect(record).toMatchObject({ status: 'interrupted', images: [] });
      expect(upstream.seen('cursed')).toHaveLength(1);
      expect(await ledger(record)).toEqual([{ outcome: 'interrupted' }]);
    } finally {
      await Promise.all([first.remove(), second.remove()]);
    }
  }, 120_000);

  it('one dies while it writes a text: it is interrupted within 15 s, and in the ledger once', async () => {
    const [first, second] = await Promise.all([start(), start()]);
    try {
      const { tenant, path } = await appOn(first, 0, 'writer');
      texts.on('writer', (e) => e.piece('this far'));
      const { url } = first.quickstart;
      const client = await SseClient.open(url, 'POST', path, {}, { 'x-api-key': tenant.apiKey });
      await client.has(1);
      await first.end('SIGKILL');
      const record = await ended(second, tenant, 15_000);
      expect(record).toMatchObject({ status: 'interrupted', result: '' });
      expect(await ledger(record)).toEqual([{ outcome: 'interrupted' }]);
      expect(texts.seen('writer')).toHaveLength(1);
    } finally {
      await Promise.all([first.remove(), second.remove()]);
    }
  }, 120_000);
});
