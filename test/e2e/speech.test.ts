import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer, request, type ClientRequest, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { AudioFetcher } from '../../src/generations';
import { ask, bootApp, eventually, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { MediaUpstream, wav } from '../support/media-upstream';
import { LocalOutbound } from '../support/outbound';

/** `message/audio-to-text` of protocols/assistant-platform.md. */
const run = promisify(execFile);
const PATH = '/api/copywriting/message/audio-to-text';

let app: TestApp;
let upstream: MediaUpstream;
let files: Server;
let origin: string;
let acme: TestTenant;
let rival: TestTenant;
let serviceId: string;
let spoken: Buffer;

/** Speech, and not silence with a header: what a recorder makes. */
async function speak(text: string): Promise<Buffer> {
  const directory = await mkdtemp(join(tmpdir(), 'parley-speech-'));
  try {
    const file = join(directory, 'speech.wav');
    await run('espeak-ng', ['-w', file, text]).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error;
      throw new Error('this test speaks with espeak-ng: install the Debian package espeak-ng', {
        cause: error,
      });
    });
    return await readFile(file);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

beforeAll(async () => {
  spoken = await speak('Parley hears you.');
  files = createServer((request, response) => {
    const path = request.url ?? '';
    if (path === '/spoken') response.writeHead(200, { 'content-type': 'text/plain' }).end(spoken);
    else if (path === '/moved') response.writeHead(302, { location: '/spoken' }).end();
    else if (path === '/inside') response.writeHead(302, { location: 'http://10.0.0.1/secret' }).end();
    else if (path === '/file') response.writeHead(302, { location: 'file:///etc/passwd' }).end();
    else if (path === '/loop') response.writeHead(302, { location: '/loop' }).end();
    else if (path === '/page') response.writeHead(200).end('<html>a page of ours</html>');
    else if (path === '/large')
      response.writeHead(200).end(Buffer.concat([spoken, Buffer.alloc(26_214_400)]));
    else response.writeHead(404).end('not here');
  });
  await new Promise<void>((resolve) => files.listen(0, '127.0.0.1', resolve));
  origin = `http://127.0.0.1:${(files.address() as AddressInfo).port}`;
  [app, upstream] = await Promise.all([bootApp(), MediaUpstream.start()]);
  acme = await app.tenant({ baseUrl: upstream.url });
  rival = await app.tenant();
  serviceId = await service(acme, 'hears', 1);
  await service(acme, 'hears-too', 2);
});
afterAll(async () => {
  await app.close();
  await upstream.close();
  files.close();
});

async function service(tenant: TestTenant, model: string, orderNum: number, type = 3): Promise<string> {
  upstream.on(model, (e) => e.json({ text: `${model}: ${e.file!.size} bytes of ${e.file!.type}` }));
  const { body, status, text } = await tenant.post('/api/admin/model-services', {
    name: model,
    model,
    type,
    orderNum,
    providerId: tenant.providerId,
  });
  if (status !== 201) throw new Error(text);
  return (body as { id: string }).id;
}

/** As a browser sends it. */
async function upload(bytes: Buffer, fields: Record<string, string> = {}, tenant = acme, path = PATH) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.set(name, value);
  form.set('file', new Blob([new Uint8Array(bytes)]), '录音.mp3');
  const headers = { 'x-api-key': tenant.apiKey, 'user-id': 'ann' };
  const answer = await fetch(`${app.url}${path}`, { method: 'POST', headers, body: form });
  return {
    status: answer.status,
    body: (await answer.json()) as { code: number; msg: string; data?: string },
  };
}

/** The files of this test are on this machine. */
async function whileLocal<T>(work: () => Promise<T>): Promise<T> {
  const fetcher = app.app.nest.get(AudioFetcher);
  const local = new AudioFetcher(new LocalOutbound((address) => address !== '127.0.0.1'));
  const before = { ...fetcher };
  Object.assign(fetcher, local);
  try {
    return await work();
  } finally {
    Object.assign(fetcher, before);
  }
}

