import { ask, eventually, makeTenant, ROOT_KEY, says, SECRET_KEY, type TestTenant } from '../support/app';
import { Channel } from '../support/channel';
import { freshDatabase } from '../support/database';
import { connect, imToken } from '../support/im';
import { Server } from '../support/server';
import { FRAME_SCHEMAS as CHANNEL_FRAMES } from '../../src/agent-channel/frames';
import { FRAME_SCHEMAS as IM_FRAMES } from '../../src/im/frames';
import { halfWritten } from './consistency';
import { mixture, mutations, NO_BODIES, validOf, type Schema } from './edges';
import { casesOf, type Case, type OpenApi, type Things } from './requests';

/**
 * Valid requests and frames with every field at its edges, against the built server as a process: no 500, no rejection
 * that nobody handled, no row half written. `FUZZ_SEED` chooses the mixtures, `FUZZ_MIXTURES` how many an operation
 * has; `FUZZ_VALID_ONLY=1` sends each request only as it should be.
 */
const SEED = Number(process.env.FUZZ_SEED ?? 20_261_130);
const MIXTURES = Number(process.env.FUZZ_MIXTURES ?? 20);
const AT_ONCE = 8;
/** Says no for a reason of its own: a job queue that is full, a provider that does not answer. */
const NO_DEFECT = new Set([501, 502, 503, 504]);

/** Not JSON, signed, or over: these are refused whatever a schema says. */
const REFUSED: ReadonlySet<string> = new Set([
  'GET /api/copywriting/image/{tenant}/{sha256}',
  'POST /v1/audio/transcriptions',
  // It has been sent by then.
  'DELETE /api/v1/im/broadcasts/{id}',
]);

/** mulberry32: the same numbers from the same seed. */
function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}
const random = randomFrom(SEED);

let server: Server;
let database: Awaited<ReturnType<typeof freshDatabase>>;
let url: string;
let acme: TestTenant;
let spare: TestTenant;
let rival: TestTenant;
/** Whose status, keys and limits are changed. */
let subject: TestTenant;
let document: OpenApi;
const counts = { operations: 0, valid: 0, requests: 0, refused: 0, frames: 0 };

beforeAll(async () => {
  database = await freshDatabase();
  server = await Server.start({
    DATABASE_URL: database.url,
    PARLEY_ROOT_KEY: ROOT_KEY,
    PARLEY_SECRET_KEY: SECRET_KEY,
    IM_TOKENS_PER_MINUTE: '1000000',
    IM_FRAMES_PER_SECOND: '1000000',
    IM_FRAMES_BURST: '1000000',
    IM_MAX_FRAME_BYTES: '262144',
  });
  url = server.quickstart.url;
  const tenant = (): Promise<TestTenant> => makeTenant(url, ROOT_KEY);
  [acme, spare, rival, subject] = await Promise.all([tenant(), tenant(), tenant(), tenant()]);
  document = (await ask(url, 'GET', '/docs/openapi.json')).body as OpenApi;
}, 60_000);

afterAll(async () => {
  await server.remove();
  await database.drop();
  process.stderr.write(`fuzz: seed ${SEED}: ${JSON.stringify(counts)}\n`);
});

