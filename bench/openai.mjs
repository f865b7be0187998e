// `node bench/run.mjs openai`: what `POST /v1/chat/completions` costs beside the least that could be done.
// docs/benchmarks.md says what each figure means.
import { setTimeout as delay } from 'node:timers/promises';
import { median, percentile, rowsOf } from './figures.mjs';
import {
  BURST,
  comparing,
  countingSql,
  directTo,
  FIRST,
  openAiBody,
  PACED,
  PACED_WARM_UP,
  SHORT,
  SQL_MESSAGES,
  startScene,
} from './streaming.mjs';

/** Whom `model` names, and whether what is said is kept. The targets are for those that keep nothing. */
const KINDS = {
  service: { label: 'model service' },
  agent: { label: 'agent' },
  session: { label: 'agent, sessionId', kept: true },
};
const TARGETS = { burst: 1.6, paced: 1.4, firstPieceMs: 2 };
/** A request after longer than anything is taken for fresh without asking the database. */
const RARE = { count: 7, everyMs: 1_500 };
const PROMPT = 'You are a helpful assistant.';

export const SECTIONS = ['sql', 'first', 'burst', 'paced'];
export const KIND_NAMES = Object.keys(KINDS);

export async function measure({ only = SECTIONS, kinds = KIND_NAMES, profileDir, say }) {
  const { rows, row } = rowsOf();
  const shapes = [BURST.shape, PACED.shape, PACED_WARM_UP.shape];
  const scene = await startScene({ proxies: ['piece', 'chunk', 'bytes'], shapes, profileDir, say });
  const { upstream, client, parley, proxies, headers, services, call } = scene;
  for (const [slug, modelServiceId] of services) {
    const { id } = await call('/api/admin/assistants', { slug, name: slug });
    const version = await call(`/api/admin/assistants/${id}/versions`, { prompt: PROMPT, modelServiceId });
    await call(`/api/admin/assistants/${id}/versions/${version.id}/publish`, {});
  }

  const usage = { stream_options: { include_usage: true } };
  const direct = directTo(upstream);
  const proxyTarget =
    (name, { url }) =>
    (shape) => ({ ...direct(shape), name, url, body: openAiBody(shape, usage) });
  const parleyTarget = (kind, modelOf, more) => (shape) => ({
    ...direct(shape),
    name: kind,
    url: parley.quickstart.url,
    headers,
    body: openAiBody(modelOf(shape), usage),
    ...more,
  });
  const byAgent = (shape) => `agent:${shape}`;
  const targets = {
    service: parleyTarget('service', (shape) => shape),
    agent: parleyTarget('agent', byAgent),
    session: parleyTarget('session', byAgent, { fresh: 'sessionId' }),
  };
  const sides = {
    proxy: { pid: proxies.piece.pid, target: proxyTarget('proxy', proxies.piece) },
    ...Object.fromEntries(kinds.map((kind) => [kind, { pid: parley.pid, target: targets[kind] }])),
    chunkProxy: { pid: proxies.chunk.pid, target: proxyTarget('chunk proxy', proxies.chunk) },
    bytesProxy: { pid: proxies.bytes.pid, target: proxyTarget('bytes proxy', proxies.bytes) },
  };
  const compare = comparing(scene, sides, say);

  async function tellCpu(label, load, options, target, digits) {
    const { cpu, below } = await compare(label.split(',')[0], Object.keys(sides), load, options);
    for (const kind of kinds) {
      const ours = cpu(kind);
      row(`CPU a piece, ${label}: ${KINDS[kind].label}`, 'µs', ours, cpu('proxy'), {
        ratio: ours / cpu('proxy'),
        digits,
        ...(!KINDS[kind].kept && { target }),
      });
      row('  against a proxy writing by the chunk', 'µs', ours, cpu('chunkProxy'), {
        ratio: ours / cpu('chunkProxy'),
        digits,
      });
      row('  against a proxy passing on bytes', 'µs', ours, cpu('bytesProxy'), {
        ratio: ours / cpu('bytesProxy'),
        digits,
      });
      row('  Postgres beside it', 'µs', below(kind), undefined, { digits });
    }
  }

  const sections = {
    async sql() {
      const counted = countingSql(parley);
      const tell = (label, { trips, statements, transactions }) => {
        row(`SQL of a request, ${label}: round trips`, '', trips, undefined, { digits: 2 });
        row('  statements', '', statements, undefined, { digits: 2 });
        row('  transactions', '', transactions, undefined, { digits: 2 });
      };
      for (const kind of kinds) {
        const { label, kept } = KINDS[kind];
        say(`sql: ${SQL_MESSAGES} requests, ${label}`);
        const target = targets[kind](SHORT);
        const changes = Array.from({ length: SQL_MESSAGES }, (_, i) =>
          kept ? { sessionId: `counted-${i}` } : {},
        );
        await client.ask('streams', { target, count: 5, concurrency: 1 });
        const follow = () => client.ask('follow', { target, changes });
        tell(kept ? `${label}, its first` : label, await counted(SQL_MESSAGES, follow));
        if (kept) tell(`${label}, a further one`, await counted(SQL_MESSAGES, follow));
        const trips = [];
        for (let i = 0; i < RARE.count; i += 1) {
          await delay(RARE.everyMs);
          trips.push(
            (await counted(1, () => client.ask('streams', { target, count: 1, concurrency: 1 }))).trips,
          );
        }
        row('  round trips, the first after a silence', '', median(trips), undefined, { digits: 2 });
      }
    },

    async first() {
      const tell = (label, kind, through, base) => {
        for (const p of [50, 99]) {
          const added = percentile(through, p) - percentile(base, p);
          row(`first piece added, ${label}, p${p}: ${KINDS[kind].label}`, 'ms', added, undefined, {
            judged: added,
            digits: 2,
            ...(p === 50 && label === 'sequential' && !KINDS[kind].kept && { target: TARGETS.firstPieceMs }),
          });
        }
      };
      const tellBase = (what, values) => {
        for (const p of [50, 99])
          row(`  ${what}, p${p}`, 'ms', undefined, percentile(values, p), { digits: 2 });
      };
      const proxied = sides.proxy.target(SHORT);
      const each = kinds.map((kind) => targets[kind](SHORT));
      const all = [direct(SHORT), sides.bytesProxy.target(SHORT), proxied, ...each];
      await client.ask('sequential', { targets: all, count: FIRST.warmUp });
      say(`first piece: ${FIRST.sequential} times direct, proxies, ${kinds.join(', ')}, one after the other`);
      const { firstPieceMs } = await client.ask('sequential', { targets: all, count: FIRST.sequential });
      const [straight, byBytes, base, ...ours] = firstPieceMs;
      for (const [i, kind] of kinds.entries()) tell('sequential', kind, ours[i], base);
      tellBase('all of it through the proxy', base);
      tellBase('through a proxy passing on bytes', byBytes);
      tellBase('straight to the upstream', straight);
      const label = `${FIRST.ratePerSecond}/s`;
      const load = { count: FIRST.arriving, ratePerSecond: FIRST.ratePerSecond };
      const bases = [];
      for (const [i, kind] of kinds.entries()) {
        say(`first piece: ${FIRST.arriving} through the proxy and of ${kind}, at ${label} each`);
        const arrived = await client.ask('arriving', { targets: [proxied, each[i]], ...load });
        tell(label, kind, arrived.firstPieceMs[1], arrived.firstPieceMs[0]);
        bases.push(...arrived.firstPieceMs[0]);
      }
      tellBase('all of it through the proxy', bases);
    },

    burst: () => tellCpu('burst', BURST, { warmUp: BURST, warmUps: 2 }, TARGETS.burst, 2),

    paced: () =>
      tellCpu('paced, 100 streams × 50/s', PACED, { warmUp: PACED_WARM_UP, warmUps: 1 }, TARGETS.paced, 1),
  };
  for (const name of SECTIONS) if (only.includes(name)) await sections[name]();
  return rows;
}
