import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import axios, { type AxiosInstance } from 'axios';
import { ask, bootApp, type TestApp, type TestTenant } from '../support/app';
import { MediaUpstream, wav } from '../support/media-upstream';
import { Upstream } from '../support/upstream';

/*
 * The two ways in which the assistant platform's published clients call it, both with axios as it is, no `Accept` set:
 * one instance with the credentials and `content-type: application/json` as its defaults, and a small backend that
 * passes its own clients' requests on, parameters and empty strings included. Paths come with and without `/api`.
 */

let app: TestApp;
let texts: Upstream;
let media: MediaUpstream;
let acme: TestTenant;
let rival: TestTenant;
let poem: string;
let picture: string;

const PIXEL =
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';

beforeAll(async () => {
  [app, texts, media] = await Promise.all([bootApp(), Upstream.start(), MediaUpstream.start()]);
  acme = await app.tenant({ baseUrl: texts.url, model: 'acme' });
  rival = await app.tenant({ baseUrl: texts.url, model: 'rival' });
  texts.on('acme', async (exchange) => {
    for (const piece of ['中国', '必胜', '!']) await exchange.piece(piece);
    await exchange.done({ prompt_tokens: 7, completion_tokens: 3 });
  });
  const provider = await created('/api/admin/model-providers', {
    name: 'media',
    kind: 'openai-compatible',
    baseUrl: media.url,
    credentials: [{ apiKey: 'sk-media' }],
  });
  const service = (type: number, model: string) =>
    created('/api/admin/model-services', { name: model, model, type, providerId: provider });
  media.on('draws', (e) => e.json({ data: [{ b64_json: PIXEL }] }));
  media.on('hears', (e) => e.json({ text: 'what was said' }));
  const [draws] = await Promise.all([service(1, 'draws'), service(3, 'hears')]);
  const variables = [{ name: 'topic', label: 'Topic', type: 'text', required: true }];
  const base = { description: '', variables, promptTemplate: 'On {{topic}}' };
  poem = await created('/api/admin/generation-apps', {
    ...base,
    name: 'Poem',
    type: 0,
    modelServiceId: acme.serviceId,
  });
  picture = await created('/api/admin/generation-apps', {
    ...base,
    name: 'Picture',
    type: 1,
    modelServiceId: draws,
  });
});
afterAll(async () => {
  await app.close();
  await Promise.all([texts.close(), media.close()]);
});

async function created(path: string, body: object): Promise<string> {
  // An operator's: a tenant's own provider must not be on a private address.
  const headers = { 'x-api-key': app.rootKey, 'tenant-id': acme.id };
  const answer = await ask(app.url, 'POST', path, body, headers);
  if (answer.status !== 201) throw new Error(answer.text);
  return (answer.body as { id: string }).id;
}

interface PlatformEvent {
  readonly id?: string;
  readonly result?: string;
  readonly isEnd?: boolean;
  readonly messageId?: string;
  readonly speechUserDialogueMessage?: { readonly id: string };
}

/** A client of axios gets a stream as one text. */
function eventsOf(text: string): PlatformEvent[] {
  return text
    .split('\n')
    .filter((line) => line.startsWith('data:'))
    .map((line) => JSON.parse(line.slice('data:'.length)) as PlatformEvent);
}

const saidIn = (events: readonly PlatformEvent[]) => events.map(({ result = '' }) => result).join('');

