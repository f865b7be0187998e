// `node bench/run.mjs dialogue`: what Parley costs beside the least that could be done. docs/benchmarks.md says what
// each figure means.
import { setTimeout as delay } from 'node:timers/promises';
import { median, percentile, rowsOf } from './figures.mjs';
import { cpuBelowMs, cpuMs, residentMiB, startClient, startParley, startProgram } from './processes.mjs';

const BURST = { shape: 'burst-2000', count: 40, concurrency: 8, rounds: 5 };
const PACED = { shape: 'paced-50x8', count: 100, concurrency: 100, staggerMs: 9, rounds: 2 };
const PACED_WARM_UP = { shape: 'paced-50x2', count: 100, concurrency: 100, staggerMs: 3 };
const SHORT = 'burst-20';
const OPEN = 'open-50';
const OPEN_STREAMS = 1_000;
const FIRST = { sequential: 300, arriving: 200, ratePerSecond: 30 };
const SQL_MESSAGES = 50;

export const SECTIONS = ['memory', 'sql', 'first', 'burst', 'paced'];

export async function measure({ only = SECTIONS, profileDir, say }) {
  const { rows, row } = rowsOf();

  say('starting upstream, proxies, client and Parley');
  const upstream = await startProgram('upstream.mjs');
  const [proxy, chunkProxy, client, parley] = await Promise.all([
    startProgram('baseline-proxy.mjs', ['piece', upstream.url]),
    startProgram('baseline-proxy.mjs', ['chunk', upstream.url]),
    startClient(),
    startParley({ upstream: upstream.url, model: SHORT, profileDir }),
  ]);
  const parleyTarget = await targetsOf(parley.quickstart);
  const content = 'Tell me, in as many words as it takes, what you think of this.';
  const baselineTarget =
    (name, { url }) =>
    (shape) => ({
      name,
      wire: 'sse',
      shape,
      url,
      path: '/api/copywriting/dialogue/sse/send-message/1',
      headers: { 'content-type': 'application/json', 'x-api-key': parley.quickstart.apiKey },
      body: JSON.stringify({ speechUserDialogueMessage: { content }, modelServiceId: shape }),
    });
  const direct = (shape) => ({
    name: 'direct',
    wire: 'openai',
    shape,
    url: upstream.url,
    path: '/v1/chat/completions',
    headers: { 'content-type': 'application/json', authorization: 'Bearer sk-bench' },
    body: JSON.stringify({ model: shape, messages: [{ role: 'user', content }], stream: true }),
  });
  const sides = {
    parley: { pid: parley.pid, target: parleyTarget },
    proxy: { pid: proxy.pid, target: baselineTarget('proxy', proxy) },
    chunkProxy: { pid: chunkProxy.pid, target: baselineTarget('chunk proxy', chunkProxy) },
  };

  async function targetsOf({ url, apiKey, assistantVersionId, modelServiceId }) {
    const headers = { 'content-type': 'application/json', 'x-api-key': apiKey };
    const call = async (path, init) => {
      const response = await fetch(url + path, { headers, ...init });
      if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
      return response.json();
    };
    const services = new Map([[SHORT, modelServiceId]]);
    const { providerId } = await call(`/api/admin/model-services/${modelServiceId}`);
    for (const shape of [BURST.shape, PACED.shape, PACED_WARM_UP.shape, OPEN]) {
      const body = JSON.stringify({ name: shape, providerId, model: shape });
      services.set(shape, (await call('/api/admin/model-services', { method: 'POST', body })).id);
    }
    return (shape) => ({
      name: 'parley',
      wire: 'sse',
      shape,
      url,
      path: `/api/copywriting/dialogue/sse/send-message/${assistantVersionId}`,
      headers,
      body: JSON.stringify({
        speechUserDialogueMessage: { content },
        modelServiceId: services.get(shape),
      }),
    });
  }

  /** CPU of a side, in µs a piece, for one round of streams; Postgres' apart. */
  async function round({ pid, target }, { shape, ...load }) {
    const before = cpuMs(pid);
    const belowBefore = pid === parley.pid ? cpuBelowMs(pid) : 0;
    let used;
    let below = 0;
    const { pieces, wallMs } = await client.ask('streams', { target: target(shape), ...load }, () => {
      used = cpuMs(pid) - before;
      below = pid === parley.pid ? cpuBelowMs(pid) - belowBefore : 0;
    });
    return { cpu: (used * 1000) / pieces, below: (below * 1000) / pieces, wallMs };
  }

  async function compare(label, names, load, warmUp, warmUps) {
    for (let i = 0; i < warmUps; i += 1) {
      say(`${label}: warm-up ${i + 1} of ${warmUps}`);
      for (const name of names) await round(sides[name], warmUp);
    }
    const results = Object.fromEntries(names.map((name) => [name, []]));
    for (let i = 0; i < load.rounds; i += 1) {
      const order = i % 2 ? [...names].reverse() : names;
      for (const name of order) results[name].push(await round(sides[name], load));
      const shown = names.map((name) => `${name} ${results[name][i].cpu.toFixed(1)}`).join(', ');
      say(`${label}: round ${i + 1} of ${load.rounds}: ${shown} µs a piece`);
    }
    const of = (name, field) => median(results[name].map((result) => result[field]));
    return { cpu: (name) => of(name, 'cpu'), below: of('parley', 'below') };
  }

  const sections = {
    async memory() {
      const settled = async (side) => {
        const { target, pid } = side;
        // A little traffic first: both have their code compiled and their pools open.
        await client.ask('streams', { target: target(SHORT), count: 100, concurrency: 10 });
        const empty = residentMiB(pid);
        await client.ask('hold', { target: target(OPEN), count: OPEN_STREAMS });
        const seen = [];
        for (let i = 0; i < 8; i += 1) {
          await delay(500);
          seen.push(residentMiB(pid));
        }
        upstream.child.send({ release: true });
        await client.ask('drain', {});
        return { empty, open: median(seen) };
      };
      say(`memory: ${OPEN_STREAMS} open streams at the proxy`);
      const base = await settled(sides.proxy);
      say(`memory: ${OPEN_STREAMS} open streams at Parley`);
      const ours = await settled(sides.parley);
      row(`resident memory, ${OPEN_STREAMS} open streams`, 'MiB', ours.open, base.open, {
        ratio: ours.open / base.open,
        target: 2.0,
      });
      row('  before they were opened', 'MiB', ours.empty, base.empty, { ratio: ours.empty / base.empty });
      const each = (side) => ((side.open - side.empty) * 1024) / OPEN_STREAMS;
      row('  growth a stream', 'KiB', each(ours), each(base), { ratio: each(ours) / each(base) });
    },

    async sql() {
      say(`sql: ${SQL_MESSAGES} first messages, ${SQL_MESSAGES} further ones`);
      const { url, rootKey } = parley.quickstart;
      const gauges = async () => {
        const response = await fetch(`${url}/metrics`, { headers: { 'x-api-key': rootKey } });
        const text = await response.text();
        const read = (name) => {
          const value = new RegExp(`^parley_database_${name} (\\d+)`, 'm').exec(text)?.[1];
          if (value === undefined) throw new Error(`no parley_database_${name} in /metrics`);
          return Number(value);
        };
        return ['statements', 'round_trips', 'transactions'].map(read);
      };
      const target = parleyTarget(SHORT);
      const measure = async (work) => {
        const before = await gauges();
        const result = await work();
        await delay(100);
        const after = await gauges();
        const [statements, pipelined, transactions] = after.map(
          (value, i) => (value - before[i]) / SQL_MESSAGES,
        );
        // A transaction outside the counted hot path: BEGIN, its scope, at least one query, COMMIT.
        return {
          result,
          statements,
          trips: pipelined + 4 * Math.max(0, transactions - pipelined),
          transactions,
        };
      };
      await client.ask('streams', { target, count: 5, concurrency: 1 });
      const load = { target, count: SQL_MESSAGES, concurrency: 1 };
      const first = await measure(() => client.ask('streams', load));
      const further = await measure(() =>
        client.ask('follow', { target, dialogueIds: first.result.dialogueIds }),
      );
      for (const [which, { statements, trips, transactions }] of [
        ['first', first],
        ['further', further],
      ]) {
        row(`SQL of a ${which} message: round trips`, '', trips, undefined, {
          judged: trips,
          target: 4,
          digits: 2,
        });
        row('  statements', '', statements, undefined, { digits: 2 });
        row('  transactions', '', transactions, undefined, { digits: 2 });
      }
    },

    async first() {
      const names = ['direct', 'parley', 'proxy'];
      const targets = [direct(SHORT), parleyTarget(SHORT), sides.proxy.target(SHORT)];
      await client.ask('sequential', { targets, count: 150 });
      const tell = (label, { firstPieceMs }) => {
        for (const p of [50, 99]) {
          const [straight, ours, bare] = firstPieceMs.map((values) => percentile(values, p));
          const added = ours - straight;
          row(`first piece added, ${label}, p${p}`, 'ms', added, bare - straight, {
            judged: added,
            target: p === 50 ? 3 : 12,
            digits: 2,
          });
        }
        row('  going straight, p50', 'ms', undefined, percentile(firstPieceMs[0], 50), { digits: 2 });
      };
      say(`first piece: ${FIRST.sequential} times ${names.join(', ')}, one after the other`);
      tell('sequential', await client.ask('sequential', { targets, count: FIRST.sequential }));
      say(`first piece: ${FIRST.arriving} of each at ${FIRST.ratePerSecond} a second each`);
      const load = { targets, count: FIRST.arriving, ratePerSecond: FIRST.ratePerSecond };
      tell(`${FIRST.ratePerSecond}/s`, await client.ask('arriving', load));
    },

    async burst() {
      const names = ['proxy', 'parley', 'chunkProxy'];
      const { cpu, below } = await compare('burst', names, BURST, BURST, 2);
      row('CPU a piece, burst', 'µs', cpu('parley'), cpu('proxy'), {
        ratio: cpu('parley') / cpu('proxy'),
        target: 2.0,
        digits: 2,
      });
      row('  against a proxy writing by the chunk', 'µs', cpu('parley'), cpu('chunkProxy'), {
        ratio: cpu('parley') / cpu('chunkProxy'),
        digits: 2,
      });
      row('  Postgres beside it', 'µs', below, undefined, { digits: 2 });
    },

    async paced() {
      const { cpu, below } = await compare('paced', ['proxy', 'parley'], PACED, PACED_WARM_UP, 1);
      row('CPU a piece, 100 streams × 50/s', 'µs', cpu('parley'), cpu('proxy'), {
        ratio: cpu('parley') / cpu('proxy'),
        target: 1.6,
        digits: 1,
      });
      row('  Postgres beside it', 'µs', below, undefined, { digits: 1 });
    },
  };
  for (const name of SECTIONS) if (only.includes(name)) await sections[name]();
  return rows;
}
