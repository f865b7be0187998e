// `node bench/run.mjs dialogue`: what Parley costs beside the least that could be done. docs/benchmarks.md says what
// each figure means.
import { setTimeout as delay } from 'node:timers/promises';
import { median, percentile, rowsOf } from './figures.mjs';
import { residentMiB } from './processes.mjs';
import {
  BURST,
  comparing,
  CONTENT,
  countingSql,
  directTo,
  FIRST,
  PACED,
  PACED_WARM_UP,
  SHORT,
  SQL_MESSAGES,
  startScene,
} from './streaming.mjs';

const OPEN = 'open-50';
const OPEN_STREAMS = 1_000;

export const SECTIONS = ['memory', 'sql', 'first', 'burst', 'paced'];

export async function measure({ only = SECTIONS, profileDir, say }) {
  const { rows, row } = rowsOf();
  const scene = await startScene({
    proxies: ['piece', 'chunk'],
    shapes: [BURST.shape, PACED.shape, PACED_WARM_UP.shape, OPEN],
    profileDir,
    say,
  });
  const { upstream, client, parley, proxies, headers, services } = scene;
  const targets =
    (name, url, version, modelOf = (shape) => shape) =>
    (shape) => ({
      name,
      wire: 'sse',
      shape,
      url,
      path: `/api/copywriting/dialogue/sse/send-message/${version}`,
      headers,
      body: JSON.stringify({
        speechUserDialogueMessage: { content: CONTENT },
        modelServiceId: modelOf(shape),
      }),
    });
  const { url: parleyUrl, assistantVersionId } = parley.quickstart;
  const direct = directTo(upstream);
  const sides = {
    parley: {
      pid: parley.pid,
      target: targets('parley', parleyUrl, assistantVersionId, (shape) => services.get(shape)),
    },
    proxy: { pid: proxies.piece.pid, target: targets('proxy', proxies.piece.url, 1) },
    chunkProxy: { pid: proxies.chunk.pid, target: targets('chunk proxy', proxies.chunk.url, 1) },
  };
  const compare = comparing(scene, sides, say);

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
      const counted = countingSql(parley);
      const target = sides.parley.target(SHORT);
      await client.ask('streams', { target, count: 5, concurrency: 1 });
      const load = { target, count: SQL_MESSAGES, concurrency: 1 };
      const first = await counted(SQL_MESSAGES, () => client.ask('streams', load));
      const changes = first.result.dialogueIds.map((id) => ({ id }));
      const further = await counted(SQL_MESSAGES, () => client.ask('follow', { target, changes }));
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
      const targets = [direct(SHORT), sides.parley.target(SHORT), sides.proxy.target(SHORT)];
      await client.ask('sequential', { targets, count: FIRST.warmUp });
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
      const { cpu, below } = await compare('burst', names, BURST, { warmUp: BURST, warmUps: 2 });
      row('CPU a piece, burst', 'µs', cpu('parley'), cpu('proxy'), {
        ratio: cpu('parley') / cpu('proxy'),
        target: 2.0,
        digits: 2,
      });
      row('  against a proxy writing by the chunk', 'µs', cpu('parley'), cpu('chunkProxy'), {
        ratio: cpu('parley') / cpu('chunkProxy'),
        digits: 2,
      });
      row('  Postgres beside it', 'µs', below('parley'), undefined, { digits: 2 });
    },

    async paced() {
      const { cpu, below } = await compare('paced', ['proxy', 'parley'], PACED, {
        warmUp: PACED_WARM_UP,
        warmUps: 1,
      });
      row('CPU a piece, 100 streams × 50/s', 'µs', cpu('parley'), cpu('proxy'), {
        ratio: cpu('parley') / cpu('proxy'),
        target: 1.6,
        digits: 1,
      });
      row('  Postgres beside it', 'µs', below('parley'), undefined, { digits: 1 });
    },
  };
  for (const name of SECTIONS) if (only.includes(name)) await sections[name]();
  return rows;
}