describe('one axios instance for everything', () => {
  let client: AxiosInstance;
  beforeAll(() => {
    client = axios.create({
      baseURL: app.url,
      headers: {
        'x-api-key': `Bearer ${acme.apiKey}`,
        'tenant-id': acme.id,
        'Content-Type': 'application/json',
      },
    });
  });

  it('holds a dialogue with an assistant, and reads it again', async () => {
    const { data: scene } = await client.get(`/copywriting/scene/user/${acme.versionId}`);
    expect(scene).toMatchObject({ code: 200, msg: 'success' });
    const send = async (body: object) =>
      eventsOf(
        (await client.post<string>(`/copywriting/dialogue/sse/send-message/${acme.versionId}`, body)).data,
      );
    const first = await send({ speechUserDialogueMessage: { content: '中国必胜' } });
    const { id } = first[0]!;
    expect([saidIn(first), first.at(-1)!.isEnd]).toEqual(['中国必胜!', true]);
    const next = await send({
      speechUserDialogueMessage: { content: 'and on', parentId: first[0]!.speechUserDialogueMessage!.id },
      id,
    });
    expect(next[0]!.id).toBe(id);
    const { data: messages } = await client.get(`/copywriting/message/list/${id}`);
    expect(messages.rows.map((row: any) => [row.role, row.content])).toEqual([
      ['user', '中国必胜'],
      ['assistant', '中国必胜!'],
      ['user', 'and on'],
      ['assistant', '中国必胜!'],
    ]);
    const params = { pageNum: 1, pageSize: 10, manageId: acme.assistantId, isUser: true };
    const { data: dialogues } = await client.get('/copywriting/dialogue/list', { params });
    expect(dialogues).toMatchObject({ code: 200, total: 1, rows: [{ id }] });
    expect((await client.get(`/copywriting/dialogue/sse/close/${id}`)).data).toMatchObject({ code: 200 });
  });

  it('talks to a model without an assistant, under /api', async () => {
    const { data } = await client.post<string>('/api/copywriting/dialogue/sse/send-message', {
      speechUserDialogueMessage: { content: 'hello' },
      modelServiceId: acme.serviceId,
    });
    expect(saidIn(eventsOf(data))).toBe('中国必胜!');
  });

  it('has texts and pictures made, and lists them', async () => {
    const { data: text } = await client.post(`/copywriting/userCopywriting/${poem}`, {
      params: { topic: '春' },
    });
    expect(text).toMatchObject({ code: 200, data: { result: '中国必胜!', status: 'finished' } });
    const { data: image } = await client.post(`/copywriting/userCopywriting/${picture}`, {
      params: { topic: '春' },
    });
    expect(image.data.images).toMatchObject([{ width: 1, height: 1, mimeType: 'image/png' }]);
    const shown = await axios.get<ArrayBuffer>(image.data.images[0].url as string, {
      responseType: 'arraybuffer',
    });
    expect(Buffer.from(shown.data).toString('base64')).toBe(PIXEL);
    const params = {
      templateId: poem,
      pageNum: 1,
      pageSize: 20,
      orderByColumn: 'create_time',
      isAsc: 'desc',
    };
    const { data: records } = await client.get('/copywriting/userCopywriting/record-list', { params });
    expect(records).toMatchObject({ total: 1, rows: [{ id: text.data.id, params: { topic: '春' } }] });
  });

  it('turns speech to text, and reads which models there are', async () => {
    const base64 = wav(1).toString('base64');
    const { data: heard } = await client.post('/copywriting/message/audio-to-text', {
      base64,
      format: 'wav',
    });
    expect(heard).toEqual({ code: 200, msg: 'success', data: 'what was said' });
    const params = { pageNum: 1, pageSize: 10, orderByColumn: 'orderNum', modelServiceType: 0 };
    const { data: models } = await client.get('/copywriting/user-model/model-list', { params });
    expect(models.rows.map(({ id }: { id: string }) => id)).toContain(acme.serviceId);
  });

  it('with a form it makes JSON of, for all its defaults, is told what to send instead', async () => {
    const form = new FormData();
    form.set('file', new Blob([new Uint8Array(wav(1))]), 'speech.wav');
    const refused = client.post('/copywriting/message/audio-to-text', form);
    await expect(refused).rejects.toMatchObject({ response: { status: 400, data: { code: 400 } } });
    const { data } = await client.post('/copywriting/message/audio-to-text', form, {
      headers: { 'Content-Type': 'multipart/form-data' },
    });
    expect(data).toEqual({ code: 200, msg: 'success', data: 'what was said' });
  });

  it("with a key of one tenant and the other's id gets 401, of the other's things 404", async () => {
    const headers = { 'tenant-id': rival.id };
    await expect(client.get('/copywriting/user-model/model-list', { headers })).rejects.toMatchObject({
      response: { status: 401, data: { code: 401 } },
    });
    const missing = client.get(`/copywriting/scene/user/${rival.versionId}`);
    await expect(missing).rejects.toMatchObject({ response: { status: 404, data: { code: 404 } } });
  });
});

/** A page's backend: keeps the credentials, and passes on what its page asks for. */
class Backend {
  private constructor(
    private readonly server: Server,
    readonly url: string,
  ) {}

