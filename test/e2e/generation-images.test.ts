import { createHash } from 'node:crypto';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { BlobLinks, BlobStore, type Blob, type BlobHash } from '../../src/blobs';
import { ImageFetcher } from '../../src/generations';
import { demoImage } from '../../src/model-services/drivers/builtin-media';
import { ask, bootApp, eventually, type Answer, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { change } from '../support/im';
import { MediaUpstream, type MediaScript } from '../support/media-upstream';
import { S3Server } from '../support/s3-server';
import { gate } from '../support/upstream';
import { LocalOutbound } from '../support/outbound';

/** "Generation apps" of protocols/assistant-platform.md: images. */
let app: TestApp;
let upstream: MediaUpstream;
let files: Server;
let acme: TestTenant;
let rival: TestTenant;
let count = 0;

const PNG = demoImage('red', 0);
const GIF = Buffer.from('474946383961020003000000', 'hex');
let served: { type: string; bytes: Buffer } = { type: 'image/gif', bytes: GIF };
const fileUrl = () => `http://127.0.0.1:${(files.address() as AddressInfo).port}/made.gif`;

beforeAll(async () => {
  files = createServer((_, response) =>
    response.writeHead(200, { 'content-type': served.type }).end(served.bytes),
  );
  await new Promise<void>((resolve) => files.listen(0, '127.0.0.1', resolve));
  [app, upstream] = await Promise.all([bootApp(), MediaUpstream.start()]);
  // The files of this test's provider are on this machine.
  Object.assign(app.app.nest.get(ImageFetcher), new ImageFetcher(new LocalOutbound()));
  acme = await app.tenant({
    baseUrl: upstream.url,
    provider: { firstPieceTimeoutMs: 30_000, totalTimeoutMs: 30_000 },
  });
  rival = await app.tenant();
});
afterAll(async () => {
  await app.close();
  await upstream.close();
  files.close();
});

async function scripted(script: MediaScript, parameters: Record<string, unknown> = {}, tenant = acme) {
  count += 1;
  const model = `painter-${count}`;
  upstream.on(model, script);
  const service = await tenant.post('/api/admin/model-services', {
    name: model,
    model,
    type: 1,
    providerId: tenant.providerId,
    inputPrice: 1_000_000,
    parameters: { quality: 'low' },
  });
  const made = await tenant.post('/api/admin/generation-apps', {
    name: 'Picture',
    type: 1,
    promptTemplate: 'A picture of {{what}}',
    variables: [{ name: 'what', type: 'text', required: true }],
    modelServiceId: (service.body as { id: string }).id,
    parameters,
  });
  if (made.status !== 201) throw new Error(made.text);
  return { model, id: (made.body as { id: string }).id };
}

const draw = (id: string, what = 'a rose', headers: Record<string, string> = {}, tenant = acme) =>
  tenant.post(`/api/copywriting/userCopywriting/${id}`, { params: { what } }, headers);
const fetched = async (url: string) => {
  const response = await fetch(url);
  return {
    status: response.status,
    headers: response.headers,
    bytes: Buffer.from(await response.arrayBuffer()),
  };
};
const ledger = (recordId: string) =>
  query<Record<string, unknown>>(
    app.databaseUrl,
    'select outcome, attempts, total_tokens, estimated, credits::float from usage_ledger where message_id = $1',
    [recordId],
  );
const recordOf = (id: string, tenant = acme): Promise<Answer> =>
  tenant.get(`/api/copywriting/userCopywriting/${id}`);

describe('an image', () => {
  it('is drawn, kept by us, and had at a signed address', async () => {
    const { id, model } = await scripted(
      (e) =>
        e.json({
          data: [{ b64_json: PNG.toString('base64') }],
          usage: { input_tokens: 9, output_tokens: 100, total_tokens: 109 },
        }),
      { size: '64x64' },
    );
    const { status, body } = await draw(id);
    expect(status).toBe(200);
    const { data } = body as { data: Record<string, any> };
    expect(data).toMatchObject({
      templateId: id,
      type: 1,
      status: 'finished',
      result: '',
      promptTokens: 9,
      completionTokens: 100,
      totalTokens: 109,
      youtaizhis: 9,
      images: [{ width: 64, height: 64, mimeType: 'image/png' }],
    });
    expect(upstream.seen(model)[0]!.body).toEqual({
      model,
      prompt: 'A picture of a rose',
      quality: 'low',
      size: '64x64',
      response_format: 'b64_json',
    });
    const { url } = (data.images as { url: string }[])[0]!;
    const sha256 = createHash('sha256').update(PNG).digest('hex');
    expect(url.startsWith(`${app.url}/api/copywriting/image/${acme.id}/${sha256}?expires=`)).toBe(true);
    const image = await fetched(url);
    expect(image.status).toBe(200);
    expect(image.bytes.equals(PNG)).toBe(true);
    expect(Object.fromEntries(image.headers)).toMatchObject({
      'content-type': 'image/png',
      'x-content-type-options': 'nosniff',
      'content-security-policy': "default-src 'none'",
      'cache-control': expect.stringMatching(
        /^private, max-age=863\d\d, immutable$|^private, max-age=86400, immutable$/,
      ) as unknown,
    });
    expect((await fetched(url.replace('/api/copywriting/', '/copywriting/'))).status).toBe(200);
    expect(await ledger(data.id as string)).toEqual([
      { outcome: 'finished', attempts: 1, total_tokens: 109, estimated: false, credits: 9 },
    ]);
    expect((await recordOf(data.id as string)).body.data).toMatchObject({
      params: { what: 'a rose' },
      images: [{ width: 64 }],
    });
    const { body: listed } = await acme.get(`/copywriting/userCopywriting/record-list?templateId=${id}`);
    expect(listed).toMatchObject({ total: 1, rows: [{ images: [{ mimeType: 'image/png' }] }] });
    expect((await fetched((listed.rows as (typeof data)[])[0]!.images[0].url as string)).status).toBe(200);
  });

  it('has an address for nobody who changes it, and none without its signature', async () => {
    const { id } = await scripted((e) => e.json({ data: [{ b64_json: PNG.toString('base64') }] }));
    const { url } = (await draw(id)).body.data.images[0] as { url: string };
    const other = createHash('sha256').update('x').digest('hex');
    for (const wrong of [
      url.replace(acme.id, rival.id),
      url.replace(/[0-9a-f]{64}/, other),
      url.replace(/expires=\d+/, (text) => `expires=${Number(text.slice(8)) + 1}`),
      url.replace(/signature=./, (text) => (text.endsWith('A') ? 'signature=B' : 'signature=A')),
      url.replace(/&signature.*/, ''),
      url.replace(/\?.*/, ''),
      `${url}&signature=x`,
      url.replace(acme.id, 'x'),
    ]) {
      const answer = await fetched(wrong);
      expect([wrong, answer.status]).toEqual([wrong, 401]);
      expect(JSON.parse(answer.bytes.toString())).toEqual({ code: 401, msg: expect.any(String) as unknown });
    }
    // A rival's key opens nothing.
    const path = new URL(url).pathname;
    expect((await rival.get(path)).status).toBe(401);
  });

  it('is nobody’s while its tenant is suspended', async () => {
    const tenant = await app.tenant();
    const { id } = await scripted(() => undefined, {}, tenant);
    const { url } = (await draw(id, 'x', {}, tenant)).body.data.images[0] as { url: string };
    expect((await fetched(url)).status).toBe(200);
    await change(app, tenant, { status: 'suspended' });
    const refused = await eventually(async () => {
      const answer = await fetched(url);
      return answer.status !== 200 && answer;
    });
    expect([refused.status, JSON.parse(refused.bytes.toString())]).toEqual([
      401,
      { code: 401, msg: 'This tenant is suspended.' },
    ]);
    await change(app, tenant, { status: 'active' });
    await eventually(async () => (await fetched(url)).status === 200);
  });

  it('is read once for all who ask at once; others wait, and too many are told to come back', async () => {
    const store = app.app.nest.get(BlobStore);
    const links = app.app.nest.get(BlobLinks);
    const { opened, open } = gate();
    const read: string[] = [];
    let reading = 0;
    let most = 0;
    Object.assign(store, {
      get: async (_: string, hash: string): Promise<Blob> => {
        read.push(hash);
        reading += 1;
        most = Math.max(most, reading);
        await opened;
        reading -= 1;
        return { bytes: PNG, mimeType: 'image/png' };
      },
    });
    try {
      const address = (n: number) => {
        const hash = createHash('sha256').update(`${n}`).digest('hex') as BlobHash;
        const query = links.sign(acme.id as Parameters<BlobLinks['sign']>[0], hash);
        return `${app.url}/api/copywriting/image/${acme.id}/${hash}?${query}`;
      };
      let answered = 0;
      const get = async (n: number) => {
        const answer = await fetched(address(n));
        answered += 1;
        return answer;
      };
      const same = Array.from({ length: 20 }, () => get(0));
      // 8 are read and 256 wait.
      const others = Array.from({ length: 270 }, (_, n) => get(n + 1));
      await eventually(() => Promise.resolve(answered === 7));
      expect(read).toHaveLength(8);
      open();
      expect((await Promise.all(same)).map(({ status }) => status)).toEqual(Array<number>(20).fill(200));
      const refused = (await Promise.all(others)).filter(({ status }) => status !== 200);
      expect(refused.map(({ status, headers }) => [status, headers.get('retry-after')])).toEqual(
        Array(7).fill([503, '1']),
      );
      expect([most, new Set(read).size, read.length]).toEqual([8, 264, 264]);
      expect((await get(0)).status).toBe(200);
      expect(read).toHaveLength(265);
    } finally {
      delete (store as Partial<BlobStore>).get;
    }
  });

  it('is fetched at once from where the provider says it is; its type is its content’s', async () => {
    served = { type: 'image/png', bytes: GIF };
    const { id } = await scripted((e) =>
      e.json({ data: [{ url: fileUrl() }, { b64_json: PNG.toString('base64') }] }),
    );
    const { body } = await draw(id);
    expect(body.data.images).toMatchObject([
      { width: 2, height: 3, mimeType: 'image/gif' },
      { width: 64, height: 64, mimeType: 'image/png' },
    ]);
    const image = await fetched(body.data.images[0].url as string);
    expect([image.headers.get('content-type'), image.bytes.equals(GIF)]).toEqual(['image/gif', true]);
  });

  it.each<[string, MediaScript]>([
    ['that is a page', (e) => e.json({ data: [{ b64_json: Buffer.from('<script>').toString('base64') }] })],
    ['that is an SVG', (e) => e.json({ data: [{ b64_json: Buffer.from('<svg/>').toString('base64') }] })],
    ['that is nowhere', (e) => e.json({ data: [{ url: 'http://127.0.0.1:9/x.png' }] })],
    ['that the provider refuses', (e) => e.fail(400, '{"error":{"message":"no such picture"}}')],
    [
      'over 20 MiB',
      (e) =>
        e.json({ data: [{ b64_json: Buffer.concat([PNG, Buffer.alloc(20_971_520)]).toString('base64') }] }),
    ],
  ])('%s: 502, its record failed, one row in the ledger', async (_, script) => {
    const { id } = await scripted(script);
    const { status, body } = await draw(id);
    expect([status, body.code]).toEqual([502, 502]);
    expect(body.data).toMatchObject({
      status: 'failed',
      images: [],
      error: { code: 502, msg: body.msg as string },
    });
    expect((await recordOf(body.data.id as string)).body.data).toMatchObject({ status: 'failed' });
    expect(await ledger(body.data.id as string)).toMatchObject([{ outcome: 'failed' }]);
  });

  it('that takes longer than 10 s is asked for by its record, and is the rival’s no more than any', async () => {
    const { opened, open } = gate();
    const { id, model } = await scripted(async (e) => {
      await opened;
      e.json({ data: [{ b64_json: PNG.toString('base64') }] });
    });
    const began = Date.now();
    const { status, body } = await draw(id);
    expect(Date.now() - began).toBeGreaterThan(9_500);
    expect([status, body.data.status, body.data.images]).toEqual([200, 'running', []]);
    const recordId = body.data.id as string;
    expect((await recordOf(recordId)).body.data).toMatchObject({ status: 'running' });
    expect((await recordOf(recordId, rival)).body).toMatchObject({ code: 404 });
    expect(await ledger(recordId)).toEqual([]);
    open();
    const done = await eventually(async () => {
      const { data } = (await recordOf(recordId)).body as { data: { status: string } };
      return data.status === 'finished' && data;
    });
    expect(done).toMatchObject({ images: [{ width: 64 }] });
    expect(upstream.seen(model)).toHaveLength(1);
    expect(await ledger(recordId)).toHaveLength(1);
  });

  it('with an Idempotency-Key is drawn once', async () => {
    const { id, model } = await scripted((e) => e.json({ data: [{ b64_json: PNG.toString('base64') }] }));
    const answers = await Promise.all([1, 2, 3].map(() => draw(id, 'x', { 'idempotency-key': 'once' })));
    expect(new Set(answers.map(({ body }) => body.data.id as string)).size).toBe(1);
    expect(answers.map(({ body }) => body.data.status as string)).toEqual([
      'finished',
      'finished',
      'finished',
    ]);
    expect(upstream.seen(model)).toHaveLength(1);
  });

  it('is drawn by any process: what one enqueues another may take', async () => {
    const other = await bootApp({}, app.databaseUrl);
    try {
      const { id, model } = await scripted((e) => e.json({ data: [{ b64_json: PNG.toString('base64') }] }));
      const path = `/api/copywriting/userCopywriting/${id}`;
      const answers = await Promise.all(
        Array.from({ length: 10 }, (_, n) =>
          ask(
            n % 2 ? app.url : other.url,
            'POST',
            path,
            { params: { what: `${n}` } },
            { 'x-api-key': acme.apiKey },
          ),
        ),
      );
      expect(answers.map(({ body }) => body.data.status as string)).toEqual(
        Array<string>(10).fill('finished'),
      );
      expect(upstream.seen(model)).toHaveLength(10);
    } finally {
      await other.close();
    }
  });

  it("does not wait for another tenant's thousand", async () => {
    const { opened, open } = gate();
    const { id, model } = await scripted(async (e) => {
      await opened;
      e.json({ data: [{ b64_json: PNG.toString('base64') }] });
    });
    const many = Array.from({ length: 20 }, () => draw(id));
    await eventually(() => Promise.resolve(upstream.seen(model).length === 8));
    const { id: other } = await scripted(() => undefined, {}, rival);
    expect((await draw(other, 'x', {}, rival)).body.data).toMatchObject({ status: 'finished' });
    expect(upstream.seen(model)).toHaveLength(8);
    open();
    const states = (await Promise.all(many)).map(({ body }) => body.data.status as string);
    expect(states).toEqual(Array<string>(20).fill('finished'));
  });

  it('is not taken on when a thousand of the tenant’s wait', async () => {
    const tenant = await app.tenant();
    const { id } = await scripted(() => undefined, {}, tenant);
    await query(
      app.databaseUrl,
      `insert into generation_records (id, tenant_id, app_id, type, user_id, created_by, model_service_id, params, prompt, parameters)
       select n, $1, $2, 1, 'u', 'k', 1, '{}', 'x', '{}' from generate_series(1, 1000) n`,
      [tenant.id, id],
    );
    const refused = await draw(id, 'x', {}, tenant);
    expect([refused.status, refused.headers['retry-after']]).toEqual([503, '10']);
    const { body } = await tenant.get('/copywriting/userCopywriting/record-list');
    expect(body.total).toBe(1_000);
  });

  it('of the built-in demo model needs no provider', async () => {
    const { id } = await scripted(() => undefined, {}, rival);
    const { body } = await draw(id, 'x', {}, rival);
    expect(body.data).toMatchObject({ status: 'finished', images: [{ mimeType: 'image/png', width: 64 }] });
  });
});

describe('a stopping server', () => {
  it('gives its images back, and the next one draws them', async () => {
    const stopping = await bootApp({}, app.databaseUrl);
    const { opened, open } = gate();
    const { id, model } = await scripted(async (e) => {
      if (e.attempt === 1) return open();
      e.json({ data: [{ b64_json: PNG.toString('base64') }] });
    });
    // Who of the two takes it is open; both get to the same end.
    const path = `/api/copywriting/userCopywriting/${id}`;
    const hanging = ask(stopping.url, 'POST', path, { params: { what: 'x' } }, { 'x-api-key': acme.apiKey });
    hanging.catch(() => undefined);
    await opened;
    const rows = await query<{ id: string }>(
      app.databaseUrl,
      'select id from generation_records where app_id = $1',
      [id],
    );
    const recordId = rows[0]!.id;
    await stopping.close();
    const end = await eventually(async () => {
      const { data } = (await recordOf(recordId)).body as { data: { status: string } };
      return data.status !== 'running' && data;
    }, 40_000);
    expect(end).toMatchObject({ status: 'finished' });
    expect(upstream.seen(model)).toHaveLength(2);
    expect(await ledger(recordId)).toHaveLength(1);
  }, 60_000);
});

describe('with a bucket', () => {
  it('images are in it, and not in PostgreSQL', async () => {
    const s3 = await S3Server.start();
    const bucketed = await bootApp({
      S3_BUCKET: 'pictures',
      S3_ENDPOINT: s3.url,
      S3_ACCESS_KEY_ID: s3.credentials.accessKeyId,
      S3_SECRET_ACCESS_KEY: s3.credentials.secretAccessKey,
      S3_FORCE_PATH_STYLE: 'true',
    });
    try {
      const tenant = await bucketed.tenant();
      const { id } = await scripted(() => undefined, {}, tenant);
      const { body } = await draw(id, 'x', {}, tenant);
      const { url } = body.data.images[0] as { url: string };
      const [key, object] = [...s3.objects][0]!;
      expect(url).toContain(key.replace('/pictures/', '/image/'));
      const image = await fetched(url);
      expect([image.status, image.bytes.equals(object.bytes)]).toEqual([200, true]);
      expect(await query(bucketed.databaseUrl, 'select 1 from blobs')).toEqual([]);
      s3.objects.clear();
      expect((await fetched(url)).status).toBe(404);
    } finally {
      await bucketed.close();
      await s3.close();
    }
  });
});