const heard = (model: string) => ({
  code: 200,
  msg: 'success',
  data: `${model}: ${spoken.length} bytes of audio/wav`,
});

describe('a recording', () => {
  it('in a form becomes text, under both prefixes, with one row in the ledger', async () => {
    for (const prefix of ['', '/api', '//api']) {
      const answer = await upload(spoken, {}, acme, PATH.replace('/api', prefix));
      expect(answer).toEqual({ status: 200, body: heard('hears') });
    }
    const [asked] = upstream.seen('hears');
    expect(asked!.file!.name).toBe('audio.wav');
    expect(Buffer.from(await asked!.file!.arrayBuffer()).equals(spoken)).toBe(true);
    expect(
      await query(
        app.databaseUrl,
        'select user_id, outcome, estimated from usage_ledger where model_service_id = $1',
        [serviceId],
      ),
    ).toEqual(Array(3).fill({ user_id: 'ann', outcome: 'finished', estimated: true }));
  });

  it('as base64 in JSON becomes text, whatever format it says it is', async () => {
    const base64 = spoken.toString('base64');
    for (const body of [
      { base64 },
      { base64, format: 'mp3' },
      { base64: `data:audio/wav;base64,${base64}`, url: '' },
      { base64: base64.replace(/.{76}/g, '$&\r\n') },
    ])
      expect((await acme.post(PATH, body)).body).toEqual(heard('hears'));
  });

  it('of nearly 25 MiB fits as a form and as JSON', async () => {
    const large = Buffer.concat([spoken, Buffer.alloc(26_214_400)]).subarray(0, 26_214_400);
    const data = 'hears: 26214400 bytes of audio/wav';
    expect((await upload(large)).body).toMatchObject({ data });
    expect((await acme.post(PATH, { base64: large.toString('base64') })).body).toMatchObject({ data });
    const larger = Buffer.concat([large, Buffer.alloc(1)]);
    expect((await upload(larger)).body).toEqual({ code: 400, msg: 'file: must be at most 25 MiB' });
    const json = await acme.post(PATH, { base64: larger.toString('base64') });
    expect(json.body).toEqual({ code: 400, msg: 'base64: must be at most 25 MiB' });
    const huge = await acme.post(PATH, { base64: 'A'.repeat(38_000_000) });
    expect([huge.status, huge.body.code]).toEqual([413, 413]);
  });

  it('at an address is fetched, also after it has moved', async () => {
    await whileLocal(async () => {
      for (const path of ['/spoken', '/moved'])
        expect((await acme.post(PATH, { url: `${origin}${path}` })).body).toEqual(heard('hears'));
    });
  });

  it('goes to the service that is named', async () => {
    const { body } = await acme.get('/api/copywriting/user-model/model-list?modelServiceType=3');
    const [first, second] = body.rows as { id: string }[];
    expect(first!.id).toBe(serviceId);
    expect((await upload(spoken, { modelServiceId: second!.id })).body).toEqual(heard('hears-too'));
    const base64 = spoken.toString('base64');
    const json = await acme.post(PATH, { base64, modelServiceId: second!.id });
    expect(json.body).toEqual(heard('hears-too'));
    for (const modelServiceId of [acme.serviceId, rival.serviceId, '999', 'x']) {
      const answer = await upload(spoken, { modelServiceId });
      expect(answer.body).toEqual({ code: 400, msg: expect.stringMatching(/^modelServiceId: /) as unknown });
    }
  });

  it('needs a service; a rival gets none of acme’s', async () => {
    const answer = await upload(spoken, {}, rival);
    expect(answer.body).toEqual({
      code: 400,
      msg: 'modelServiceId: is needed: this tenant has no speech-to-text model service',
    });
    const foreign = await upload(spoken, { modelServiceId: serviceId }, rival);
    expect(foreign.body).toMatchObject({
      code: 400,
      msg: expect.stringMatching(/^modelServiceId: /) as unknown,
    });
    await service(rival, 'rival-hears', 0);
    expect((await upload(spoken, {}, rival)).body.data).toMatch(/demo model.*wav/);
  });
});

