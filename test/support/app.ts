import 'reflect-metadata';
import { request, type IncomingMessage } from 'node:http';
import { startApp, type App } from '../../src/app';
import { Config } from '../../src/config';
import type { NameLookup } from '../../src/outbound';
import { freshDatabase } from './database';

export const SECRET_KEY = 'secret-of-the-tests-0123456789abcdef';
export const ROOT_KEY = 'root-key-of-the-tests-0123456789abcdef';

/** A tenant with everything the main job needs, and a way to ask for things in its name. */
export interface TestTenant {
  readonly id: string;
  readonly apiKey: string;
  readonly keyId: string;
  readonly assistantId: string;
  readonly versionId: string;
  readonly serviceId: string;
  readonly providerId: string;
  get(path: string, headers?: Record<string, string>): Promise<Answer>;
  post(path: string, body?: unknown, headers?: Record<string, string>): Promise<Answer>;
  patch(path: string, body: unknown): Promise<Answer>;
  send(body: unknown, options?: SendOptions): Promise<SseClient>;
}

export interface Answer {
  readonly status: number;
  readonly headers: IncomingMessage['headers'];
  readonly text: string;
  // Tests look into answers of many shapes; what they expect of them is their assertion.
  readonly body: any;
}

export interface SendOptions {
  readonly headers?: Record<string, string>;
  /** Default: the tenant's assistant version; null: without an assistant. */
  readonly versionId?: string | null;
}

export interface TenantSettings {
  readonly baseUrl?: string;
  readonly model?: string;
  readonly prompt?: string;
  readonly contextWindow?: number;
  readonly service?: Record<string, unknown>;
  readonly provider?: Record<string, unknown>;
  readonly scopes?: readonly string[];
}

export interface TestApp {
  readonly app: App;
  readonly url: string;
  readonly rootKey: string;
  readonly databaseUrl: string;
  tenant(settings?: TenantSettings): Promise<TestTenant>;
  close(): Promise<void>;
}

export interface BootSettings {
  readonly lookup?: NameLookup;
  readonly secretKey?: string;
  readonly previousSecretKey?: string;
}

/** The application on port 0 with a database of its own. */
export async function bootApp(
  env: Record<string, string> = {},
  databaseUrl?: string,
  { lookup, secretKey = SECRET_KEY, previousSecretKey }: BootSettings = {},
): Promise<TestApp> {
  const database = databaseUrl ? { url: databaseUrl, drop: async () => undefined } : await freshDatabase();
  const config = Config.load({
    NODE_ENV: 'test',
    PORT: '0',
    LOG_LEVEL: 'error',
    DRAIN_TIMEOUT_MS: '200',
    ...env,
  });
  const app = await startApp({
    config,
    databaseUrl: database.url,
    secretKey,
    previousSecretKey,
    rootKey: ROOT_KEY,
    ...(lookup && { lookup }),
  });
  return {
    app,
    url: app.url,
    rootKey: ROOT_KEY,
    databaseUrl: database.url,
    tenant: (settings) => makeTenant(app.url, ROOT_KEY, settings),
    close: async () => {
      await app.close();
      await database.drop();
    },
  };
}

let tenants = 0;

/** Through the admin wire, as an operator would. */
export async function makeTenant(
  url: string,
  rootKey: string,
  settings: TenantSettings = {},
): Promise<TestTenant> {
  const made = async (path: string, body: unknown, tenantId?: string): Promise<Record<string, string>> => {
    const headers = { 'x-api-key': rootKey, ...(tenantId && { 'tenant-id': tenantId }) };
    const answer = await ask(url, 'POST', path, body, headers);
    if (answer.status >= 300) throw new Error(`${path}: ${answer.status} ${answer.text}`);
    return answer.body as Record<string, string>;
  };
  tenants += 1;
  const tenant = await made('/api/admin/tenants', { name: `tenant ${tenants}` });
  const id = tenant.id!;
  const scopes = settings.scopes ?? ['admin', 'dialogue', 'im', 'models', 'usage'];
  const key = await made(`/api/admin/tenants/${id}/api-keys`, { name: `key of ${tenants}`, scopes });
  const kind = settings.baseUrl ? 'openai-compatible' : 'builtin';
  const provider = await made(
    '/api/admin/model-providers',
    {
      name: 'provider',
      kind,
      ...(settings.baseUrl && { baseUrl: settings.baseUrl, credentials: [{ apiKey: 'upstream-secret' }] }),
      ...settings.provider,
    },
    id,
  );
  const service = await made(
    '/api/admin/model-services',
    {
      name: 'service',
      providerId: provider.id,
      model: settings.model ?? 'echo',
      ...(settings.contextWindow && { contextWindow: settings.contextWindow }),
      ...settings.service,
    },
    id,
  );
  const assistant = await made('/api/admin/assistants', { slug: 'main', name: 'Main' }, id);
  const version = await made(
    `/api/admin/assistants/${assistant.id}/versions`,
    { modelServiceId: service.id, prompt: settings.prompt ?? 'Be brief.' },
    id,
  );
  await made(`/api/admin/assistants/${assistant.id}/versions/${version.id}/publish`, undefined, id);
  const own = { 'x-api-key': `Bearer ${key.key}` };
  const versionId = version.id!;
  return {
    id,
    apiKey: key.key!,
    keyId: key.id!,
    assistantId: assistant.id!,
    versionId,
    serviceId: service.id!,
    providerId: provider.id!,
    get: (path, headers) => ask(url, 'GET', path, undefined, { ...own, ...headers }),
    post: (path, body, headers) => ask(url, 'POST', path, body, { ...own, ...headers }),
    patch: (path, body) => ask(url, 'PATCH', path, body, own),
    send: (body, options = {}) => {
      const target = options.versionId === undefined ? versionId : options.versionId;
      const path = `/api/copywriting/dialogue/sse/send-message${target === null ? '' : `/${target}`}`;
      return SseClient.open(url, 'POST', path, body, { ...own, ...options.headers });
    },
  };
}

