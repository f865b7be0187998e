import {
  ask,
  bootApp,
  eventually,
  ROOT_KEY,
  says,
  SseClient,
  type TestApp,
  type TestTenant,
} from '../support/app';
import { freshDatabase, query } from '../support/database';
import { Server } from '../support/server';
import { Upstream, type Exchange } from '../support/upstream';

/** `LEDGER_REQUESTS=200` for a short form. */
const REQUESTS = Number(process.env.LEDGER_REQUESTS ?? 2_000);
const AT_ONCE = 25;
const KILLS = 2;
const FATES = ['finish', 'finish', 'finish', 'drop', 'stop', 'fail', 'late-fail'] as const;

/** Reproducible: mulberry32. */
function randomOf(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

interface Plan {
  readonly n: number;
  readonly fate: (typeof FATES)[number];
  readonly openai: boolean;
  readonly victim: boolean;
  readonly usage: { readonly prompt_tokens: number; readonly completion_tokens: number };
}

let app: TestApp;
let upstream: Upstream;
let database: Awaited<ReturnType<typeof freshDatabase>>;
let victim: Server;
let tenant: TestTenant;

const victimEnv = () => ({
  DATABASE_URL: database.url,
  PARLEY_SECRET_KEY: 'secret-of-the-tests-0123456789abcdef',
  PARLEY_ROOT_KEY: ROOT_KEY,
});

beforeAll(async () => {
  [upstream, database] = await Promise.all([Upstream.start(), freshDatabase()]);
  app = await bootApp({}, database.url);
  tenant = await app.tenant({
    baseUrl: upstream.url,
    model: 'ledger',
    service: { inputPrice: 1_000_000, outputPrice: 2_000_000 },
  });
  const limits = { tokensPerDay: 1_000_000_000, userRequestsPerDay: 1_000 };
  await ask(app.url, 'PATCH', `/api/admin/tenants/${tenant.id}`, { limits }, { 'x-api-key': ROOT_KEY });
  victim = await Server.start(victimEnv());
  await new Promise((resolve) => setTimeout(resolve, 1_000));
}, 90_000);
afterAll(async () => {
  await victim.remove();
  await app.close();
  await database.drop();
  await upstream.close();
});

const plans = new Map<number, Plan>();
/** What the upstream was asked for. */
const asked = new Set<string>();
/** What the upstream has told of its usage, and so has produced to the end. */
const produced = new Map<number, Plan['usage']>();

async function script(exchange: Exchange): Promise<void> {
  const said = (exchange.body.messages as { content: string }[]).at(-1)!.content;
  const { n, fate, usage } = plans.get(Number(said.split(' ')[1]))!;
  asked.add(`user-${n}`);
  if (fate === 'fail') return exchange.fail(400, '{"error":{"message":"no"}}');
  for (let piece = 0; piece < 6; piece += 1) {
    await exchange.piece(`piece ${piece} `);
    await new Promise((resolve) => setTimeout(resolve, 15));
    if (fate === 'late-fail' && piece === 2) {
      exchange.response.destroy();
      return;
    }
  }
  if (fate === 'stop')
    await Promise.race([exchange.aborted, new Promise((resolve) => setTimeout(resolve, 500))]);
  if (!exchange.response.destroyed) {
    produced.set(n, usage);
    await exchange.done(usage);
  }
}

/** One request, whatever becomes of it: connections to a killed process break. */
async function request({ n, fate, openai, victim: there }: Plan): Promise<void> {
  const url = there ? victim.quickstart.url : app.url;
  const headers = { 'x-api-key': tenant.apiKey, 'user-id': `user-${n}` };
  const content = `request ${n}`;
  if (openai) return complete(url, { ...headers, 'content-type': 'application/json' }, content, fate);
  const path = `/api/copywriting/dialogue/sse/send-message/${tenant.versionId}`;
  const client = await SseClient.open(url, 'POST', path, says(content), headers);
  client.response.on('error', () => undefined);
  if (fate === 'drop' || fate === 'stop') await client.has(2);
  if (fate === 'drop') client.drop();
  else if (fate === 'stop')
    await ask(
      url,
      'GET',
      `/api/copywriting/dialogue/sse/close/${client.record.id as string}`,
      undefined,
      headers,
    );
  await client.end();
}

async function complete(
  url: string,
  headers: Record<string, string>,
  content: string,
  fate: Plan['fate'],
): Promise<void> {
  const leaving = new AbortController();
  const body = JSON.stringify({ model: 'service', stream: true, messages: [{ role: 'user', content }] });
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers,
    body,
    signal: leaving.signal,
  });
  for await (const chunk of response.body!) {
    if (chunk && (fate === 'drop' || fate === 'stop')) leaving.abort();
  }
}