/** A thing of every kind that a path can name. */
async function thingsOf(tenant: TestTenant): Promise<Things> {
  const made = async (path: string, body: object): Promise<Record<string, string>> => {
    const answer = await tenant.post(path, body);
    if (answer.status >= 300) throw new Error(`${path}: ${answer.status} ${answer.text}`);
    return (answer.body as { data?: Record<string, string> }).data ?? (answer.body as Record<string, string>);
  };
  const { providerId, serviceId: modelServiceId } = tenant;
  await made('/api/admin/model-services', { name: 'embedder', model: 'e', type: 2, providerId });
  await made('/api/admin/model-services', { name: 'painter', model: 'p', type: 1, providerId });
  const app = { name: 'x', type: 0, promptTemplate: 'Say {{topic}}', modelServiceId };
  const template = await made('/api/admin/generation-apps', {
    ...app,
    variables: [{ name: 'topic', type: 'text' }],
  });
  const record = await made(`/api/copywriting/userCopywriting/${template.id}`, { params: { topic: 'x' } });
  const unused = await made('/api/admin/model-providers', { name: 'unused', kind: 'builtin' });
  const spareService = await made('/api/admin/model-services', { name: 'unused', model: 'u', providerId });
  await made(`/api/admin/model-services/${spareService.id}/prices`, {
    inputPrice: 1,
    outputPrice: 1,
    effectiveFrom: '2098-01-01T00:00:00.000Z',
  });
  await made('/api/admin/model-services', { name: 'listener', model: 'l', type: 3, providerId });
  await made('/api/v1/agents', { id: 'helper', name: 'Helper', modelServiceId });
  const webhook = await made('/api/v1/im/webhooks', { url: 'http://127.0.0.1:9/', events: ['user.online'] });
  await made('/api/v1/im/groups', { groupId: 'team', owner: 'ann', members: ['bob'] });
  const message = { type: 'single', source: 'ann', target: 'bob', msg: { content: 'x' } };
  const { conversationId } = await made('/api/v1/im/messages', message);
  const slow = { source: 'ann', users: ['bob', 'cid'], msg: { content: 'x' } };
  const broadcast = await made('/api/v1/im/broadcasts', slow);
  const dialogue = await tenant.send(
    { speechUserDialogueMessage: { content: 'x' } },
    { headers: { 'user-id': 'ann' } },
  );
  await dialogue.end();
  const other = await tenant.send(says('x'), { headers: { 'user-id': 'zoe' } });
  await other.end();
  const dialogueId = dialogue.record.id as string;
  const replyId = dialogue.last.messageId as string;
  const assistant = `/api/admin/assistants/{id}`;
  return {
    groupId: 'team',
    userId: 'bob',
    seq: '1',
    agentId: 'helper',
    sessionId: dialogueId,
    userDialogueId: dialogueId,
    messageId: replyId,
    versionId: tenant.versionId,
    sha256: '0'.repeat(64),
    tenant: tenant.id,
    effectiveFrom: '2098-01-01T00:00:00.000Z',
    newGroup: 'fresh',
    newSlug: 'fresh',
    path: 'agent:main',
    recordId: record.id!,
    '/api/copywriting/dialogue/sse/send-message/{id} id': tenant.versionId,
    '/api/copywriting/userCopywriting/{id} id': template.id!,
    '/api/copywriting/scene/user/{id} id': tenant.versionId,
    '/api/copywriting/template/user/{id} id': template.id!,
    '/api/v1/im/conversations/{id}/messages id': conversationId!,
    '/api/v1/im/conversations/{id}/messages/{seq} id': conversationId!,
    '/api/v1/im/users/{id}/sessions id': 'ann',
    '/api/v1/im/users/{id}/presence id': 'ann',
    '/api/v1/im/broadcasts/{id} id': broadcast.id!,
    '/api/v1/im/broadcasts/{id}/failures id': broadcast.id!,
    '/api/v1/im/webhooks/{id}/secret id': webhook.id!,
    '/api/v1/im/webhooks/{id} id': webhook.id!,
    '/api/v1/im/webhooks/{id}/dead-letters id': webhook.id!,
    '/api/v1/im/webhooks/{id}/dead-letters/retry id': webhook.id!,
    '/api/admin/tenants/{id} id': subject.id,
    '/api/admin/tenants/{id}/api-keys id': subject.id,
    '/api/admin/tenants/{id}/api-keys/{keyId} id': subject.id,
    '/api/admin/tenants/{id}/api-keys/{keyId}/rotate id': subject.id,
    keyId: subject.keyId,
    '/api/admin/model-providers/{id} id': unused.id!,
    '/api/admin/model-services/{id} id': spareService.id!,
    '/api/admin/model-services/{id}/prices id': spareService.id!,
    '/api/admin/model-services/{id}/prices/{effectiveFrom} id': spareService.id!,
    [`${assistant} id`]: tenant.assistantId,
    [`${assistant}/versions id`]: tenant.assistantId,
    [`${assistant}/versions/{versionId} id`]: tenant.assistantId,
    [`${assistant}/versions/{versionId}/publish id`]: tenant.assistantId,
    '/api/admin/generation-apps/{id} id': template.id!,
    '/api/admin/users/{userId} userId': 'zoe',
    '/api/admin/dialogues/{id} id': dialogueId,
    '/api/admin/dialogues/{id}/messages id': dialogueId,
  };
}

