import { request, type IncomingMessage } from 'node:http';
import { ask, bootApp, eventually, type TestApp, type TestTenant } from '../support/app';
import { Channel } from '../support/channel';
import { query } from '../support/database';
import { imToken, Peer } from '../support/im';
import { gate, Upstream } from '../support/upstream';

/** What a key let in ends with the key, on every wire; what others have open goes on. */
let app: TestApp;
let upstream: Upstream;
let count = 0;

beforeAll(async () => {
  [app, upstream] = await Promise.all([bootApp(), Upstream.start()]);
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

const SCOPES = ['admin', 'dialogue', 'im', 'models', 'usage'];
const root = () => ({ 'x-api-key': app.rootKey });

/** An answer that is read as it comes. */
class Reading {
  text = '';
  private readonly ended: Promise<void>;

  private constructor(private readonly response: IncomingMessage) {
    response.setEncoding('utf8').on('data', (part: string) => (this.text += part));
    this.ended = new Promise((resolve) => response.once('close', resolve));
  }

  static open(path: string, key: string, body?: object, accept = 'text/event-stream'): Promise<Reading> {
    const headers = { 'x-api-key': key, 'content-type': 'application/json', accept };
    const options = { method: body ? 'POST' : 'GET', headers, agent: false };
    return new Promise((resolve, reject) => {
      request(app.url + path, options, (response) => resolve(new Reading(response)))
        .once('error', reject)
        .end(body && JSON.stringify(body));
    });
  }

  get status(): number {
    return this.response.statusCode!;
  }

  async has(text: string): Promise<this> {
    await eventually(() => Promise.resolve(this.text.includes(text)));
    return this;
  }

  async end(): Promise<string> {
    await this.ended;
    return this.text;
  }

  /** Of the last event that is JSON. */
  async last(): Promise<Record<string, any>> {
    const events = (await this.end()).split('\n\n').filter((event) => event.includes('data: {'));
    return JSON.parse(/^data: (.*)$/m.exec(events.at(-1)!)![1]!) as Record<string, any>;
  }
}

interface Story {
  readonly tenant: TestTenant;
  readonly model: string;
  /** The key that all of it was opened with. */
  readonly key: string;
  readonly keyId: string;
  readonly open: {
    readonly dialogue: Reading;
    readonly resumed: Reading;
    readonly kept: Reading;
    readonly stateless: Reading;
    readonly generation: Reading;
    readonly channel: Channel;
    readonly channelUser: Channel;
    readonly user: Peer;
  };
  /** Answers in one piece that are being waited for. */
  readonly whole: {
    readonly dialogue: Promise<Reading>;
    readonly kept: Promise<Reading>;
    readonly stateless: Promise<Reading>;
  };
  readonly tokens: { readonly im: string; readonly channel: string };
  go(): void;
}

/** Everything that can be open, with one key of a tenant, each in the middle of its answer. */
async function story(settings: object = {}): Promise<Story> {
  const { opened, open: go } = gate();
  const model = `hangs-${(count += 1)}`;
  upstream.on(model, async (exchange) => {
    await exchange.piece('well …');
    await opened;
    await exchange.done();
  });
  const tenant = await app.tenant({ baseUrl: upstream.url, model });
  const keys = `/api/admin/tenants/${tenant.id}/api-keys`;
  const made = await ask(app.url, 'POST', keys, { name: 'second', scopes: SCOPES, ...settings }, root());
  const { key, id: keyId } = made.body as { key: string; id: string };
  const generator = await tenant.post('/api/admin/generation-apps', {
    name: 'Poem',
    type: 0,
    promptTemplate: 'Write',
    variables: [],
    modelServiceId: tenant.serviceId,
  });
  const says = { speechUserDialogueMessage: { content: 'Hello' } };
  const send = `/api/copywriting/dialogue/sse/send-message/${tenant.versionId}`;
  const asks = (more: object = {}) => ({
    model: 'main',
    messages: [{ role: 'user', content: 'Hello' }],
    ...more,
  });
  const json = 'application/json';
  const stream = async (path: string, body?: object) => (await Reading.open(path, key, body)).has('well …');

  const dialogue = await stream(send, says);
  const replyId = /^id: (\d+):1$/m.exec(dialogue.text)![1]!;
  const channelToken = await ask(app.url, 'POST', '/api/v1/tokens', { userId: 'cat' }, { 'x-api-key': key });
  const tokens = {
    im: await imToken(app.url, { apiKey: key }, 'bob'),
    channel: (channelToken.body as { token: string }).token,
  };
  const open = {
    dialogue,
    resumed: await stream(`/api/copywriting/dialogue/sse/resume/${replyId}`),
    kept: await stream('/v1/chat/completions', asks({ stream: true, sessionId: 's1' })),
    stateless: await stream('/v1/chat/completions', asks({ stream: true })),
    generation: await stream(`/api/copywriting/userCopywriting/${generator.body.id as string}`, {
      params: {},
    }),
    channel: await new Channel(app.url, { key }).opened,
    channelUser: await new Channel(app.url, { token: tokens.channel }).opened,
    user: await new Peer(app.url, tokens.im).opened,
  };
  const before = upstream.seen(model).length;
  const whole = {
    dialogue: Reading.open(send, key, says, json),
    kept: Reading.open('/v1/chat/completions', key, asks({ sessionId: 's2' }), json),
    stateless: Reading.open('/v1/chat/completions', key, asks(), json),
  };
  await eventually(() => Promise.resolve(upstream.seen(model).length === before + 3));
  return { tenant, model, key, keyId, open, whole, tokens, go };
}

const keyPath = ({ tenant, keyId }: Story) => `/api/admin/tenants/${tenant.id}/api-keys/${keyId}`;
const change = async (path: string, method: string, body?: object) => {
  const answer = await ask(app.url, method, path, body, root());
  if (answer.status !== 200) throw new Error(answer.text);
  return answer.body as Record<string, any>;
};

/** Of a handshake: 101 when it was let in. */
async function tokenStatus(client: Peer | Channel): Promise<number> {
  const status = await client.refused.then(
    (refusal) => refusal.status,
    () => 101,
  );
  if (status === 101) await client.close();
  return status;
}

interface Loss {
  readonly lose: (of: Story) => Promise<unknown>;
  readonly status: number;
  /** Of the sockets. */
  readonly close: number;
  /** Of the OpenAI wire's errors. */
  readonly code: string;
  readonly settings?: () => object;
  /** What becomes of a kept reply. */
  readonly reply?: string;
}

const LOSSES: Record<string, Loss> = {
  revoked: {
    lose: (of) => change(keyPath(of), 'DELETE'),
    status: 401,
    close: 4401,
    code: 'invalid_api_key',
  },
  rotated: {
    lose: (of) => change(`${keyPath(of)}/rotate`, 'POST'),
    status: 401,
    close: 4401,
    code: 'invalid_api_key',
  },
  'rotated with an overlap that ends': {
    lose: (of) => change(`${keyPath(of)}/rotate`, 'POST', { overlapSeconds: 1 }),
    status: 401,
    close: 4401,
    code: 'invalid_api_key',
  },
  'narrowed to fewer scopes': {
    lose: (of) => change(keyPath(of), 'PATCH', { scopes: ['usage'] }),
    status: 403,
    close: 4403,
    code: 'insufficient_permissions',
  },
  'narrowed to other addresses': {
    lose: (of) => change(keyPath(of), 'PATCH', { allowedAddresses: ['203.0.113.7'] }),
    status: 401,
    close: 4401,
    code: 'invalid_api_key',
  },
  'given an end that comes': {
    lose: (of) => change(keyPath(of), 'PATCH', { expiresAt: new Date(Date.now() + 500).toISOString() }),
    status: 401,
    close: 4401,
    code: 'invalid_api_key',
  },
  'of a tenant that is suspended': {
    lose: ({ tenant }) => change(`/api/admin/tenants/${tenant.id}`, 'PATCH', { status: 'suspended' }),
    status: 401,
    close: 4403,
    code: 'account_deactivated',
    reply: 'stopped',
  },
};

describe.each(Object.entries(LOSSES))('a key that is %s', (_, { lose, status, close, code, reply }) => {
  let mine: Story;
  let rivals: Story;
  beforeAll(async () => {
    [mine, rivals] = await Promise.all([story(), story()]);
    await lose(mine);
  });

  it('ends its event streams with an event that says so', async () => {
    const { dialogue, resumed, generation } = mine.open;
    for (const one of [dialogue, resumed, generation]) {
      expect(await one.last()).toMatchObject({ result: '', isEnd: true, error: { code: 401 } });
      expect(one.text).toContain('well …');
    }
  });

  it('ends the streams of chat completions with an error', async () => {
    const { kept, stateless } = mine.open;
    for (const one of [kept, stateless]) {
      expect(await one.last()).toMatchObject({ error: { code } });
      expect(await one.end()).toMatch(/data: \[DONE\]\n\n$/);
    }
  });

  it('answers who waits for a whole answer with an error', async () => {
    const { dialogue, kept, stateless } = mine.whole;
    // The assistant platform's wire knows no 403.
    expect((await dialogue).status).toBe(401);
    for (const one of [kept, stateless]) expect((await one).status).toBe(status);
    expect(JSON.parse(await (await stateless).end())).toMatchObject({ error: { code } });
  });

  it('closes its sockets, and those of tokens that were asked for with it', async () => {
    const { channel, channelUser, user } = mine.open;
    for (const one of [channel, channelUser, user]) expect((await one.closed).code).toBe(close);
    const { im, channel: token } = mine.tokens;
    // What was remembered of the tenant a moment before is forgotten within a second.
    await eventually(async () => (await tokenStatus(new Peer(app.url, im))) === 401);
    await eventually(async () => (await tokenStatus(new Channel(app.url, { token }))) === 401);
  });

  it('ends what nobody keeps, billed once; what is kept goes on, but not for a suspended tenant', async () => {
    const outcomes = () =>
      query<{ outcome: string; kept: boolean }>(
        app.databaseUrl,
        `select outcome, exists (select 1 from dialogue_messages m where m.id = l.message_id) as kept
         from usage_ledger l where tenant_id = $1`,
        [mine.tenant.id],
      );
    // Two completions and a generation; kept are two dialogues and two sessions.
    await eventually(async () => (await outcomes()).length >= (reply ? 7 : 3));
    if (!reply) {
      expect((await outcomes()).map(({ outcome }) => outcome)).toEqual(['stopped', 'stopped', 'stopped']);
      mine.go();
      await eventually(async () => (await outcomes()).length === 7);
    }
    const rows = await outcomes();
    expect(rows.filter(({ kept }) => !kept).map(({ outcome }) => outcome)).toEqual([
      'stopped',
      'stopped',
      'stopped',
    ]);
    expect(rows.filter(({ kept }) => kept).map(({ outcome }) => outcome)).toEqual(
      Array(4).fill(reply ?? 'finished'),
    );
    mine.go();
  });

  it("leaves another tenant's as they are", async () => {
    const { channel, channelUser, user, ...streams } = rivals.open;
    rivals.go();
    for (const one of Object.values(streams)) expect(await one.end()).not.toContain('error');
    for (const one of Object.values(rivals.whole)) expect((await one).status).toBe(200);
    await user.ping();
    for (const one of [channel, channelUser]) await one.handled();
    for (const one of [channel, channelUser, user]) await one.close();
  });
});

describe('a rotation with an overlap', () => {
  it('leaves the old secret and what it opened until then, and says until when', async () => {
    const mine = await story();
    const rotated = await change(`${keyPath(mine)}/rotate`, 'POST', { overlapSeconds: 600 });
    const list = (key: string) => ask(app.url, 'GET', '/v1/models', undefined, { 'x-api-key': key });
    expect((await list(rotated.key as string)).status).toBe((await list(mine.key)).status);
    expect(Date.parse(rotated.previousSecretUntil as string)).toBeGreaterThan(Date.now());
    // A token of the old secret is one of the old secret, whenever it was asked for.
    const late = await imToken(app.url, { apiKey: mine.key }, 'late');
    const lateUser = await new Peer(app.url, late).opened;
    const newToken = await imToken(app.url, { apiKey: rotated.key as string }, 'new');
    const newUser = await new Peer(app.url, newToken).opened;
    // Told of by a look at the keys that came later than the rotation.
    const rival = await story();
    await change(keyPath(rival), 'DELETE');
    await rival.open.user.closed;
    await mine.open.user.ping();
    expect(mine.open.dialogue.text).not.toContain('isEnd":true');

    // Rotated again, without: the first secret is two generations old, the second one.
    const again = await change(`${keyPath(mine)}/rotate`, 'POST');
    for (const one of [mine.open.user, lateUser, newUser]) expect((await one.closed).code).toBe(4401);
    expect((await list(mine.key)).status).toBe(401);
    expect((await list(rotated.key as string)).status).toBe(401);
    expect((await list(again.key as string)).status).not.toBe(401);
    expect(again.previousSecretUntil).toBeNull();
    mine.go();
    rival.go();
  });

  it.each([-1, 604_801, 1.5, 'x', null])('is refused: %j seconds', async (overlapSeconds) => {
    const tenant = await app.tenant();
    const path = `/api/admin/tenants/${tenant.id}/api-keys/${tenant.keyId}/rotate`;
    const { status, text } = await ask(app.url, 'POST', path, { overlapSeconds }, root());
    expect([status, text]).toEqual([400, expect.stringContaining('overlapSeconds')]);
    expect((await tenant.get('/api/admin/assistants')).status).toBe(200);
  });
});

describe('work that a client waits for', () => {
  it('is aborted at the provider and charged once, when the key is revoked', async () => {
    const { opened, open: go } = gate();
    const aborted = Promise.withResolvers<void>();
    upstream.on('vectors', async (exchange) => {
      void exchange.aborted.then(aborted.resolve);
      await opened;
      exchange.fail(500, '{}');
    });
    const [acme, rival] = await Promise.all([
      app.tenant({ baseUrl: upstream.url }),
      app.tenant({ baseUrl: upstream.url }),
    ]);
    const vectors = { name: 'vectors', model: 'vectors', type: 2, providerId: acme.providerId };
    expect((await acme.post('/api/admin/model-services', vectors)).status).toBe(201);
    const embedding = acme.post('/v1/embeddings', { model: 'vectors', input: 'x' });
    await eventually(() => Promise.resolve(upstream.seen('vectors').length === 1));
    await change(`/api/admin/tenants/${acme.id}/api-keys/${acme.keyId}`, 'DELETE');
    expect(await embedding).toMatchObject({ status: 401, body: { error: { code: 'invalid_api_key' } } });
    await aborted.promise;
    const rows = await query<{ outcome: string }>(
      app.databaseUrl,
      'select outcome from usage_ledger where tenant_id = $1',
      [acme.id],
    );
    expect(rows).toEqual([{ outcome: 'stopped' }]);
    go();
    const messages = [{ role: 'user', content: 'x' }];
    expect((await rival.post('/v1/chat/completions', { model: 'main', messages })).status).toBe(200);
  });
});

describe('a change that takes nothing away', () => {
  it('closes nothing: a new name, more scopes, the same addresses and more', async () => {
    const mine = await story({ allowedAddresses: ['127.0.0.1'] });
    await change(keyPath(mine), 'PATCH', {
      name: 'third',
      scopes: ['dialogue', 'im', 'models'],
      allowedAddresses: ['127.0.0.1', '203.0.113.7'],
      expiresAt: '2099-01-01T00:00:00Z',
    });
    const rival = await story();
    await change(keyPath(rival), 'DELETE');
    await rival.open.user.closed;
    await mine.open.user.ping();
    await mine.open.channel.handled();
    await (await new Peer(app.url, mine.tokens.im).opened).close();
    mine.go();
    rival.go();
    expect(await mine.open.stateless.end()).not.toContain('error');
    expect((await mine.open.dialogue.last()).status).toBe('finished');
  });
});
