// `node bench/run.mjs usage`: how long a report takes over a month of a busy installation. docs/benchmarks.md says what
// each figure means.
import { setTimeout as delay } from 'node:timers/promises';
import { percentile, rowsOf } from './figures.mjs';
import { startParley, withDatabase } from './processes.mjs';

const BATCH = 500_000;
const TENANTS = 20;
const REPORTS = 50;
const REPORTS_WITH_NEWS = 10;
const NEWS = 200;
/** A report older than this adds up first what is new. */
const FRESH_MS = 1_000;
const TARGET_MS = 300;
const LEDGER_READS = 3;

export const SECTIONS = ['report'];

const COLUMNS = `message_id, tenant_id, key_id, user_id, assistant_id, model_service_id, attempts, prompt_tokens,
  completion_tokens, total_tokens, estimated, credits, outcome, first_piece_ms, latency_ms, wire, model, created_at`;
/** Tenants of very different size, as tenants are; 5 keys, 10 assistants, 6 models, 5,000 users, 4 wires. */
const row = (at) => `
  n, 1000 + floor(${TENANTS} * power(random(), 2))::int, n % 5, 'user ' || n % 5000, n % 10, n % 6, 1, n % 900, n % 400,
  n % 900 + n % 400, n % 50 = 0, n % 1300 / 1000.0, 'finished', 200, 2000, (array['dialogue', 'channel', 'openai', 'im'])[1 + n % 4],
  'model ' || n % 6, ${at}`;

export async function measure({ manyRows, say }) {
  const { rows, row: tell } = rowsOf();
  const parley = await startParley({});
  const { url, rootKey } = parley.quickstart;
  const from = new Date(Date.now() - 30 * 86_400_000).toISOString().slice(0, 13) + ':00:00Z';
  const to = new Date(Date.now() + 3_600_000).toISOString().slice(0, 13) + ':00:00Z';
  /** Ms until it is there, and its rows. */
  const report = async (query) => {
    const began = performance.now();
    const answer = await fetch(`${url}/api/admin/usage?from=${from}&to=${to}&${query}`, {
      headers: { 'x-api-key': rootKey },
    });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${query}: ${answer.status} ${text.slice(0, 300)}`);
    return { ms: performance.now() - began, text };
  };
  const requestsIn = (text) => JSON.parse(text).data.reduce((sum, { requests }) => sum + requests, 0);

  return withDatabase(parley, async (database) => {
    await database.query(`set session_replication_role = replica`);
    for (let first = 1; first <= manyRows; first += BATCH) {
      const last = Math.min(manyRows, first + BATCH - 1);
      await database.query(
        `insert into usage_ledger (${COLUMNS}) select ${row(`$1::timestamptz + (n::float8 / $2) * (now() - $1::timestamptz)`)}
         from generate_series($3::bigint, $4::bigint) n`,
        [from, manyRows, first, last],
      );
      say(`${last} of ${manyRows} rows`);
    }
    await database.query('vacuum analyze usage_ledger');
    await database.query('checkpoint');
    say('adding up the hours');
    const began = performance.now();
    let total = 0;
    while (total < manyRows) {
      total = requestsIn((await report('groupBy=day').catch(() => ({ text: '{"data":[]}' }))).text);
      if (performance.now() - began > 1_200_000) throw new Error(`${total} of ${manyRows} are added up`);
      if (total < manyRows) await delay(FRESH_MS);
    }
    const addedUpMs = performance.now() - began;
    await database.query('vacuum analyze usage_hours, usage_user_hours');

    say(`the ledger itself, ${LEDGER_READS} times`);
    const straight = [];
    for (let i = 0; i < LEDGER_READS; i += 1) {
      const before = performance.now();
      await database.query(
        `select date_trunc('day', created_at, 'UTC'), count(*), sum(attempts), sum(prompt_tokens), sum(completion_tokens),
           sum(total_tokens), sum(credits), count(*) filter (where estimated) from usage_ledger group by 1`,
      );
      straight.push(performance.now() - before);
    }
    const times = async (label, query, count, before = () => Promise.resolve()) => {
      say(`${count} reports ${label}`);
      await report(query);
      const all = [];
      for (let i = 0; i < count; i += 1) {
        await before(i);
        all.push((await report(query)).ms);
      }
      return all;
    };
    const byDay = await times('by day', 'groupBy=day', REPORTS);
    const withNews = await times(
      'by day, new rows before each',
      'groupBy=day',
      REPORTS_WITH_NEWS,
      async (i) => {
        const first = manyRows + 1 + i * NEWS;
        await database.query(
          `insert into usage_ledger (${COLUMNS}) select ${row('now()')} from generate_series($1::bigint, $2::bigint) n`,
          [first, first + NEWS - 1],
        );
        await delay(FRESH_MS);
      },
    );
    const detailed = await times('by day, tenant, model', 'groupBy=day,tenant,model', REPORTS);
    const csv = await times('by day, tenant, model, CSV', 'groupBy=day,tenant,model&format=csv', REPORTS);
    const ofUser = await times('of a user by day', 'groupBy=day&user=user%2042&tenant=1000', REPORTS);
    const name = `${manyRows / 1e6} M rows`;
    const baseline = percentile(straight, 50);
    const aimed = (ms) => ({ target: TARGET_MS, judged: ms, ratio: undefined });
    tell(
      `month by day, ${name}, p50; the ledger itself`,
      'ms',
      percentile(byDay, 50),
      baseline,
      aimed(percentile(byDay, 50)),
    );
    tell('  p99', 'ms', percentile(byDay, 99));
    tell(`  with ${NEWS} new rows since the last one, p50`, 'ms', percentile(withNews, 50), baseline);
    tell('  by day, tenant, model, p50', 'ms', percentile(detailed, 50));
    tell('    as CSV, p50', 'ms', percentile(csv, 50));
    tell('  of one user, by day, p50', 'ms', percentile(ofUser, 50));
    tell('adding up all of it once', 's', addedUpMs / 1000);
    return rows;
  });
}
