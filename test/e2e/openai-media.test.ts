import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { crc32, inflateSync } from 'node:zlib';
import OpenAI, { APIError, toFile } from 'openai';
import { ImageFetcher } from '../../src/generations';
import { ask, bootApp, eventually, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { MediaUpstream, wav, type MediaScript } from '../support/media-upstream';
import { gate } from '../support/upstream';
import { LocalOutbound } from '../support/outbound';

/** protocols/openai.md beside chat, by the official SDK. */
const TYPE = { text: 0, image: 1, embedding: 2, speech: 3 } as const;
const CREDENTIAL = 'upstream-secret';
const PNG = Buffer.from('89504e470d0a1a0a00000000', 'hex').toString('base64');

let app: TestApp;
let upstream: MediaUpstream;
let acme: TestTenant;
let rival: TestTenant;
let builtin: TestTenant;
let client: OpenAI;
let count = 0;

const clientOf = ({ apiKey }: TestTenant, prefix = '/v1') =>
  new OpenAI({ baseURL: `${app.url}${prefix}`, apiKey, maxRetries: 0 });

beforeAll(async () => {
  [app, upstream] = await Promise.all([bootApp(), MediaUpstream.start()]);
  acme = await app.tenant({
    baseUrl: upstream.url,
    provider: {
      connectTimeoutMs: 1_000,
      firstPieceTimeoutMs: 1_000,
      idleTimeoutMs: 1_000,
      totalTimeoutMs: 2_000,
    },
  });
  rival = await app.tenant();
  builtin = await app.tenant();
  client = clientOf(acme);
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

async function service(tenant: TestTenant, name: string, type: number, more: Record<string, unknown> = {}) {
  const { body, status, text } = await tenant.post('/api/admin/model-services', {
    name,
    model: name,
    type,
    providerId: tenant.providerId,
    ...more,
  });
  if (status >= 300) throw new Error(text);
  return (body as { id: string }).id;
}

/** A model whose answers this test writes, and the service for it. */
async function scripted(type: number, script: MediaScript, more: Record<string, unknown> = {}) {
  count += 1;
  const model = `media-${count}`;
  upstream.on(model, script);
  const id = await service(acme, model, type, more);
  return { model, id };
}

const ledger = (serviceId: string) =>
  query<Record<string, any>>(
    app.databaseUrl,
    `select tenant_id, user_id, key_id, attempts, prompt_tokens, completion_tokens, total_tokens, estimated, credits::float,
       outcome from usage_ledger where model_service_id = $1`,
    [serviceId],
  );

async function failure(promise: Promise<unknown>): Promise<APIError> {
  const error: unknown = await promise.then(
    () => new Error('did not fail'),
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof APIError)) throw error;
  return error;
}

const audio = (bytes: Buffer = wav(0.1), name = 'speech.bin') => toFile(bytes, name);

describe('embeddings', () => {
  it('come as the SDK asks for them, whatever the provider sends, in order, with one ledger row', async () => {
    const { model, id } = await scripted(
      TYPE.embedding,
      (e) =>
        e.json({
          data: [
            { index: 1, embedding: [0.5, -1.5] },
            { index: 0, embedding: [1, 2.25] },
          ],
          usage: { prompt_tokens: 6, total_tokens: 6 },
        }),
      { inputPrice: 1_000_000, parameters: { truncate: true } },
    );
    const made = await client.embeddings.create({ model, input: ['one', '二'], user: 'ann', dimensions: 2 });
    expect(made).toMatchObject({ object: 'list', model, usage: { prompt_tokens: 6, total_tokens: 6 } });
    expect(made.data.map(({ embedding, index }) => [index, [...embedding]])).toEqual([
      [0, [1, 2.25]],
      [1, [0.5, -1.5]],
    ]);
    const [asked] = upstream.seen(model);
    expect(asked).toMatchObject({
      path: '/v1/embeddings',
      headers: { authorization: `Bearer ${CREDENTIAL}` },
      body: { model, input: ['one', '二'], encoding_format: 'base64', dimensions: 2, truncate: true },
    });
    expect(await ledger(id)).toEqual([
      {
        tenant_id: acme.id,
        key_id: acme.keyId,
        user_id: 'ann',
        attempts: 1,
        prompt_tokens: 6,
        completion_tokens: 0,
        total_tokens: 6,
        estimated: false,
        credits: 6,
        outcome: 'finished',
      },
    ]);
  });

  it('of tokens pass through, base64 becomes floats for who asks so, usage is estimated and marked', async () => {
    const floats = Buffer.from(new Float32Array([0.25, -8]).buffer).toString('base64');
    const { model, id } = await scripted(TYPE.embedding, (e) => e.json({ data: [{ embedding: floats }] }));
    const made = await client.embeddings.create({ model, input: [7, 8, 9], encoding_format: 'float' });
    expect(made.data[0]!.embedding).toEqual([0.25, -8]);
    expect(upstream.seen(model)[0]!.body.input).toEqual([7, 8, 9]);
    expect(await ledger(id)).toMatchObject([{ prompt_tokens: 3, estimated: true, user_id: acme.keyId }]);
  });

  it('are asked for again without encoding_format when the provider refuses that, and it is remembered', async () => {
    const { model, id } = await scripted(TYPE.embedding, (e) =>
      e.body.encoding_format
        ? e.fail(400, '{"error":{"message":"unknown field encoding_format"}}')
        : e.json({ data: [{ embedding: [1] }] }),
    );
    for (let n = 0; n < 2; n += 1) {
      const made = await client.embeddings.create({ model, input: 'x' });
      expect([...made.data[0]!.embedding]).toEqual([1]);
    }
    expect(upstream.seen(model).map(({ body }) => 'encoding_format' in body)).toEqual([true, false, false]);
    expect((await ledger(id)).map(({ attempts }) => attempts as number).sort()).toEqual([1, 2]);
  });

  it.each<[string, Record<string, unknown>, string]>([
    ['no input', {}, 'input'],
    ['an empty text', { input: '' }, 'input'],
    ['an empty list', { input: [] }, 'input'],
    ['a list with an empty text', { input: ['a', ''] }, 'input'],
    ['NUL', { input: 'a\0b' }, 'input'],
    ['texts and tokens mixed', { input: ['a', [1]] }, 'input'],
    ['tokens that are none', { input: [1.5] }, 'input'],
    ['2,049 texts', { input: Array(2_049).fill('a') }, 'input'],
    ['too many characters', { input: ['x'.repeat(500_000), 'x'.repeat(500_001)] }, 'input'],
    ['a format that is none', { input: 'a', encoding_format: 'hex' }, 'encoding_format'],
    ['no dimensions', { input: 'a', dimensions: 0 }, 'dimensions'],
    ['a user that is too long', { input: 'a', user: 'x'.repeat(129) }, 'user'],
    ['no model', { input: 'a', model: undefined }, 'model'],
  ])('with %s: 400', async (_, body, param) => {
    const { model, id } = await scripted(TYPE.embedding, () => undefined);
    const answer = await acme.post('/v1/embeddings', { model, ...body });
    expect(answer.status).toBe(400);
    expect(answer.body).toMatchObject({ error: { type: 'invalid_request_error', param } });
    expect(upstream.seen(model)).toHaveLength(0);
    expect(await ledger(id)).toHaveLength(0);
  });

  it('take 2,048 texts', async () => {
    const { model } = await scripted(TYPE.embedding, (e) =>
      e.json({ data: (e.body.input as string[]).map((_, index) => ({ index, embedding: [index] })) }),
    );
    const made = await client.embeddings.create({ model, input: Array<string>(2_048).fill('a') });
    expect([...made.data[2_047]!.embedding]).toEqual([2_047]);
  });
});

describe('a provider that', () => {
  it.each<[string, MediaScript, number, RegExp, number]>([
    ['answers 400', (e) => e.fail(400, '{"error":{"message":"bad model"}}'), 502, /400: bad model/, 1],
    ['quotes the key', (e) => e.fail(401, `{"error":"key ${CREDENTIAL}"}`), 502, /401: key \[key\]/, 1],
    ['answers 500 again and again', (e) => e.fail(500, '<html>oops</html>'), 502, /500\./, 3],
    ['keeps answering 429', (e) => e.fail(429, '{"error":{"message":"slow down"}}'), 429, /slow down/, 3],
    ['explains at great length', (e) => e.fail(400, 'x'.repeat(2_000_000)), 502, /400\./, 1],
    ['sends garbage', (e) => e.response.end('<html>'), 502, /no JSON/, 1],
    ['sends other JSON', (e) => e.json({ data: 'x' }), 502, /no embeddings/, 1],
    ['sends too few', (e) => e.json({ data: [] }), 502, /no embeddings/, 1],
    ['sends no numbers', (e) => e.json({ data: [{ embedding: ['1'] }] }), 502, /no embeddings/, 1],
    ['reports an error with 200', (e) => e.json({ error: { message: 'quota' } }), 502, /quota/, 1],
    ['breaks off', (e) => e.raw('{"data":').then(() => e.response.destroy()), 502, /broke off/, 1],
    ['says nothing', () => undefined, 504, /no answer in time/, 1],
    ['never ends', (e) => e.raw('{"data":'), 504, /too long in all/, 1],
    ['redirects', (e) => e.fail(302, '', { location: 'http://127.0.0.1:1/' }), 502, /302/, 1],
  ])('%s', async (_, script, status, message, attempts) => {
    const { model, id } = await scripted(TYPE.embedding, script);
    const error = await failure(client.embeddings.create({ model, input: 'four' }));
    expect(error.status).toBe(status);
    expect(error.message).toMatch(message);
    expect(error.message).not.toMatch(/upstream-secret|127\.0\.0\.1/);
    expect(await ledger(id)).toMatchObject([
      { outcome: 'failed', attempts, estimated: true, prompt_tokens: 0, completion_tokens: 0 },
    ]);
  });

  it('sends more than 32 MiB is cut off', async () => {
    const { model, id } = await scripted(TYPE.embedding, async (e) => {
      const piece = Buffer.alloc(1_048_576, 0x20);
      for (let n = 0; n < 40 && !e.response.destroyed; n += 1) await Promise.race([e.raw(piece), e.aborted]);
    });
    const error = await failure(client.embeddings.create({ model, input: 'x' }));
    expect([error.status, error.message]).toEqual([502, expect.stringMatching(/32 MiB/)]);
    expect(await ledger(id)).toHaveLength(1);
  });

  it('is not there', async () => {
    const { body } = await acme.post('/api/admin/model-providers', {
      name: 'gone',
      kind: 'openai-compatible',
      baseUrl: 'http://127.0.0.1:1/v1',
    });
    const id = await service(acme, 'of-gone', TYPE.embedding, { providerId: body.id });
    const error = await failure(client.embeddings.create({ model: 'of-gone', input: 'x' }));
    expect([error.status, error.message]).toEqual([502, expect.stringMatching(/could not be reached/)]);
    expect(await ledger(id)).toMatchObject([{ attempts: 3, outcome: 'failed' }]);
  });

  it('answers 429 with retry-after is asked again after that time, or the client is told when it is too long', async () => {
    const times: number[] = [];
    const short = await scripted(TYPE.embedding, (e) => {
      times.push(performance.now());
      if (e.attempt === 1) return e.fail(429, '{}', { 'retry-after': '0.5' });
      return e.json({ data: [{ embedding: [1] }] });
    });
    await client.embeddings.create({ model: short.model, input: 'x' });
    expect(times[1]! - times[0]!).toBeGreaterThan(480);
    expect(await ledger(short.id)).toMatchObject([{ attempts: 2, outcome: 'finished' }]);
    const long = await scripted(TYPE.embedding, (e) => e.fail(429, '{}', { 'retry-after': '3600' }));
    const error = await failure(client.embeddings.create({ model: long.model, input: 'x' }));
    expect([error.status, error.headers?.get('retry-after')]).toEqual([429, '3600']);
    expect(await ledger(long.id)).toMatchObject([{ attempts: 1, outcome: 'failed' }]);
  });
});

describe('a client that leaves', () => {
  it.each<[string, number, (model: string, signal: AbortSignal) => Promise<unknown>]>([
    [
      'embeddings',
      TYPE.embedding,
      (model, signal) => client.embeddings.create({ model, input: 'x' }, { signal }),
    ],
    ['images', TYPE.image, (model, signal) => client.images.generate({ model, prompt: 'x' }, { signal })],
    [
      'a transcript',
      TYPE.speech,
      async (model, signal) => client.audio.transcriptions.create({ model, file: await audio() }, { signal }),
    ],
  ])('aborts the provider: %s', async (_, type, call) => {
    const { opened, open } = gate();
    const { model, id } = await scripted(type, async (exchange) => {
      open();
      await exchange.aborted;
    });
    const leaving = new AbortController();
    const called = call(model, leaving.signal).catch((error: unknown) => error);
    await opened;
    leaving.abort();
    expect(await called).toBeInstanceOf(OpenAI.APIUserAbortError);
    await upstream.seen(model)[0]!.aborted;
    const rows = await eventually(async () => {
      const found = await ledger(id);
      return found.length > 0 && found;
    });
    expect(rows).toMatchObject([{ outcome: 'stopped', estimated: true }]);
    expect(upstream.seen(model)).toHaveLength(1);
  });
});

it('a server that stops lets nothing go unrecorded', async () => {
  const stopping = await bootApp();
  const tenant = await stopping.tenant({ baseUrl: upstream.url });
  const { opened, open } = gate();
  upstream.on('stopping', async (exchange) => {
    open();
    await exchange.aborted;
  });
  await service(tenant, 'stopping', TYPE.embedding);
  const called = tenant.post('/v1/embeddings', { model: 'stopping', input: 'x' }).then(
    ({ status }) => status,
    () => 0,
  );
  await opened;
  await stopping.app.close();
  expect([0, 503]).toContain(await called);
  const rows = await query(stopping.databaseUrl, 'select outcome from usage_ledger');
  expect(rows).toEqual([{ outcome: 'interrupted' }]);
  await stopping.close();
});

describe('images', () => {
  it('are passed through both ways: only what the client sent, all that the provider says', async () => {
    const { model, id } = await scripted(TYPE.image, (e) =>
      e.json({
        created: 5,
        size: '1024x1024',
        data: [{ b64_json: PNG, url: null, revised_prompt: 'a cat, sitting' }],
        usage: { input_tokens: 9, output_tokens: 100, total_tokens: 109 },
      }),
    );
    const made = await client.images.generate({
      model,
      prompt: 'a cat',
      n: 1,
      size: '1024x1024',
      user: 'bo',
    });
    expect(made).toMatchObject({
      created: 5,
      size: '1024x1024',
      data: [{ b64_json: PNG, revised_prompt: 'a cat, sitting' }],
      usage: { total_tokens: 109 },
    });
    expect(upstream.seen(model)[0]!.path).toBe('/v1/images/generations');
    expect(upstream.seen(model)[0]!.body).toEqual({
      model,
      prompt: 'a cat',
      n: 1,
      size: '1024x1024',
      user: 'bo',
    });
    expect(await ledger(id)).toMatchObject([
      { prompt_tokens: 9, completion_tokens: 100, total_tokens: 109, estimated: false, user_id: 'bo' },
    ]);
  });

  it('become a data: URL for who asks for a URL, also when the provider refuses response_format', async () => {
    const { model } = await scripted(TYPE.image, (e) =>
      'response_format' in e.body
        ? e.fail(400, '{"error":{"message":"Unknown parameter: response_format"}}')
        : e.json({ data: [{ b64_json: PNG }] }),
    );
    const made = await client.images.generate({ model, prompt: 'x', response_format: 'url' });
    expect(made.data).toEqual([{ url: `data:image/png;base64,${PNG}` }]);
  });

  it('are not fetched from private addresses, nor from anything but the web', async () => {
    let fetched = 0;
    const inside = createServer((_, response) => {
      fetched += 1;
      response.writeHead(200, { 'content-type': 'image/png' }).end('secret');
    });
    await new Promise<void>((resolve) => inside.listen(0, '127.0.0.1', resolve));
    const { port } = inside.address() as AddressInfo;
    for (const url of [
      `http://127.0.0.1:${port}/x.png`,
      `http://localhost:${port}/x.png`,
      `http://[::ffff:127.0.0.1]:${port}/x.png`,
      `http://2130706433:${port}/x.png`,
      'file:///etc/passwd',
      'nonsense',
    ]) {
      const { model, id } = await scripted(TYPE.image, (e) => e.json({ data: [{ url }] }));
      const error = await failure(
        client.images.generate({ model, prompt: 'x', response_format: 'b64_json' }),
      );
      expect([url, error.status]).toEqual([url, 502]);
      expect(error.message).toMatch(/could not be fetched/);
      expect(error.message).not.toContain(String(port));
      expect(await ledger(id)).toHaveLength(1);
      const plain = await client.images.generate({ model, prompt: 'x', response_format: 'url' });
      expect(plain.data).toEqual([{ url }]);
    }
    expect(fetched).toBe(0);
    inside.close();
  });

  it('are fetched from elsewhere, bounded and only if they are images', async () => {
    const outside = createServer((request, response) => {
      if (request.url === '/moved') response.writeHead(302, { location: '/ok' }).end();
      else if (request.url === '/round') response.writeHead(302, { location: '/round' }).end();
      else if (request.url === '/html') response.writeHead(200, { 'content-type': 'text/html' }).end('x');
      else if (request.url === '/large')
        response.writeHead(200, { 'content-type': 'image/png' }).end(Buffer.alloc(21_000_000));
      else if (request.url === '/ok')
        response.writeHead(200, { 'content-type': 'image/png' }).end(Buffer.from(PNG, 'base64'));
    });
    await new Promise<void>((resolve) => outside.listen(0, '127.0.0.1', resolve));
    const base = `http://127.0.0.1:${(outside.address() as AddressInfo).port}`;
    const fetcher = new ImageFetcher(new LocalOutbound());
    const { signal } = new AbortController();
    for (const path of ['/ok', '/moved'])
      expect((await fetcher.fetch(base + path, signal)).toString('base64')).toBe(PNG);
    expect((await fetcher.fetch(`data:image/png;base64,${PNG}`, signal)).toString('base64')).toBe(PNG);
    for (const path of ['/round', '/html', '/large']) {
      await expect(fetcher.fetch(base + path, signal)).rejects.toMatchObject({ code: 'PROVIDER_FAILED' });
    }
    const leaving = new AbortController();
    const hanging = fetcher.fetch(`${base}/hangs`, leaving.signal);
    leaving.abort(new Error('left'));
    await expect(hanging).rejects.toThrow('left');
    outside.closeAllConnections();
    outside.close();
  });

  it.each<[string, Record<string, unknown>, string]>([
    ['no prompt', {}, 'prompt'],
    ['a prompt that is too long', { prompt: 'x'.repeat(32_001) }, 'prompt'],
    ['eleven', { prompt: 'x', n: 11 }, 'n'],
    ['a size that is no word', { prompt: 'x', size: { w: 1 } }, 'size'],
    ['a format that is none', { prompt: 'x', response_format: 'gif' }, 'response_format'],
  ])('with %s: 400', async (_, body, param) => {
    const { model } = await scripted(TYPE.image, () => undefined);
    const answer = await acme.post('/v1/images/generations', { model, ...body });
    expect([answer.status, answer.body.error.param]).toEqual([400, param]);
    expect(upstream.seen(model)).toHaveLength(0);
  });

  it.each<[string, MediaScript, RegExp]>([
    ['no list', (e) => e.json({ data: {} }), /no images/],
    ['none', (e) => e.json({ data: [] }), /no images/],
    ['neither way', (e) => e.json({ data: [{ b64_json: null }] }), /no images/],
  ])('that are %s: 502', async (_, script, message) => {
    const { model, id } = await scripted(TYPE.image, script);
    const error = await failure(client.images.generate({ model, prompt: 'x' }));
    expect([error.status, error.message]).toEqual([502, expect.stringMatching(message)]);
    expect(await ledger(id)).toMatchObject([{ outcome: 'failed' }]);
  });
});

describe('transcripts', () => {
  it('are made of what was sent, known by its content, under our own file name', async () => {
    const { model, id } = await scripted(TYPE.speech, (e) =>
      e.json({
        text: 'hello 世界',
        usage: { type: 'tokens', input_tokens: 14, output_tokens: 3, total_tokens: 17 },
      }),
    );
    const bytes = wav(1);
    const made = await client.audio.transcriptions.create({
      model,
      file: await audio(bytes, '../"evil\r\nname.mp3'),
      language: 'en',
      prompt: 'Greetings — 你好',
      temperature: 0.2,
      response_format: 'verbose_json',
      timestamp_granularities: ['word', 'segment'],
    });
    expect(made.text).toBe('hello 世界');
    const [asked] = upstream.seen(model);
    expect(asked!.path).toBe('/v1/audio/transcriptions');
    expect(asked!.body).toEqual({
      model,
      language: 'en',
      prompt: 'Greetings — 你好',
      temperature: '0.2',
      response_format: 'verbose_json',
      'timestamp_granularities[]': ['word', 'segment'],
    });
    expect([asked!.file!.name, asked!.file!.type]).toEqual(['audio.wav', 'audio/wav']);
    expect(Buffer.from(await asked!.file!.arrayBuffer()).equals(bytes)).toBe(true);
    expect(await ledger(id)).toMatchObject([
      { prompt_tokens: 14, completion_tokens: 3, total_tokens: 17, estimated: false, outcome: 'finished' },
    ]);
  });

  it('come as text, srt and vtt', async () => {
    const { model, id } = await scripted(TYPE.speech, (e) =>
      e.body.response_format === 'json'
        ? e.json({ text: 'plain words', usage: { type: 'duration', seconds: 3 } })
        : e.start('text/plain').response.end(`as ${e.body.response_format}`),
    );
    for (const [format, text] of [
      ['text', 'plain words'],
      ['srt', 'as srt'],
      ['vtt', 'as vtt'],
    ] as const) {
      const made = await client.audio.transcriptions.create({
        model,
        file: await audio(),
        response_format: format,
      });
      expect(made).toBe(text);
    }
    const rows = await ledger(id);
    expect(rows).toHaveLength(3);
    expect(rows.every(({ estimated }) => estimated === true)).toBe(true);
  });

  it.each<[string, string]>([
    ['mp3 with a tag', '494433040000000000000000'],
    ['mp3 frames', 'fffb90640000000000000000'],
    ['m4a', '0000002066747970 4d344120'],
    ['webm', '1a45dfa39f4286810142f781'],
    ['ogg', '4f6767530002000000000000'],
    ['flac', '664c61430000002212001200'],
  ])('are made of %s', async (_, head) => {
    const { model } = await scripted(TYPE.speech, (e) => e.json({ text: 'ok' }));
    const file = await audio(Buffer.from(head.replace(' ', ''), 'hex'));
    expect(await client.audio.transcriptions.create({ model, file })).toEqual({ text: 'ok' });
  });

  it('take 25 MiB, and not a byte more', async () => {
    // Not the impatient one: this much takes its time on a busy machine.
    const provider = await acme.post('/api/admin/model-providers', {
      name: 'patient',
      kind: 'openai-compatible',
      baseUrl: upstream.url,
      credentials: [{ apiKey: 'upstream-secret' }],
    });
    const { model } = await scripted(TYPE.speech, (e) => e.json({ text: String(e.file!.size) }), {
      providerId: (provider.body as { id: string }).id,
    });
    const most = Buffer.concat([wav(0.1), Buffer.alloc(26_214_400)]).subarray(0, 26_214_400);
    const made = await client.audio.transcriptions.create({ model, file: await audio(most) });
    expect(made.text).toBe('26214400');
    for (const size of [26_214_401, 40_000_000]) {
      const file = await audio(Buffer.concat([most, Buffer.alloc(size - most.length)]));
      const error = await failure(client.audio.transcriptions.create({ model, file }));
      expect([error.status, error.param]).toEqual([400, 'file']);
    }
    expect(upstream.seen(model)).toHaveLength(1);
  });

  it.each<[string, (form: FormData) => void, string | null]>([
    ['no file', (form) => form.delete('file'), 'file'],
    ['text for a file', (form) => form.set('file', 'text'), 'file'],
    ['an empty file', (form) => form.set('file', new Blob([]), 'x.wav'), 'file'],
    ['a picture', (form) => form.set('file', new Blob([Buffer.from(PNG, 'base64')]), 'x.wav'), 'file'],
    ['two files', (form) => form.append('file', new Blob([wav(0.1)]), 'y.wav'), 'file'],
    ['no model', (form) => form.delete('model'), 'model'],
    ['two models', (form) => form.append('model', 'x'), 'model'],
    ['a hot temperature', (form) => form.set('temperature', '2'), 'temperature'],
    ['a temperature that is none', (form) => form.set('temperature', 'warm'), 'temperature'],
    ['a format that is none', (form) => form.set('response_format', 'xml'), 'response_format'],
    ['another granularity', (form) => form.set('timestamp_granularities[]', 'x'), 'timestamp_granularities'],
    ['a stream', (form) => form.set('stream', 'true'), 'stream'],
    ['a prompt over 32 KiB', (form) => form.set('prompt', 'x'.repeat(40_000)), 'prompt'],
    [
      'too many fields',
      (form) => Array.from({ length: 30 }).forEach((_, n) => form.append(`f${n}`, 'x')),
      'body',
    ],
  ])('with %s: 400', async (_, change, param) => {
    const { model, id } = await scripted(TYPE.speech, () => undefined);
    const form = new FormData();
    form.set('model', model);
    form.set('file', new Blob([wav(0.1)]), 'x.wav');
    change(form);
    const answer = await fetch(`${app.url}/v1/audio/transcriptions`, {
      method: 'POST',
      headers: { authorization: `Bearer ${acme.apiKey}` },
      body: form,
    });
    const body = (await answer.json()) as { error: { param: string | null } };
    expect([answer.status, body.error.param]).toEqual([400, param]);
    expect(upstream.seen(model)).toHaveLength(0);
    expect(await ledger(id)).toHaveLength(0);
  });

  it('are refused clearly when the form is broken or none', async () => {
    const post = (type: string, body: string) =>
      acme.post('/v1/audio/transcriptions', body, { 'content-type': type });
    expect((await post('multipart/form-data', 'x')).status).toBe(400);
    expect((await post('multipart/form-data; boundary=b', 'no parts')).status).toBe(400);
    expect((await post('multipart/form-data; boundary=b', '--b\r\ncontent-dis')).status).toBe(400);
    expect((await post('application/json', '{}')).status).toBe(415);
  });

  it.each<[string, MediaScript]>([
    ['no text', (e) => e.json({ words: [] })],
    ['text for JSON', (e) => e.response.end('hello')],
  ])('that are %s: 502', async (_, script) => {
    const { model, id } = await scripted(TYPE.speech, script);
    const error = await failure(client.audio.transcriptions.create({ model, file: await audio() }));
    expect([error.status, error.message]).toEqual([502, expect.stringMatching(/no transcript/)]);
    expect(await ledger(id)).toMatchObject([{ outcome: 'failed' }]);
  });
});

describe('forms on any other route', () => {
  it('are refused as before', async () => {
    const headers = { 'content-type': 'multipart/form-data; boundary=b' };
    const form = '--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nx\r\n--b--\r\n';
    for (const path of ['/v1/embeddings', '/api/v1/images/generations', '/api/admin/model-services']) {
      expect([path, (await acme.post(path, form, headers)).status]).toEqual([path, 415]);
    }
  });
});

describe('a model', () => {
  it('is a service by name or id, own before shared, by its number', async () => {
    const script: MediaScript = (e) => e.json({ data: [{ embedding: [e.body.which as number] }] });
    upstream.on('which', script);
    const shared = async (path: string, body: unknown): Promise<string> => {
      const answer = await ask(app.url, 'POST', path, body, { 'x-api-key': app.rootKey });
      return (answer.body as { id: string }).id;
    };
    const sharedProvider = await shared('/api/admin/model-providers', {
      name: 'shared',
      kind: 'openai-compatible',
      baseUrl: upstream.url,
    });
    const which = (n: number) => ({ model: 'which', type: TYPE.embedding, parameters: { which: n } });
    const sharedService = await shared('/api/admin/model-services', {
      ...which(1),
      name: 'org/same name',
      orderNum: -5,
      providerId: sharedProvider,
    });
    const of = async (model: string, user = client) => {
      const made = await user.embeddings.create({ model, input: 'x' });
      return made.data[0]!.embedding[0];
    };
    expect(await of('org/same name')).toBe(1);
    await service(acme, 'org/same name', TYPE.embedding, { ...which(2), orderNum: 2 });
    const first = await service(acme, 'org/same name', TYPE.embedding, { ...which(3), orderNum: 1 });
    await eventually(async () => (await of('org/same name')) === 3);
    expect([await of(sharedService), await of(first)]).toEqual([1, 3]);
    expect(await of('org/same name', clientOf(rival))).toBe(1);

    const listed = (await client.models.list()).data.filter(({ id }) => id === 'org/same name');
    expect(listed).toMatchObject([{ owned_by: acme.id, type: 'embedding', object: 'model' }]);
    expect(await client.models.retrieve('org/same name')).toEqual(listed[0]);
    expect(await client.models.retrieve(first)).toEqual(listed[0]);
    expect(await client.models.retrieve(sharedService)).toMatchObject({
      id: sharedService,
      owned_by: 'parley',
    });
    expect(await clientOf(rival).models.retrieve('org/same name')).toMatchObject({ owned_by: 'parley' });
  });

  it('of another type, or nobody of the rival knows, is refused with nothing asked', async () => {
    const { model, id } = await scripted(TYPE.image, () => undefined);
    const wrong = await failure(client.embeddings.create({ model, input: 'x' }));
    expect([wrong.status, wrong.param]).toEqual([400, 'model']);
    const form = await failure(client.audio.transcriptions.create({ model, file: await audio() }));
    expect([form.status, form.param]).toEqual([400, 'model']);
    const text = await failure(client.images.generate({ model: 'service', prompt: 'x' }));
    expect([text.status, text.param]).toEqual([400, 'model']);
    for (const name of [model, id, 'no such', '9'.repeat(19), 'x'.repeat(400)]) {
      const error = await failure(clientOf(rival).images.generate({ model: name, prompt: 'x' }));
      expect([error.status, error.code]).toEqual([404, 'model_not_found']);
      expect(error.message).toContain(`The model "${name}" does not exist or this key may not use it.`);
      expect((await failure(clientOf(rival).models.retrieve(name))).status).toBe(404);
    }
    expect(upstream.seen(model)).toHaveLength(0);
    expect(await ledger(id)).toHaveLength(0);
  });

  it('list holds all of them, more than a page, and every published agent', async () => {
    for (let n = 0; n < 205; n += 1) await service(rival, `many-${n}`, n % 4);
    await rival.post('/api/admin/assistants', { slug: 'draft', name: 'Draft' });
    const rivalClient = clientOf(rival, '/api/v1');
    const models = await eventually(async () => {
      const { data } = await rivalClient.models.list();
      return data.some(({ id }) => id === 'many-204') && data;
    });
    const ids = models.map(({ id }) => id);
    expect(ids.filter((id) => id.startsWith('many-'))).toHaveLength(205);
    expect(new Set(ids).size).toBe(ids.length);
    expect(ids).toContain('agent:main');
    expect(ids).not.toContain('agent:draft');
    expect(JSON.stringify(models)).not.toContain(acme.id);
    const agent = await rivalClient.models.retrieve('agent:main');
    expect(agent).toMatchObject({ object: 'model', owned_by: rival.id, type: 'agent' });
    expect(Math.abs(agent.created - Date.now() / 1_000)).toBeLessThan(600);
    expect((await failure(rivalClient.models.retrieve('agent:draft'))).status).toBe(404);
  });

  it('needs a key, and its scope', async () => {
    const stranger = new OpenAI({ baseURL: `${app.url}/v1`, apiKey: 'sk-nonsense', maxRetries: 0 });
    expect((await failure(stranger.models.list())).status).toBe(401);
    expect((await failure(stranger.embeddings.create({ model: 'x', input: 'x' }))).status).toBe(401);
    const file = await audio();
    expect((await failure(stranger.audio.transcriptions.create({ model: 'x', file }))).status).toBe(401);
    const im = clientOf(await app.tenant({ scopes: ['im'] }));
    expect((await failure(im.models.list())).status).toBe(403);
    const models = clientOf(await app.tenant({ scopes: ['models'] }));
    expect((await models.models.list()).data.map(({ id }) => id)).toContain('service');
  });
});

describe('without a provider', () => {
  it('embeddings are unit vectors that the text alone decides', async () => {
    const id = await service(builtin, 'demo-embedding', TYPE.embedding);
    const demo = clientOf(builtin);
    const of = async (input: string | string[], dimensions?: number) =>
      (
        await demo.embeddings.create({ model: 'demo-embedding', input, ...(dimensions && { dimensions }) })
      ).data.map(({ embedding }) => [...embedding]);
    const [[a], [again], [b]] = [await of('a'), await of(['a']), await of('b')];
    expect(a).toHaveLength(64);
    expect(Math.hypot(...a!)).toBeCloseTo(1);
    expect(again).toEqual(a);
    expect(b).not.toEqual(a);
    expect((await of('a', 8))[0]).toHaveLength(8);
    const error = await failure(
      demo.embeddings.create({
        model: 'demo-embedding',
        input: Array<string>(2_048).fill('a'),
        dimensions: 8_192,
      }),
    );
    expect(error.status).toBe(502);
    expect(await ledger(id)).toHaveLength(5);
  });

  it('images are PNGs, transcripts say that they are a demo', async () => {
    await service(builtin, 'demo-image', TYPE.image);
    await service(builtin, 'demo-speech', TYPE.speech);
    const demo = clientOf(builtin);
    const made = await demo.images.generate({ model: 'demo-image', prompt: 'red', n: 2 });
    expect(made.data).toHaveLength(2);
    const png = Buffer.from(made.data![0]!.b64_json!, 'base64');
    expect(png.subarray(1, 4).toString()).toBe('PNG');
    for (let at = 8; at < png.length;) {
      const length = png.readUInt32BE(at);
      expect(png.readUInt32BE(at + 8 + length)).toBe(crc32(png.subarray(at + 4, at + 8 + length)));
      if (png.toString('latin1', at + 4, at + 8) === 'IDAT')
        expect(inflateSync(png.subarray(at + 8, at + 8 + length))).toHaveLength(64 * (64 * 3 + 1));
      at += 12 + length;
    }
    const url = await demo.images.generate({ model: 'demo-image', prompt: 'red', response_format: 'url' });
    expect(url.data![0]!.url).toMatch(/^data:image\/png;base64,/);
    const file = await audio();
    const said = await demo.audio.transcriptions.create({ model: 'demo-speech', file });
    expect(said.text).toMatch(/demo model.*wav/);
    const vtt = await demo.audio.transcriptions.create({
      model: 'demo-speech',
      file,
      response_format: 'vtt',
    });
    expect(vtt).toMatch(/^WEBVTT\n/);
  });
});