/** What a user says, as the wire wants it. */
export const says = (content: string, more: Record<string, unknown> = {}, parentId?: string) => ({
  speechUserDialogueMessage: { content, ...(parentId !== undefined && { parentId }) },
  ...more,
});

export async function ask(
  url: string,
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const response = await open(url, method, path, body, headers);
  let text = '';
  for await (const chunk of response.setEncoding('utf8')) text += chunk as string;
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    parsed = undefined;
  }
  return { status: response.statusCode!, headers: response.headers, text, body: parsed };
}

function open(
  url: string,
  method: string,
  path: string,
  body: unknown,
  headers: Record<string, string>,
): Promise<IncomingMessage> {
  const payload = body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body);
  return new Promise((resolve, reject) => {
    const { hostname, port } = new URL(url);
    const outgoing = request({
      hostname,
      port,
      path,
      method,
      agent: false,
      headers: {
        ...(payload !== undefined && {
          'content-type': 'application/json',
          // In chunks its length is not told.
          ...(headers['transfer-encoding'] === undefined && { 'content-length': Buffer.byteLength(payload) }),
        }),
        ...headers,
      },
    });
    outgoing
      .once('response', resolve)
      .once('error', reject)
      .end(payload === undefined ? undefined : Buffer.from(payload));
  });
}

export interface SseEvent {
  readonly id: string;
  readonly data: any;
}

/** A client of an event stream that reads at its own pace. */
export class SseClient {
  readonly events: SseEvent[] = [];
  private buffer = '';
  private ended = false;
  private waiters: (() => void)[] = [];

  private constructor(readonly response: IncomingMessage) {
    response.setEncoding('utf8').on('data', (text: string) => {
      this.buffer += text;
      const blocks = this.buffer.split('\n\n');
      this.buffer = blocks.pop()!;
      for (const block of blocks) {
        const data = /^data: (.*)$/m.exec(block)?.[1];
        if (data !== undefined)
          this.events.push({ id: /^id: (.*)$/m.exec(block)?.[1] ?? '', data: JSON.parse(data) as unknown });
      }
      this.wake();
    });
    response.once('close', () => {
      this.ended = true;
      this.wake();
    });
  }

  /** Of a response that was asked for otherwise. */
  static of(response: IncomingMessage): SseClient {
    return new SseClient(response);
  }

  static async open(
    url: string,
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<SseClient> {
    return new SseClient(await open(url, method, path, body, { accept: 'text/event-stream', ...headers }));
  }

  get status(): number {
    return this.response.statusCode!;
  }

  /** Waits until the stream has brought `count` events, the dialogue record included. */
  async has(count: number): Promise<SseEvent[]> {
    while (this.events.length < count) {
      if (this.ended) throw new Error(`the stream ended after ${this.events.length} events`);
      await new Promise<void>((resolve) => this.waiters.push(resolve));
    }
    return this.events;
  }

  /** Waits for the end of the response. */
  async end(): Promise<SseEvent[]> {
    while (!this.ended) await new Promise<void>((resolve) => this.waiters.push(resolve));
    return this.events;
  }

  /** The answer of a request that was not a stream. */
  async json(): Promise<unknown> {
    await this.end();
    return JSON.parse(this.buffer) as unknown;
  }

  get record(): SseEvent['data'] {
    return this.events[0]!.data as unknown;
  }

  get last(): SseEvent['data'] {
    return this.events.at(-1)!.data as unknown;
  }

  get text(): string {
    return this.events.map(({ data }) => (data as { result?: string }).result ?? '').join('');
  }

  drop(): void {
    this.response.destroy();
  }

  private wake(): void {
    const { waiters } = this;
    this.waiters = [];
    for (const wake of waiters) wake();
  }
}

/** Polls until `probe` gives something; for what other processes do in their own time. */
export async function eventually<T>(
  probe: () => Promise<T | null | undefined | false>,
  withinMs = 20_000,
): Promise<T> {
  const deadline = Date.now() + withinMs;
  for (;;) {
    const value = await probe();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`did not happen within ${withinMs} ms: ${probe.toString()}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