/** What is wrong of an answer; null: nothing. */
async function amiss({ label, method, path, body, headers }: Case): Promise<string | null> {
  try {
    const { status, text } = await ask(url, method, path, body, headers);
    counts.requests += 1;
    if (status >= 400) counts.refused += 1;
    if (status < 500 || NO_DEFECT.has(status)) return null;
    return `${label}: ${status} ${text.slice(0, 200)}`;
  } catch (error) {
    // What Node's own client does not put on the wire says nothing of the server.
    if ((error as NodeJS.ErrnoException).code?.startsWith('ERR_')) return null;
    return `${label}: ${(error as Error).message}`;
  }
}

async function amissOf(cases: readonly Case[]): Promise<string[]> {
  const found: string[] = [];
  const left = [...cases];
  const work = async (): Promise<void> => {
    for (let next = left.shift(); next; next = left.shift()) {
      const wrong = await amiss(next);
      if (wrong !== null) found.push(wrong);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  return found;
}

it('answers every request of the OpenAPI document, at every edge, without a defect', async () => {
  const own = await thingsOf(acme);
  const deletable = await thingsOf(spare);
  const wrong: string[] = [];
  const invalid: string[] = [];
  // What deletes comes last, the things within a thing before it: the others want what it deletes.
  const operations = Object.entries(document.paths)
    .flatMap(([path, methods]) => Object.keys(methods).map((method) => [method, path] as const))
    .sort(([a, one], [b, other]) => {
      const last = Number(a === 'delete') - Number(b === 'delete');
      return last || (a === 'delete' ? other.length - one.length : 0);
    });
  for (const [method, path] of operations) {
    const [tenant, things] = method === 'delete' ? [spare, deletable] : [acme, own];
    const cases = casesOf(document, method, path, {
      tenant,
      things,
      rootKey: ROOT_KEY,
      random,
      mixtures: MIXTURES,
    });
    if (!cases) continue;
    counts.operations += 1;
    const { status, text } = await ask(
      url,
      cases.valid.method,
      cases.valid.path,
      cases.valid.body,
      cases.valid.headers,
    );
    if (status < 300) counts.valid += 1;
    else if (!REFUSED.has(cases.operation))
      invalid.push(`${cases.valid.label}: ${status} ${text.slice(0, 200)}`);
    if (status >= 500) wrong.push(`${cases.valid.label}: ${status} ${text.slice(0, 200)}`);
    if (!process.env.FUZZ_VALID_ONLY) wrong.push(...(await amissOf(cases.edges)));
    if (server.child.exitCode !== null)
      throw new Error(`the server ended at ${cases.operation}: ${server.output}`);
  }
  // Edges of a request that is refused as it stands say little.
  expect({ wrong, invalid }).toEqual({ wrong: [], invalid: [] });
}, 600_000);

const frameCases = (
  schemas: Readonly<Record<string, object>>,
  given: Readonly<Record<string, object>>,
): [string, string][] =>
  Object.entries(schemas).flatMap(([type, schema]) => {
    const same = (one: Schema): Schema => one;
    const valid = { ...(validOf(schema, same) as object), type, ...given[type] };
    const mixed = Array.from({ length: MIXTURES }, () => mixture(schema as Schema, valid, same, random));
    return [
      { label: 'as it should be', body: valid },
      ...mutations(schema as Schema, valid, same),
      ...mixed,
    ].map(({ label, body }): [string, string] => [`${type}: ${label}`, JSON.stringify(body)]);
  });
const NO_FRAMES = NO_BODIES.map(([label, text]): [string, string] => [`no frame: ${label}`, text]);

it('answers every frame of /chat, at every edge, without a defect', async () => {
  const single = {
    source: 'ann',
    target: 'bob',
    msgType: 'text',
    msg: { content: 'x', timestamp: 1_700_000_000_000 },
  };
  const given = {
    single,
    group: { ...single, target: 'team' },
    join: { source: 'ann', target: 'team', msgType: 'text', msg: {} },
    leave: { source: 'ann', target: 'club', msgType: 'text', msg: {} },
    ack: { conversationId: '1', seq: 1 },
    read: { conversationId: '1', seq: 1 },
    recall: { conversationId: '1', seq: 1 },
    typing: { target: 'bob', kind: 'single' },
    sync: { cursors: { '1': 0 } },
    watch: { users: ['bob'] },
  };
  const wrong: string[] = [];
  for (const rich of [true, false]) {
    const token = await imToken(url, acme, 'ann', { client: rich ? 'pc' : 'phone' });
    let peer = await connect(url, token, { rich });
    for (const [label, text] of [...frameCases(IM_FRAMES, given), ...NO_FRAMES]) {
      counts.frames += 1;
      const before = peer.frames.length;
      peer.send(text);
      const ponged = await Promise.race([peer.ping().then(() => true), peer.closed.then(() => false)]).catch(
        () => false,
      );
      const defect = peer.frames.slice(before).find(({ code }) => code === 5000);
      if (defect) wrong.push(`${label}: ${JSON.stringify(defect)}`);
      if (ponged) continue;
      const { code } = await peer.closed;
      if (code < 4000 && code !== 1009 && code !== 1007) wrong.push(`${label}: closed with ${code}`);
      peer = await connect(url, token, { rich });
    }
    await peer.close();
  }
  expect(wrong).toEqual([]);
}, 300_000);

it('answers every frame of the agent channel, at every edge, without a defect', async () => {
  const session = { agentId: 'main', sessionId: 'x', requestId: 'r' };
  const given = {
    chat: { ...session, message: 'Hello', stream: false, modelServiceId: acme.serviceId },
    ping: { requestId: 'r' },
    subscribe: session,
    cancel: session,
    resume: { ...session, messageId: '1', offset: 0 },
  };
  const wrong: string[] = [];
  for (const events of [true, false]) {
    let channel = await new Channel(url, { key: acme.apiKey, headers: { 'user-id': 'ann' }, events }).opened;
    for (const [label, text] of [...frameCases(CHANNEL_FRAMES, given), ...NO_FRAMES]) {
      counts.frames += 1;
      const before = channel.frames.length;
      channel.send(text);
      const dealt = await Promise.race([
        channel.handled().then(() => true),
        channel.closed.then(() => false),
      ]).catch(() => false);
      const defect = channel.frames.slice(before).find(({ code }) => code === 'internal');
      if (defect) wrong.push(`${label}: ${JSON.stringify(defect)}`);
      if (dealt) continue;
      const { code } = await channel.closed;
      if (code < 4000 && code !== 1009 && code !== 1007) wrong.push(`${label}: closed with ${code}`);
      channel = await new Channel(url, { key: acme.apiKey, headers: { 'user-id': 'ann' }, events }).opened;
    }
    await channel.close();
  }
  expect(wrong).toEqual([]);
}, 300_000);

it('has told the rival nothing, left no row half written, and logged no defect', async () => {
  const found = await eventually(async () => {
    const rows = await halfWritten(database.url, SECRET_KEY);
    return Object.keys(rows).length === 0 ? rows : null;
  }).catch(() => halfWritten(database.url, SECRET_KEY));
  expect(found).toEqual({});
  const { body } = await rival.get('/api/admin/dialogues');
  expect(body.items ?? body.data).toEqual([]);
  expect(await server.end('SIGTERM')).toBe(0);
  expect(
    server.output.split('\n').filter((line) => line.includes('"level":50') || /^\s+at /.test(line)),
  ).toEqual([]);
}, 60_000);
