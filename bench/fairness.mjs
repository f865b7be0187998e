// `node bench/run.mjs fairness`: what one tenant's instant messages wait while another tenant floods the same process.
// docs/benchmarks.md says what each figure means.
import { setTimeout as delay } from 'node:timers/promises';
import { request } from 'undici';
import { median, percentile, rowsOf } from './figures.mjs';
import { fillConversations } from './im-rows.mjs';
import { cpuBelowMs, cpuMs, startClient, startParley, withDatabase } from './processes.mjs';

const QUIET_USERS = 20;
const PER_SECOND = 200;
const LONG = { rounds: 7, warmUpMs: 500, measureMs: 5_000 };
const SHORT = { rounds: 3, warmUpMs: 500, measureMs: 2_500 };
const CONNECTIONS = 64;
const CONVERSATIONS = 3_000;
const HISTORY = 200;
const BROADCAST_USERS = 10_000;
const LARGE_BODY_CHARS = 900_000;
const SOCKETS = { users: 100, perSecond: 3_000 };
const TARGET = 1.5;
/** prom-client's resolution: it times a timer of so many ms, and tells the whole of it. */
const LOOP_RESOLUTION_MS = 10;
/** After a flood: what it has left behind is over. */
const CALM_MS = 500;

const LABELS = {
  nobody: 'nobody: base again',
  messages: 'messages posted',
  histories: `histories of ${HISTORY} read`,
  conversations: `a user's ${CONVERSATIONS} conversations listed`,
  broadcast: `a broadcast to ${BROADCAST_USERS}`,
  bodies: 'messages posted with 900 KB',
  completions: '/v1 with 900 KB, no such model',
  sockets: `${SOCKETS.perSecond} frames/s on ${SOCKETS.users} sockets`,
};
export const SECTIONS = Object.keys(LABELS);