  static async start(platform: string, headers: Record<string, string>, modelServiceId: string) {
    const server = createServer((request, response) => {
      void answerOf(request, platform, headers, modelServiceId).then(
        (answer) =>
          response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(answer)),
        (error: Error) => response.writeHead(500).end(error.message),
      );
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return new Backend(server, `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  }

  async close(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }
}

async function answerOf(
  request: IncomingMessage,
  platform: string,
  headers: Record<string, string>,
  modelServiceId: string,
): Promise<unknown> {
  const { pathname, searchParams } = new URL(request.url!, 'http://backend');
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  const text = Buffer.concat(chunks).toString('utf8');
  const body = text === '' ? undefined : (JSON.parse(text) as Record<string, any>);
  const [, what, id] = pathname.split('/');
  const get = async (path: string, params?: object) =>
    (await axios.get<unknown>(`${platform}/copywriting/${path}`, { headers, params })).data;
  const post = async (path: string, data: unknown) =>
    (await axios.post<unknown>(`${platform}/copywriting/${path}`, data, { headers })).data;
  switch (what) {
    case 'dialogues': {
      const { manageId, isUser = true, orderByColumn = '', isAsc = '' } = Object.fromEntries(searchParams);
      return get('dialogue/list', { pageNum: 1, pageSize: 10, orderByColumn, isAsc, manageId, isUser });
    }
    case 'messages':
      return get(`message/list/${id}`);
    case 'models':
      return get('user-model/model-list', Object.fromEntries(searchParams));
    case 'records':
      return get('userCopywriting/record-list', Object.fromEntries(searchParams));
    case 'generate':
      return post(`userCopywriting/${id}`, body);
    case 'speech':
      return post('message/audio-to-text', body);
    case 'chat': {
      const { content, dialogueId, parentId } = body!;
      return {
        data: await post('dialogue/sse/send-message', {
          speechUserDialogueMessage: { content: content as string, parentId: (parentId as string) || '' },
          isKb: false,
          tools: [],
          workflows: [],
          modelServiceId,
          name: content as string,
          id: (dialogueId as string) || '',
        }),
      };
    }
    default:
      throw new Error(`no such thing: ${pathname}`);
  }
}

describe.each(['', '/api', '//api'])('a backend that passes requests on to %s/copywriting', (prefix) => {
  let backend: Backend;
  let page: AxiosInstance;
  beforeAll(async () => {
    const headers = {
      'x-api-key': `Bearer ${acme.apiKey}`,
      'tenant-id': acme.id,
      'user-id': `page of ${prefix}`,
      'Content-Type': 'application/json',
    };
    backend = await Backend.start(`${app.url}${prefix}`, headers, acme.serviceId);
    page = axios.create({ baseURL: backend.url });
  });
  afterAll(() => backend.close());

  it('chats: a whole message as the name, empty strings for what is not there', async () => {
    const content = '长'.repeat(1_000);
    const { data } = await page.post<{ data: string }>('/chat', { content });
    const events = eventsOf(data.data);
    expect(saidIn(events)).toBe('中国必胜!');
    const again = await page.post<{ data: string }>('/chat', {
      content: 'on',
      dialogueId: events[0]!.id,
      parentId: events.at(-1)!.messageId,
    });
    expect(eventsOf(again.data.data)[0]!.id).toBe(events[0]!.id);
    const { data: messages } = await page.get(`/messages/${events[0]!.id}`);
    expect(messages.rows).toHaveLength(4);
  });

  it('lists dialogues and models with every parameter there is', async () => {
    const { data: dialogues } = await page.get(`/dialogues?manageId=${acme.assistantId}`);
    expect(dialogues).toMatchObject({ code: 200, rows: [] });
    const { data: models } = await page.get(
      '/models?pageNum=1&pageSize=10&orderByColumn=orderNum&modelServiceType=0',
    );
    expect(models.code).toBe(200);
    expect(models.rows.map(({ id }: { id: string }) => id)).toContain(acme.serviceId);
  });

  it('generates, lists what was generated, and turns speech to text', async () => {
    const { data: made } = await page.post(`/generate/${poem}`, { params: { topic: 'x' } });
    expect(made.data).toMatchObject({ result: '中国必胜!', totalTokens: 10 });
    const { data: records } = await page.get(
      `/records?templateId=${poem}&pageNum=1&pageSize=10&orderByColumn=create_time&isAsc=desc&isUser=true`,
    );
    expect(records).toMatchObject({ total: 1, rows: [{ id: made.data.id }] });
    const { data: heard } = await page.post('/speech', { base64: wav(1).toString('base64'), format: 'wav' });
    expect(heard.data).toBe('what was said');
  });
});
