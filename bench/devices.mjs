// `node bench/run.mjs devices`: what a device of a user with very many conversations costs, and what everybody else
// feels of it. docs/benchmarks.md says what each figure means.
import { setTimeout as delay } from 'node:timers/promises';
import WebSocket from 'ws';
import { median, percentile, rowsOf } from './figures.mjs';
import { fillOneUser } from './im-rows.mjs';
import { cpuBelowMs, cpuMs, startParley, withDatabase } from './processes.mjs';

export const CONVERSATIONS = 10_000;
const ALONE = 15;
const CROWD = 20;
const QUIET = 200;
const QUIET_EVERY_MS = 10;

export const SECTIONS = ['handshake'];

const LIMITS = {
  IM_CONNECTIONS_PER_USER: '10000',
  IM_CONNECTIONS_PER_ADDRESS: '10000',
  IM_TOKENS_PER_MINUTE: '1000000',
};

export async function measure({ say }) {
  const { rows, row } = rowsOf();
  const parley = await startParley({ env: LIMITS });
  const { url, rootKey, apiKey, tenantId } = parley.quickstart;
  const ask = async (path, body, headers) => {
    const answer = await fetch(`${url}${path}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: JSON.stringify(body),
    });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${text.slice(0, 300)}`);
    return JSON.parse(text);
  };
  const tokenOf = async (key, userId, client) =>
    (await ask('/api/v1/im/tokens', { userId, client }, { 'x-api-key': key })).data.token;
  const quietTenant = await ask('/api/admin/tenants', { name: 'quiet' }, { 'x-api-key': rootKey });
  const quietKey = await ask(
    `/api/admin/tenants/${quietTenant.id}/api-keys`,
    { name: 'quiet', scopes: ['im'] },
    { 'x-api-key': rootKey },
  );

  /** From the beginning of the handshake to `ready`, in ms. */
  const ready = (token) =>
    new Promise((resolve, reject) => {
      const began = performance.now();
      const ws = new WebSocket(`${url.replace('http', 'ws')}/chat?token=${token}`, ['parley.im.v1']);
      ws.once('message', (text) => {
        const { type, conversations } = JSON.parse(text);
        if (type !== 'ready') reject(new Error(`not ready: ${text}`));
        else resolve({ ms: performance.now() - began, conversations: conversations.length, ws });
      });
      ws.once('error', reject);
    });
  const come = async (token, expected) => {
    const { ms, conversations, ws } = await ready(token);
    if (expected !== undefined && conversations !== expected)
      throw new Error(`${conversations} conversations in ready, ${expected} expected`);
    ws.terminate();
    return ms;
  };
  const cpu = () => ({ server: cpuMs(parley.pid), postgres: cpuBelowMs(parley.pid) });

  return withDatabase(parley, async (database) => {
    say(`${CONVERSATIONS} conversations of one user`);
    await fillOneUser(database, tenantId, 'collector', CONVERSATIONS);
    const marks = async () =>
      Number((await database.query('select count(*) as n from device_marks')).rows[0].n);
    await come(await tokenOf(quietKey.key ?? quietKey.apiKey, 'warm', 'pc'));
    // The user's first device is behind everywhere; what is measured are further ones.
    const tokens = await Promise.all(
      Array.from({ length: ALONE + CROWD }, (_, i) => tokenOf(apiKey, 'collector', `device-${i}`)),
    );

    say(`${ALONE} new devices, one after the other`);
    const [before, marksBefore] = [cpu(), await marks()];
    const fresh = [];
    for (const token of tokens.slice(0, ALONE)) fresh.push(await come(token, 500));
    const [between, marksBetween] = [cpu(), await marks()];
    say('the same again');
    const known = [];
    for (const token of tokens.slice(0, ALONE)) known.push(await come(token, 500));
    const after = cpu();
    const each = (a, b, of) => (b[of] - a[of]) / ALONE;
    row('a new device: handshake to ready, median', 'ms', median(fresh));
    row('  worst', 'ms', Math.max(...fresh));
    row('  CPU, server', 'ms', each(before, between, 'server'));
    row('  CPU, Postgres', 'ms', each(before, between, 'postgres'));
    row('  rows of marks', '', (marksBetween - marksBefore) / ALONE, undefined, { digits: 0 });
    row('a known device: handshake to ready, median', 'ms', median(known));
    row('  CPU, server', 'ms', each(between, after, 'server'));
    row('  CPU, Postgres', 'ms', each(between, after, 'postgres'));

    const quiet = await Promise.all(
      Array.from({ length: QUIET }, (_, i) => tokenOf(quietKey.key ?? quietKey.apiKey, `quiet-${i}`, 'pc')),
    );
    /** Handshakes of another tenant's users, each with one conversation at most, while `work` is under way. */
    const others = async () => {
      const times = [];
      for (const token of quiet) {
        times.push(come(token));
        await delay(QUIET_EVERY_MS);
      }
      return Promise.all(times);
    };
    say("another tenant's handshakes, alone");
    await others();
    const alone = await others();
    say(`and while ${CROWD} new devices come at once`);
    const crowd = tokens.slice(ALONE).map((token) => come(token, 500));
    const beside = await others();
    const crowdMs = await Promise.all(crowd);
    for (const p of [50, 99, 100])
      row(
        `another tenant's handshake meanwhile, p${p}; alone`,
        'ms',
        percentile(beside, p),
        percentile(alone, p),
        {
          ratio: percentile(beside, p) / percentile(alone, p),
        },
      );
    row(`${CROWD} new devices at once: the last one ready after`, 'ms', Math.max(...crowdMs));
    return rows;
  });
}