it(`exactly one row a request, and the sums are what the upstream says, over ${REQUESTS} requests with drops, stops, failures and kills`, async () => {
  const random = randomOf(42);
  upstream.on('ledger', script);
  for (let n = 0; n < REQUESTS; n += 1) {
    const usage = {
      prompt_tokens: 1 + Math.floor(random() * 1_000),
      completion_tokens: 1 + Math.floor(random() * 1_000),
    };
    const fate = FATES[Math.floor(random() * FATES.length)]!;
    plans.set(n, { n, fate, usage, openai: random() < 0.4, victim: random() < 0.4 });
  }
  const waiting = [...plans.values()];
  let started = 0;
  const worker = async (): Promise<void> => {
    for (let plan = waiting.shift(); plan; plan = waiting.shift()) {
      started += 1;
      await request(plan).catch(() => undefined);
    }
  };
  const killer = async (): Promise<void> => {
    for (let kill = 1; kill <= KILLS; kill += 1) {
      await eventually(async () => started >= (REQUESTS * kill) / (KILLS + 1), 300_000);
      await victim.end('SIGKILL');
      victim = await Server.start(victimEnv(), victim.dataDir);
    }
  };
  await Promise.all([killer(), ...Array.from({ length: AT_ONCE }, worker)]);

  const rows = <T>(sql: string) => query<T>(database.url, sql, [tenant.id]);
  await eventually(
    async () =>
      (await rows('select 1 from replies_in_progress where tenant_id = $1')).length === 0 &&
      (await rows('select 1 from open_requests where tenant_id = $1')).length === 0 &&
      (await rows('select 1 from usage_reservations where tenant_id = $1')).length === 0,
    40_000,
  );
  // Every reply that was stored has its row, and no other row is a dialogue's.
  expect(
    await rows(
      `select m.id, l.message_id from (select * from dialogue_messages where tenant_id = $1 and role = 'assistant') m
       full join (select * from usage_ledger where tenant_id = $1 and wire = 'dialogue') l on l.message_id = m.id
       where m.id is null or l.message_id is null or m.status <> l.outcome or m.total_tokens <> l.total_tokens`,
    ),
  ).toEqual([]);
  const ledger = await rows<{
    user: string;
    wire: string;
    outcome: string;
    p: number;
    c: number;
    credits: number;
  }>(
    `select user_id as user, wire, outcome, prompt_tokens as p, completion_tokens as c, credits::float8 as credits
     from usage_ledger where tenant_id = $1`,
  );
  expect(new Set(ledger.map(({ user }) => user)).size).toBe(ledger.length);
  const finished = ledger.filter(({ outcome }) => outcome === 'finished');
  const told = finished.map(({ user }) => produced.get(Number(user.split('-')[1])));
  expect(finished.map(({ p, c, credits }) => [p, c, credits])).toEqual(
    told.map((usage) => [
      usage?.prompt_tokens,
      usage?.completion_tokens,
      usage && usage.prompt_tokens + 2 * usage.completion_tokens,
    ]),
  );
  const outcomes = new Set(ledger.map(({ outcome }) => outcome));
  expect([...outcomes].sort()).toEqual(['failed', 'finished', 'interrupted', 'stopped']);
  // Whatever a model was asked for is there, on the killed process, too; of the one that lived, all that was asked of it.
  const users = new Set(ledger.map(({ user }) => user));
  expect([...asked].filter((user) => !users.has(user))).toEqual([]);
  const survived = [...plans.values()].filter((plan) => !plan.victim);
  expect(
    survived.filter(({ n }) => !users.has(`user-${n}`)).map(({ n, fate, openai }) => [n, fate, openai]),
  ).toEqual([]);
  // The quota's count and the report say what the ledger says.
  const [sum] = await rows<{ tokens: string }>(
    'select sum(total_tokens) as tokens from usage_ledger where tenant_id = $1',
  );
  expect(await rows(`select tokens from usage_counters where tenant_id = $1 and scope = 'tenant'`)).toEqual([
    { tokens: sum!.tokens },
  ]);
  await new Promise((resolve) => setTimeout(resolve, 1_100));
  const report = await tenant.get('/api/admin/usage');
  expect(report.body.data).toMatchObject([{ requests: ledger.length, totalTokens: Number(sum!.tokens) }]);
}, 400_000);