describe('what is refused', () => {
  const nothingAsked = async (work: () => Promise<{ body: unknown }>, msg: string | RegExp) => {
    const before = upstream.seen('hears').length;
    const expected = typeof msg === 'string' ? msg : (expect.stringMatching(msg) as unknown);
    expect((await work()).body).toEqual({ code: 400, msg: expected });
    expect(upstream.seen('hears')).toHaveLength(before);
  };

  it.each<[string, unknown, string | RegExp]>([
    ['nothing', {}, /^file: is required in a form/],
    ['a list', [], /^file: is required in a form/],
    ['both', { url: 'http://x.example', base64: 'AAAA' }, /^file: is required in a form/],
    ['no base64', { base64: '!!!' }, 'base64: must be base64'],
    ['text', { base64: Buffer.from('hello there').toString('base64') }, /^base64: must be wav, mp3/],
    ['a number', { base64: 7 }, /^base64: /],
    ['no address', { url: 'nowhere' }, /^url: must be an address/],
    ['another protocol', { url: 'file:///etc/passwd' }, /^url: must be an address/],
    ['this machine', { url: 'http://127.0.0.1:9527/health' }, 'url: could not be fetched'],
    ['this machine by name', { url: 'http://localhost:9527/health' }, 'url: could not be fetched'],
    ['this machine as IPv6', { url: 'http://[::1]/x' }, 'url: could not be fetched'],
    ['a metadata service', { url: 'http://169.254.169.254/latest/' }, 'url: could not be fetched'],
    ['nobody', { url: 'http://no-such-host.invalid/' }, 'url: could not be fetched'],
  ])('%s: 400', async (_, body, msg) => {
    await nothingAsked(() => acme.post(PATH, body), msg);
  });

  it.each([
    ['/inside', 'url: could not be fetched'],
    ['/file', 'url: must be an address that begins with http:// or https://'],
    ['/loop', 'url: leads from one address to the next'],
    ['/missing', 'url: could not be fetched: it answers 404'],
    ['/large', 'url: must be a file of at most 25 MiB'],
    ['/page', /^url: must be wav, mp3/],
  ] as const)('an address that leads to %s: 400', async (path, msg) => {
    await whileLocal(() => nothingAsked(() => acme.post(PATH, { url: `${origin}${path}` }), msg));
  });

  it('a form without its file, with a picture, empty, broken: 400', async () => {
    await nothingAsked(
      () => upload(Buffer.from('89504e470d0a1a0a00000000', 'hex')),
      /^file: must be wav, mp3/,
    );
    await nothingAsked(() => upload(Buffer.alloc(0)), 'file: must not be empty');
    const headers = { 'content-type': 'multipart/form-data; boundary=b' };
    await nothingAsked(() => acme.post(PATH, '--b\r\ncontent-dis', headers), /^body: /);
  });

  it('more than 4 hours: 400', async () => {
    // A coding of 1,000 bytes a second, as telephones have them.
    const slow = wav(0);
    slow.writeUInt32LE(1_000, 28);
    slow.writeUInt32LE(14_401_000, 40);
    const long = Buffer.concat([slow, Buffer.alloc(14_401_000)]);
    await nothingAsked(() => upload(long), 'file: must be at most 4 hours long');
  });

  it('another type than a form and JSON: 415', async () => {
    const answer = await acme.post(PATH, '<audio/>', { 'content-type': 'text/xml' });
    expect([answer.status, answer.body]).toEqual([
      415,
      {
        code: 415,
        msg: 'Send JSON or a form: Content-Type application/json or multipart/form-data.',
      },
    ]);
  });

  it('the root key without a tenant: 400', async () => {
    const body = { base64: spoken.toString('base64') };
    const root = { 'x-api-key': app.rootKey };
    const expected = { code: 400, msg: 'tenant-id: is needed with the root key' };
    expect((await ask(app.url, 'POST', PATH, body, root)).body).toEqual(expected);
    const records = '/api/copywriting/userCopywriting/record-list';
    expect((await ask(app.url, 'GET', records, undefined, root)).body).toEqual(expected);
    const named = { ...root, 'tenant-id': acme.id };
    expect((await ask(app.url, 'POST', PATH, body, named)).body).toEqual(heard('hears'));
  });

  it('who has no key or not the scope: 401', async () => {
    const { apiKey } = await app.tenant({ scopes: ['usage'] });
    const stranger = { ...acme, apiKey: 'pk_1_x' };
    expect((await upload(spoken, {}, stranger)).status).toBe(401);
    expect((await upload(spoken, {}, { ...acme, apiKey })).status).toBe(401);
  });
});

