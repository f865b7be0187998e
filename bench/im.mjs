// `node bench/run.mjs im`: what Parley's IM wire carries beside the least that could be done. docs/benchmarks.md says
// what each figure means.
import { spawnSync } from 'node:child_process';
import { setTimeout as delay } from 'node:timers/promises';
import { Agent, request } from 'undici';
import { mean, median, percentile, rowsOf } from './figures.mjs';
import { fillHistory, fillStorm } from './im-rows.mjs';
import {
  COLLECTING,
  cpuBelowMs,
  cpuMs,
  machineMs,
  raiseFileLimit,
  heldMiB,
  residentMiB,
  startClient,
  startParley,
  startProgram,
  withDatabase,
} from './processes.mjs';

const USERS = 100;
const IN_FLIGHT = 16;
const SATURATED = { warmUpMs: 2_000, measureMs: 6_000, inFlight: IN_FLIGHT };
const ROUNDS = 3;
const MAX_ROUNDS = 12;
/** How much more or less the same load may be carried after a round than before it. */
const STEADY = 0.15;
/** How much of a core others may take during a round, in percent: what the hypervisor takes is among it. */
const OTHERS = 5;
const PACED = { warmUpMs: 2_000, measureMs: 8_000 };
const IDLE = 10_000;
const WARM_UP_IDLE = 200;
const FANOUT = { target: 'everybody', count: 50, everyMs: 150 };
const FANOUT_MEMBERS = 1_000;
/** prom-client's resolution: it times a timer of so many ms, and tells the whole of it. */
const LOOP_RESOLUTION_MS = 10;
const STORM = { devices: 5_000, perSecond: 1_000 };
const PAGES = 300;
const WARM_UP_PAGES = 100;
const PAGE = 50;
export const FEW_ROWS = 50_000;

/** The limits are there against what this is. */
const UNLIMITED = Object.fromEntries(
  [
    'FRAMES_PER_SECOND',
    'FRAMES_BURST',
    'TOKENS_PER_MINUTE',
    'CONNECTIONS_PER_ADDRESS',
    'CONNECTIONS_PER_USER',
    'CONNECTIONS_PER_TENANT',
    'MAX_GROUP_MEMBERS',
  ].map((name) => [`IM_${name}`, '1000000']),
);

export const SECTIONS = ['throughput', 'latency', 'memory', 'fanout', 'history', 'storm'];

const names = (prefix, count) => Array.from({ length: count }, (_, i) => `${prefix}-${i}`);

