// What the benches of streamed answers have in common (dialogue.mjs, openai.mjs): the processes, the loads, and how CPU
// and SQL are counted.
import { setTimeout as delay } from 'node:timers/promises';
import { median } from './figures.mjs';
import { cpuBelowMs, cpuMs, machineMs, startClient, startParley, startProgram } from './processes.mjs';

export const BURST = { shape: 'burst-2000', count: 40, concurrency: 8, rounds: 5 };
export const PACED = { shape: 'paced-50x8', count: 100, concurrency: 100, staggerMs: 9, rounds: 2 };
export const PACED_WARM_UP = { shape: 'paced-50x2', count: 100, concurrency: 100, staggerMs: 3 };
export const SHORT = 'burst-20';
export const FIRST = { warmUp: 150, sequential: 300, arriving: 200, ratePerSecond: 30 };
export const SQL_MESSAGES = 50;
export const CONTENT = 'Tell me, in as many words as it takes, what you think of this.';

/** A request of the OpenAI wire, whoever answers it; `more` is what else its body says. */
export const openAiBody = (model, more) =>
  JSON.stringify({ model, messages: [{ role: 'user', content: CONTENT }], stream: true, ...more });

/** Straight to the upstream. */
export const directTo = (upstream) => (shape) => ({
  name: 'direct',
  wire: 'openai',
  shape,
  url: upstream.url,
  path: '/v1/chat/completions',
  headers: { 'content-type': 'application/json', authorization: 'Bearer sk-bench' },
  body: openAiBody(shape),
});

/**
 * Everything that takes part: `proxies` are the modes of baseline-proxy.mjs, `shapes` the further answers that Parley has
 * a model service for, each of the shape's name.
 */
export async function startScene({ proxies: modes, shapes, profileDir, env, say }) {
  say('starting upstream, proxies, client and Parley');
  const upstream = await startProgram('upstream.mjs');
  const [client, parley, ...started] = await Promise.all([
    startClient(),
    startParley({ upstream: upstream.url, model: SHORT, profileDir, env }),
    ...modes.map((mode) => startProgram('baseline-proxy.mjs', [mode, upstream.url])),
  ]);
  const proxies = Object.fromEntries(modes.map((mode, i) => [mode, started[i]]));

  const { url, apiKey, modelServiceId } = parley.quickstart;
  const headers = { 'content-type': 'application/json', 'x-api-key': apiKey };
  /** Parley's own API, with the tenant's key. */
  const call = async (path, body) => {
    const init = body && { method: 'POST', body: JSON.stringify(body) };
    const response = await fetch(url + path, { headers, ...init });
    if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
    return response.json();
  };
  const services = new Map([[SHORT, modelServiceId]]);
  const { providerId } = await call(`/api/admin/model-services/${modelServiceId}`);
  for (const shape of shapes) {
    services.set(
      shape,
      (await call('/api/admin/model-services', { name: shape, providerId, model: shape })).id,
    );
  }
  return { upstream, proxies, client, parley, headers, services, call };
}

/** `compare` of a scene's sides, each a pid and `target(shape)`: CPU in µs a piece, medians of the rounds. */
export function comparing({ upstream, proxies, client, parley }, sides, say) {
  const ours = [upstream, client, parley, ...Object.values(proxies)].map(({ pid }) => pid);

  /** One round of streams at one side: its CPU, what is below it (Postgres) apart. */
  async function round({ pid, target }, { shape, ...load }) {
    const sample = () => ({
      cpu: cpuMs(pid),
      below: cpuBelowMs(parley.pid),
      ours: ours.reduce((sum, one) => sum + cpuMs(one), 0),
      machine: machineMs(),
    });
    const before = sample();
    let used;
    const { pieces, wallMs } = await client.ask('streams', { target: target(shape), ...load }, () => {
      const after = sample();
      used = Object.fromEntries(Object.keys(after).map((which) => [which, after[which] - before[which]]));
    });
    return {
      cpu: (used.cpu * 1000) / pieces,
      below: pid === parley.pid ? (used.below * 1000) / pieces : 0,
      others: Math.max(0, used.machine - used.ours - used.below) / wallMs,
    };
  }

  return async function compare(label, names, load, { warmUp, warmUps }) {
    for (let i = 0; i < warmUps; i += 1) {
      say(`${label}: warm-up ${i + 1} of ${warmUps}`);
      for (const name of names) await round(sides[name], warmUp);
    }
    const results = Object.fromEntries(names.map((name) => [name, []]));
    for (let i = 0; i < load.rounds; i += 1) {
      const order = i % 2 ? [...names].reverse() : names;
      for (const name of order) results[name].push(await round(sides[name], load));
      const shown = names.map((name) => `${name} ${results[name][i].cpu.toFixed(1)}`).join(', ');
      const others = Math.max(...names.map((name) => results[name][i].others));
      say(
        `${label}: round ${i + 1} of ${load.rounds}: ${shown} µs a piece; others took up to ${(others * 100).toFixed(0)} % of a core`,
      );
    }
    const of = (name, field) => median(results[name].map((result) => result[field]));
    return { cpu: (name) => of(name, 'cpu'), below: (name) => of(name, 'below') };
  };
}

/** What `work` costs the database, a message: from /metrics, before it and a moment after. */
export function countingSql({ quickstart: { url, rootKey } }) {
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
  return async (messages, work) => {
    const before = await gauges();
    const result = await work();
    await delay(100);
    const after = await gauges();
    const [statements, pipelined, transactions] = after.map((value, i) => (value - before[i]) / messages);
    // A transaction outside the counted hot path: BEGIN, its scope, at least one query, COMMIT.
    const trips = pipelined + 4 * Math.max(0, transactions - pipelined);
    return { result, statements, trips, transactions };
  };
}