/** Sends the head of a request and the body's beginning, and waits. */
function begin(path: string, headers: Record<string, string>) {
  const sent = request(`${app.url}${path}`, {
    method: 'POST',
    headers: { 'content-length': '30000000', ...headers },
  });
  const answer = new Promise<IncomingMessage>((resolve, reject) => {
    sent.on('response', resolve).on('error', reject);
  });
  answer.catch(() => undefined);
  sent.write('{"base64":"');
  return { sent, answer };
}

describe('before a body has come', () => {
  it.each([
    [PATH, 'application/json'],
    [PATH, 'multipart/form-data; boundary=b'],
    ['/v1/audio/transcriptions', 'multipart/form-data; boundary=b'],
  ])('who may not send it knows: %s as %s', async (path, type) => {
    const json = async ({ sent, answer }: ReturnType<typeof begin>) => {
      const response = await answer;
      const chunks: Buffer[] = [];
      for await (const chunk of response) chunks.push(chunk as Buffer);
      sent.destroy();
      return { status: response.statusCode, body: JSON.parse(Buffer.concat(chunks).toString()) as object };
    };
    const shape = path === PATH ? { code: 401, msg: expect.any(String) as unknown } : { error: {} };
    for (const key of [undefined, 'pk_1_x']) {
      const headers = { 'content-type': type, ...(key && { 'x-api-key': key }) };
      expect(await json(begin(path, headers))).toMatchObject({ status: 401, body: shape });
    }
  });

  it.each([
    [PATH, 'application/json'],
    ['/v1/audio/transcriptions', 'multipart/form-data; boundary=b'],
  ])(
    "a tenant's 17th at once is refused and another's are not; the 33rd is; %s",
    async (path, contentType) => {
      const rival = await app.tenant({ baseUrl: upstream.url });
      const third = await app.tenant({ baseUrl: upstream.url });
      const begun: ClientRequest[] = [];
      const sixteen = ({ apiKey }: TestTenant) => {
        const headers = {
          'content-type': contentType,
          'content-length': '20000000',
          'x-api-key': apiKey,
        };
        for (let n = 0; n < 16; n += 1) begun.push(begin(path, headers).sent.on('error', () => undefined));
      };
      // An empty form: what is let in is 400.
      const body = contentType === 'application/json' ? {} : '--b--';
      const small = (tenant: TestTenant) => tenant.post(path, body, { 'content-type': contentType });
      const refused = (tenant: TestTenant, status: number) =>
        eventually(async () => {
          const answer = await small(tenant);
          return answer.status === status && answer;
        });
      sixteen(acme);
      const over = await refused(acme, 429);
      expect(over.headers['retry-after']).toBe('1');
      expect(over.text).toContain('This tenant has 16 recordings under way');
      expect((await small(rival)).status).toBe(400);
      sixteen(rival);
      const full = await refused(third, 503);
      expect(full.headers['retry-after']).toBe('1');
      for (const sent of begun) sent.destroy();
      for (const tenant of [acme, rival, third]) await refused(tenant, 400);
    },
  );
});