export async function measure({ only = SECTIONS, profileDir, manyRows, say }) {
  const { rows, row } = rowsOf();
  raiseFileLimit(IDLE + 500);
  const client = await startClient('im-client.mjs');
  const agent = new Agent({ connections: 16, pipelining: 1 });
  /** The answer's text; throws when it is not 2xx. */
  async function call(url, { body, ...options }) {
    const headers = { 'content-type': 'application/json', ...options.headers };
    const response = await request(url, {
      ...options,
      headers,
      body: JSON.stringify(body),
      dispatcher: agent,
    });
    const text = await response.body.text();
    if (response.statusCode >= 300) throw new Error(`${url}: ${response.statusCode} ${text.slice(0, 500)}`);
    return text;
  }

  /** A Parley of its own for every section: none finds what another has left in its memory or its tables. */
  async function withParley(label, work, options) {
    say(`${label}: starting Parley`);
    const parley = await startParley({ profileDir, env: UNLIMITED, ...options });
    try {
      return await work(parley);
    } finally {
      await parley.stop();
    }
  }

  async function withProgram(program, args, work, options) {
    const started = await startProgram(program, args, options);
    try {
      return await work(started);
    } finally {
      await started.stop();
    }
  }

  /** As users with tokens; Parley signs them, for the others a token is a name. */
  async function usersOf(parley, userIds, more) {
    const { url, appKey, appSecret } = parley.quickstart;
    const users = [];
    const asking = userIds.entries();
    const worker = async () => {
      for (const [i, userId] of asking) {
        const text = await call(`${url}/chat/oauth/token`, {
          method: 'POST',
          body: { appKey, appSecret, client: 'pc', userId, ...more },
        });
        users[i] = { name: userId, token: JSON.parse(text).data.token };
      }
    };
    await Promise.all(Array.from({ length: 16 }, worker));
    return users;
  }
  const namesAsTokens = (userIds) => userIds.map((name) => ({ name, token: name }));
  const parleyTarget = ({ quickstart }) => ({ url: quickstart.url, rich: true });
  const openPairs = async (side, prefix) => {
    const users = await side.users(names(prefix, USERS));
    await client.ask('open', { target: side.target, users, concurrency: 20 });
  };

  const sideOf = (parley) => ({
    name: 'Parley',
    pid: parley.pid,
    databaseOf: parley.pid,
    target: parleyTarget(parley),
    ordered: true,
    users: (userIds) => usersOf(parley, userIds),
  });
  const baselineOf = (name, { pid, url }, { databaseOf, ordered = false } = {}) => ({
    name,
    pid,
    databaseOf,
    ordered,
    target: { url, rich: false },
    users: namesAsTokens,
  });

  /** CPU used so far, in ms. */
  const sample = (side) => ({
    ms: performance.now(),
    server: cpuMs(side.pid),
    client: cpuMs(client.pid),
    database: side.databaseOf ? cpuBelowMs(side.databaseOf) : 0,
    machine: machineMs(),
    side,
  });
  const since = (before) => {
    const after = sample(before.side);
    const used = (which) => after[which] - before[which];
    const [ms, server, database, ours] = ['ms', 'server', 'database', 'client'].map(used);
    return { ms, server, database, client: ours, others: used('machine') - server - database - ours };
  };
  /** In percent of one core; `others` is whoever else is at work on this machine. */
  const busyOf = (used) =>
    ['server', 'client', 'database', 'others']
      .map((which) => `${which} ${Math.max(0, (used[which] / used.ms) * 100).toFixed(0)} %`)
      .join(', ');

  let phases = 0;
  /** A command over fresh pairs; CPU of its measured part in µs a message, and of whom else the machine works for. */
  async function run(label, side, command, load) {
    phases += 1;
    await openPairs(side, `p${phases}`);
    let before;
    let used;
    const told = ({ measuring }) => (measuring ? (before = sample(side)) : (used = since(before)));
    const result = await client.ask(command, { ...load, ordered: side.ordered }, told);
    await client.ask('close', {});
    const perSecond = (result.messages * 1000) / used.ms;
    const each = (which) => (used[which] * 1000) / result.messages;
    const shown = [
      `${perSecond.toFixed(0)} messages/s`,
      `CPU a message: server ${each('server').toFixed(1)} µs, database ${each('database').toFixed(1)} µs`,
      busyOf(used),
      ...(side.ordered ? [] : [`${result.overtaken} of ${2 * result.sent} frames out of order`]),
      ...(result.echoed ? [`${result.echoed} sent back to their senders`] : []),
    ];
    say(`${label}: ${side.name}: ${shown.join(', ')}`);
    return {
      ...result,
      perSecond,
      server: each('server'),
      database: each('database'),
      clientBusy: (used.client / used.ms) * 100,
      others: (used.others / used.ms) * 100,
    };
  }
  const saturated = (side, load = SATURATED) => {
    say(`throughput: ${side.name}`);
    return run('throughput', side, 'saturate', load);
  };

  /** Another database on the very PostgreSQL that Parley has started. */
  async function databaseBeside(parley, name) {
    await withDatabase(parley, (database) => database.query(`create database ${name}`));
    return parley.databaseUrl(name);
  }
  const withRelay = (work, options) =>
    withProgram(
      'im-relay.mjs',
      ['bare'],
      (program) => work(baselineOf('bare relay', program, { ordered: true })),
      options,
    );
  const withStored = async (parley, work) => {
    const url = await databaseBeside(parley, 'baseline_stored');
    return withProgram('im-relay.mjs', ['stored', url], (program) =>
      work(baselineOf('relay with an INSERT', program, { databaseOf: parley.pid })),
    );
  };
  const withGateway = async (parley, work) => {
    const url = await databaseBeside(parley, 'baseline_gateway');
    return withProgram('im-gateway.mjs', ['stored', url], (program) =>
      work(baselineOf('NestJS gateway, TypeORM', program, { databaseOf: parley.pid })),
    );
  };

  async function throughput(parley) {
    const bare = () => withRelay((side) => saturated(side));
    const ours = () => saturated(sideOf(parley));
    // There and back: a machine that gets slower or faster meanwhile does so for both.
    const [bareFirst, oursFirst] = [await bare(), await ours()];
    const stored = await withStored(parley, (side) => saturated(side));
    const gateway = await withGateway(parley, (side) => saturated(side));
    const [oursThen, bareThen] = [await ours(), await bare()];
    const means = (one, other) => (field) => mean([one[field], other[field]]);
    const of = means(oursFirst, oursThen);
    const once = (one) => (field) => one[field];
    for (const [name, baseline, target] of [
      ['bare relay, nothing stored', means(bareFirst, bareThen), 0.35],
      ['relay with an INSERT', once(stored), 2.2],
      ['NestJS gateway with save()', once(gateway), 7],
    ]) {
      const against = (field, digits, more) => [
        of(field),
        baseline(field),
        { ratio: of(field) / baseline(field), digits, ...more },
      ];
      row(`messages/s, against a ${name}`, '', ...against('perSecond', 0, { target, atLeast: true }));
      row('  CPU a message, server', 'µs', ...against('server', 1));
      if (baseline('database')) row('  CPU a message, Postgres', 'µs', ...against('database', 1));
      else row('  CPU a message, Postgres', 'µs', of('database'), undefined);
      row('  the client was busy', '%', of('clientBusy'), baseline('clientBusy'), { digits: 0 });
    }
  }

  /**
   * Half of what it carries at that very time. On a machine that is now faster and now slower, what it carries is measured
   * before and after, and a round counts when the two agree: otherwise it was at half of something else. Nor does it count
   * when others have taken more than a little of the machine: it was at more than half of what was left.
   */
  async function latency(parley) {
    const most = async () => (await saturated(sideOf(parley), { ...SATURATED, measureMs: 3_000 })).perSecond;
    const all = [];
    const steady = () => all.filter(({ doubts }) => doubts.length === 0);
    while (steady().length < ROUNDS && all.length < MAX_ROUNDS) {
      const before = await most();
      const perSecond = before / 2;
      const paced = (side) => {
        say(`latency: ${side.name} at ${perSecond.toFixed(0)} messages/s`);
        return run('latency', side, 'pace', { ...PACED, perSecond });
      };
      const ours = await paced(sideOf(parley));
      const change = (await most()) / before - 1;
      const floor = await withRelay(paced);
      const doubts = [
        ...(Math.abs(change) > STEADY ? ['another speed'] : []),
        ...(ours.others > OTHERS ? [`others took ${ours.others.toFixed(0)} % of a core`] : []),
      ];
      all.push({ perSecond, ours, floor, doubts });
      const p99 = (side) => percentile(side.ackMs, 99).toFixed(1);
      say(
        `latency: round ${all.length}: p99 ${p99(ours)} ms at ${perSecond.toFixed(0)}/s, relay ${p99(floor)} ms; ` +
          `after it Parley carried ${Math.abs(change * 100).toFixed(0)} % ${change < 0 ? 'less' : 'more'} than before` +
          (doubts.length > 0 ? `; it does not count: ${doubts.join(', ')}` : ''),
      );
    }
    const rounds = steady().length > 0 ? steady() : all;
    if (steady().length < ROUNDS)
      say(
        `latency: only ${steady().length} of ${all.length} rounds count: this machine's speed changes, or others take it`,
      );
    const middle = (side, field, p) => median(rounds.map((round) => percentile(round[side][field], p)));
    const at = `at ${median(rounds.map(({ perSecond }) => perSecond)).toFixed(0)}/s`;
    for (const p of [50, 99]) {
      const mine = middle('ours', 'ackMs', p);
      const aim = p === 99 ? { judged: mine, target: 50 } : {};
      row(`acknowledged ${at}, p${p}; beside the bare relay`, 'ms', mine, middle('floor', 'ackMs', p), {
        digits: 2,
        ...aim,
      });
    }
    for (const p of [50, 99]) {
      row(`  delivered, p${p}`, 'ms', ...['ours', 'floor'].map((side) => middle(side, 'deliveryMs', p)), {
        digits: 2,
      });
    }
  }

  /** KiB of resident memory a connection. */
  async function idle(side) {
    say(`memory: ${IDLE} idle connections at ${side.name}`);
    // A little traffic first: code compiled, pools open.
    const open = async (userIds) => {
      const users = await side.users(userIds);
      await client.ask('open', { target: side.target, users, concurrency: 50 });
    };
    await open(names('w', WARM_UP_IDLE));
    await client.ask('close', {});
    const settled = async () => {
      await delay(3_000);
      const seen = [];
      for (let i = 0; i < 8; i += 1) {
        await delay(500);
        seen.push(residentMiB(side.pid));
      }
      return { resident: median(seen), held: await heldMiB(side.pid) };
    };
    const empty = await settled();
    // Tokens on the way: what making them leaves behind counts, as it would for an operator.
    const userIds = names('i', IDLE);
    for (let from = 0; from < IDLE; from += 500) await open(userIds.slice(from, from + 500));
    const full = await settled();
    await client.ask('close', {});
    const each = (which) => ((full[which] - empty[which]) * 1024) / IDLE;
    const result = { each: each('resident'), held: each('held'), empty: empty.resident, full: full.resident };
    const size = `${result.empty.toFixed(0)} MiB, then ${result.full.toFixed(0)} MiB`;
    say(
      `memory: ${side.name}: ${size}; ${result.each.toFixed(1)} KiB each, ${result.held.toFixed(1)} KiB held`,
    );
    return result;
  }

  async function memory() {
    const options = { execArgv: COLLECTING };
    const relay = await withRelay(idle, options);
    const gateway = await withProgram(
      'im-gateway.mjs',
      ['idle'],
      (program) => idle(baselineOf('a NestJS gateway that does nothing', program)),
      options,
    );
    const ours = await withParley('memory', (parley) => idle(sideOf(parley)), options);
    const against = (baseline, field, more) => [
      ours[field],
      baseline[field],
      { ratio: ours[field] / baseline[field], ...more },
    ];
    row(
      `resident memory an idle connection, of ${IDLE}; NestJS gateway`,
      'KiB',
      ...against(gateway, 'each', { target: 1.4 }),
    );
    row('  bare relay', 'KiB', ...against(relay, 'each'));
    // A process that has freed a lot since its start grows less: this one does not depend on it.
    row('  held after a collection; NestJS gateway', 'KiB', ...against(gateway, 'held'));
    row('  held after a collection; bare relay', 'KiB', ...against(relay, 'held'));
    row('  the whole process before; NestJS gateway', 'MiB', ...against(gateway, 'empty'));
    row('  the whole process with them', 'MiB', ...against(gateway, 'full'));
  }

  async function fanout() {
    const member = names('g', FANOUT_MEMBERS + 1);
    const spread = async (side, users, around) => {
      say(`fanout: ${FANOUT_MEMBERS} members at ${side.name}`);
      await client.ask('open', { target: side.target, users, concurrency: 20 });
      await client.ask('fanout', { ...FANOUT, count: 10 }); // warm-up, and past whatever was stored before
      await around?.();
      const result = await client.ask('fanout', FANOUT);
      const loop = await around?.();
      await client.ask('close', {});
      return { ...result, loop };
    };
    const floor = await withRelay((side) => spread(side, namesAsTokens(member)));
    const ours = await withParley('fanout', async (parley) => {
      const users = await usersOf(parley, member, { groupId: [FANOUT.target] });
      const { url, rootKey } = parley.quickstart;
      // A scrape tells the time since the one before it.
      const loop = async () => {
        const text = await call(`${url}/metrics`, { headers: { 'x-api-key': rootKey } });
        const read = (name) =>
          Number(new RegExp(`^nodejs_eventloop_lag_${name}_seconds (\\S+)`, 'm').exec(text)?.[1]) * 1000 -
          LOOP_RESOLUTION_MS;
        return { max: read('max'), p99: read('p99') };
      };
      return spread(sideOf(parley), users, loop);
    });
    for (const p of [50, 99]) {
      const [mine, bare] = [ours, floor].map(({ spreadMs }) => percentile(spreadMs, p));
      const aim = p === 50 ? { judged: mine, target: 20 } : {};
      row(`first to last of ${FANOUT_MEMBERS} deliveries, p${p}; bare relay`, 'ms', mine, bare, aim);
    }
    const [mine, bare] = [ours, floor].map(({ wholeMs }) => median(wholeMs));
    row('  sending to last delivery, p50', 'ms', mine, bare);
    row('  event loop delayed, longest (lag_max − 10 ms)', 'ms', ours.loop.max, undefined, {
      judged: ours.loop.max,
      target: 20,
    });
    row('  event loop delayed, p99 (lag_p99 − 10 ms)', 'ms', ours.loop.p99, undefined);
  }

  async function history() {
    const told = (count) => say(`history: ${count} of ${manyRows} messages`);
    const filled = (parley, count) =>
      withDatabase(parley, async (database) => ({
        ...parley.quickstart,
        ...(await fillHistory(database, parley.quickstart.tenantId, count, told)),
      }));
    let seed = 42;
    const random = () => (seed = (seed * 16_807) % 2_147_483_647) / 2_147_483_647;
    /** Ms until a page from anywhere in any of the conversations is there. */
    const page = async ({ url, apiKey, tenantId, ids, lastSeq }) => {
      const id = ids[Math.floor(random() * ids.length)];
      const before = PAGE + 1 + Math.floor(random() * (lastSeq - PAGE));
      const began = performance.now();
      const text = await call(
        `${url}/api/v1/im/conversations/${id}/messages?before=${before}&limit=${PAGE}`,
        { headers: { 'x-api-key': apiKey, 'tenant-id': tenantId } },
      );
      const ms = performance.now() - began;
      const { data } = JSON.parse(text);
      const [first, last] = [data[0], data.at(-1)].map((message) => Number(message?.seq));
      if (data.length !== PAGE || first !== before - PAGE || last !== before - 1)
        throw new Error(`a page before ${before} of ${id}: ${text.slice(0, 300)}`);
      return ms;
    };
    // Both are asked in turns: minutes apart, a machine is not the same.
    await withParley('history', (large) =>
      withParley('history', async (small) => {
        const sides = [await filled(large, manyRows), await filled(small, FEW_ROWS)];
        const times = sides.map(() => []);
        say(`history: ${PAGES} pages of each`);
        for (let i = -WARM_UP_PAGES; i < PAGES; i += 1) {
          for (const which of i % 2 ? [0, 1] : [1, 0]) {
            const ms = await page(sides[which]);
            if (i >= 0) times[which].push(ms);
          }
        }
        for (const p of [50, 99]) {
          const [many, few] = times.map((list) => percentile(list, p));
          const aim = p === 50 ? { target: 1.5 } : {};
          const label = `page of ${PAGE}, p${p}: of ${manyRows} messages; of ${FEW_ROWS}`;
          row(label, 'ms', many, few, { ratio: many / few, digits: 2, ...aim });
        }
      }),
    );
  }

  async function storm() {
    const { devices, perSecond } = STORM;
    const come = async (side, users) => {
      say(`storm: ${devices} devices in ${devices / perSecond} s at ${side.name}`);
      const before = sample(side);
      const result = await client.ask('open', { target: side.target, users, perSecond });
      const used = since(before);
      say(`storm: ${side.name}: all ready after ${(result.wholeMs / 1000).toFixed(1)} s, ${busyOf(used)}`);
      await client.ask('close', {});
      const each = (which) => (used[which] * 1000) / devices;
      return { ...result, server: each('server'), database: each('database') };
    };
    const userIds = names('s', devices);
    const floor = await withRelay((side) => come(side, namesAsTokens(userIds)));
    const ours = await withParley('storm', async (parley) => {
      await withDatabase(parley, (database) => fillStorm(database, parley.quickstart.tenantId, userIds));
      return come(sideOf(parley), await usersOf(parley, userIds));
    });
    const label = `${devices} devices come within ${devices / perSecond} s`;
    row(`${label}: all ready after; bare relay`, 's', ours.wholeMs / 1000, floor.wholeMs / 1000, {
      digits: 2,
    });
    for (const p of [50, 99]) {
      const [mine, bare] = [ours, floor].map(({ readyMs }) => percentile(readyMs, p));
      row(`  connecting to ready, p${p}`, 'ms', mine, bare);
    }
    row('  connections refused or lost, and made again', '', ours.again, floor.again, { digits: 0 });
    row('  CPU a device, server', 'µs', ours.server, floor.server, { digits: 0 });
    row('  CPU a device, Postgres', 'µs', ours.database, undefined, { digits: 0 });
  }

  const sections = {
    throughput: () => withParley('throughput', throughput),
    latency: () => withParley('latency', latency),
    memory,
    fanout,
    history,
    storm,
  };
  for (const name of SECTIONS) {
    if (!only.includes(name)) continue;
    // What was there before is written first: else the kernel does that half a minute later, and commits wait for it.
    spawnSync('sync');
    await sections[name]();
  }
  return rows;
}