export async function measure({ only = SECTIONS, profileDir, short, say }) {
  const { rows, row } = rowsOf();
  const { rounds, ...load } = short ? SHORT : LONG;
  say('starting Parley');
  const parley = await startParley({
    profileDir,
    env: { IM_TOKENS_PER_MINUTE: '100000', IM_CONNECTIONS_PER_ADDRESS: '10000' },
  });
  const { url, rootKey, appKey, appSecret } = parley.quickstart;

  async function call(path, headers, body) {
    const response = await request(url + path, {
      method: body === undefined ? 'GET' : 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await response.body.text();
    if (response.statusCode >= 300) throw new Error(`${path}: ${response.statusCode} ${text.slice(0, 500)}`);
    return text;
  }
  const asRoot = (tenantId) => ({ 'x-api-key': rootKey, ...(tenantId && { 'tenant-id': tenantId }) });
  const made = async (path, body, tenantId) => JSON.parse(await call(path, asRoot(tenantId), body));

  const tenant = await made('/api/admin/tenants', { name: 'flood' });
  const key = await made(`/api/admin/tenants/${tenant.id}/api-keys`, {
    name: 'flood',
    scopes: ['admin', 'im', 'dialogue', 'models'],
  });
  const provider = await made('/api/admin/model-providers', { name: 'demo', kind: 'builtin' }, tenant.id);
  await made(
    '/api/admin/model-services',
    { name: 'demo', providerId: provider.id, model: 'echo' },
    tenant.id,
  );
  const headers = { 'x-api-key': key.key };
  const stored = await withDatabase(parley, (database) =>
    fillConversations(database, tenant.id, { conversations: CONVERSATIONS, messages: HISTORY }),
  );

  const usersOf = async (prefix, count, keys) => {
    const users = [];
    for (let i = 0; i < count; i += 1) {
      const name = `${prefix}-${i}`;
      const text = await call('/chat/oauth/token', {}, { ...keys, client: 'pc', userId: name });
      users.push({ name, token: JSON.parse(text).data.token });
    }
    return users;
  };
  const target = { url, rich: true };
  const client = await startClient('im-client.mjs');
  const other = await startClient('flood.mjs');
  const otherSockets = await startClient('im-client.mjs');
  await client.ask('open', {
    target,
    users: await usersOf('quiet', QUIET_USERS, { appKey, appSecret }),
    concurrency: 20,
  });

  const large = JSON.stringify({
    list: Array.from({ length: 1_000 }, () => 'x'.repeat(LARGE_BODY_CHARS / 1_000)),
  });
  const message = (more) => ({
    type: 'single',
    source: 'flood-a',
    target: 'flood-b',
    msg: { msgId: '#', content: 'what people write to each other '.repeat(3) },
    ...more,
  });
  const post = (path, body) => [
    { method: 'POST', path, body: typeof body === 'string' ? body : JSON.stringify(body) },
  ];
  const get = (path) => ({ method: 'GET', path });
  const flooding = (requests, more) => ({ url, headers, requests, connections: CONNECTIONS, ...more });
  const turns = {
    len: `{"role":"user","content":"${'what people ask '.repeat(LARGE_BODY_CHARS / 400 / 16)}"}`,
  };
  const FLOODS = {
    messages: flooding(
      Array.from({ length: 50 }, (_, i) => post('/api/v1/im/messages', message({ source: `flood-${i}` }))[0]),
    ),
    histories: flooding(
      stored.ids.map((id) => get(`/api/v1/im/conversations/${id}/messages?limit=${HISTORY}`)),
    ),
    conversations: flooding([get('/api/v1/im/conversations?userId=a')]),
    broadcast: flooding(
      post('/api/v1/im/broadcasts', {
        users: Array.from({ length: BROADCAST_USERS }, (_, i) => `user-${i}`),
        msg: { content: 'to everybody' },
      }),
      { connections: 1, count: 1 },
    ),
    bodies: flooding(
      post('/api/v1/im/messages', `${JSON.stringify(message()).slice(0, -1)},"more":${large}}`),
    ),
    completions: flooding(
      post('/v1/chat/completions', `{"model":"none","messages":[${Array(400).fill(turns.len).join(',')}]}`),
    ),
  };

  /** A scrape tells the time since the one before it. */
  async function loopMs() {
    const text = await call('/metrics', asRoot());
    const read = (name) =>
      Number(new RegExp(`^nodejs_eventloop_lag_${name}_seconds (\\S+)`, 'm').exec(text)?.[1]) * 1000 -
      LOOP_RESOLUTION_MS;
    return { p99: read('p99'), max: read('max') };
  }

  /** The quiet tenant's times, with what the server did meanwhile. */
  async function quiet(label) {
    let before;
    let used;
    const sample = () => ({
      at: performance.now(),
      server: cpuMs(parley.pid),
      database: cpuBelowMs(parley.pid),
    });
    await loopMs();
    const result = await client.ask(
      'pace',
      { ...load, perSecond: PER_SECOND, ordered: true },
      ({ measuring }) => {
        const now = sample();
        if (measuring) before = now;
        else
          used = {
            server: (now.server - before.server) / (now.at - before.at),
            database: (now.database - before.database) / (now.at - before.at),
          };
      },
    );
    const loop = await loopMs();
    const figures = {
      ack: percentile(result.ackMs, 99),
      delivery: percentile(result.deliveryMs, 99),
      ...used,
      ...loop,
    };
    const percent = (share) => `${(share * 100).toFixed(0)} %`;
    say(
      `${label}: acknowledged p50 ${percentile(result.ackMs, 50).toFixed(1)} p99 ${figures.ack.toFixed(1)} ms, ` +
        `delivered p99 ${figures.delivery.toFixed(1)} ms; server ${percent(used.server)}, database ${percent(used.database)}; ` +
        `loop p99 ${loop.p99.toFixed(1)} max ${loop.max.toFixed(1)} ms`,
    );
    return figures;
  }

  const roundMs = load.warmUpMs + load.measureMs;
  /** Begins a flood; resolves to how it ended. */
  const begin = async (name) => {
    if (name === 'nobody') return undefined;
    if (name === 'sockets') {
      const pace = { perSecond: SOCKETS.perSecond, warmUpMs: 0, measureMs: roundMs, ordered: true };
      return otherSockets.ask('pace', pace);
    }
    return other.ask('flood', { ms: roundMs, ...FLOODS[name] });
  };
  const told = (name, result) => {
    if (!result?.times) return;
    const answers = Object.entries(result.statuses).map(([status, count]) => `${count} × ${status}`);
    say(
      `${name}: the flood got ${answers.join(', ')}: ${((result.times.length * 1000) / result.ms).toFixed(0)}/s, ` +
        `p50 ${median(result.times).toFixed(1)} ms`,
    );
  };

  await quiet('warm-up');
  for (const name of SECTIONS) {
    if (!only.includes(name)) continue;
    if (name === 'sockets') {
      const keys = { appKey: key.appKey, appSecret: key.appSecret };
      const users = await usersOf('flood', SOCKETS.users, keys);
      await otherSockets.ask('open', { target, users, concurrency: 20 });
    }
    const base = [];
    const flood = [];
    for (let round = 1; round <= rounds; round += 1) {
      base.push(await quiet(`${name}: base ${round}`));
      const ending = begin(name);
      flood.push(await quiet(`${name}: flood ${round}`));
      told(name, await ending);
      await delay(CALM_MS);
    }
    if (name === 'sockets') await otherSockets.ask('close', {});
    const of = (list, field) => median(list.map((one) => one[field]));
    const both = (field, more) => {
      const [mine, calm] = [of(flood, field), of(base, field)];
      return [mine, calm, { ratio: mine / calm, digits: 2, ...more }];
    };
    row(
      `${LABELS[name]}: acknowledged p99`,
      'ms',
      ...both('ack', name === 'nobody' ? {} : { target: TARGET }),
    );
    row('  delivered p99', 'ms', ...both('delivery', name === 'nobody' ? {} : { target: TARGET }));
    row('  event loop delayed, p99', 'ms', of(flood, 'p99'), of(base, 'p99'));
    row('  server busy', '%', of(flood, 'server') * 100, of(base, 'server') * 100, { digits: 0 });
    row('  Postgres busy', '%', of(flood, 'database') * 100, of(base, 'database') * 100, { digits: 0 });
  }
  await client.ask('close', {});
  return rows;
}
