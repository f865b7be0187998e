// Processes of a measurement: started, looked at through /proc, and ended by pid.
import { fork, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath, pathToFileURL } from 'node:url';
import pg from 'pg';

const here = dirname(fileURLToPath(import.meta.url));
const TICK_MS = 10; // _SC_CLK_TCK is 100 on every Linux there is

const lines = (path) => {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return ''; // it has ended meanwhile
  }
};
const statOf = (pid) =>
  lines(`/proc/${pid}/stat`)
    .replace(/^.*\) /s, '')
    .split(' ');

/** CPU a process has used, all its threads, in ms: to the nanosecond where the kernel counts them, else in ticks. */
export function cpuMs(pid) {
  const tasks = readdirSync(`/proc/${pid}/task`);
  const nanoseconds = tasks.reduce(
    (sum, task) => sum + Number(lines(`/proc/${pid}/task/${task}/schedstat`).split(' ')[0]),
    0,
  );
  if (nanoseconds > 0) return nanoseconds / 1e6;
  const stat = statOf(pid);
  return (Number(stat[11]) + Number(stat[12])) * TICK_MS;
}

/** CPU that everybody on this machine has used, and what was taken from it from outside, in ms. */
export function machineMs() {
  const [user, nice, system, , , irq, softirq, steal] = lines('/proc/stat')
    .split('\n')[0]
    .split(/\s+/)
    .slice(1);
  return [user, nice, system, irq, softirq, steal].reduce((sum, ticks) => sum + Number(ticks) * TICK_MS, 0);
}

/** Resident memory in MiB. */
export function residentMiB(pid) {
  return Number(/^VmRSS:\s+(\d+)/m.exec(lines(`/proc/${pid}/status`))?.[1]) / 1024;
}

export function descendants(pid) {
  const parents = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((name) => [Number(name), Number(statOf(name)[1])]);
  const found = [];
  for (let known = [pid]; known.length > 0;) {
    known = parents.filter(([, parent]) => known.includes(parent)).map(([child]) => child);
    found.push(...known);
  }
  return found;
}

/** CPU of the processes under one, those that have ended included, in ms. */
export function cpuBelowMs(pid) {
  return descendants(pid).reduce((sum, child) => {
    const stat = statOf(child);
    return sum + [11, 12, 13, 14].reduce((ticks, field) => ticks + (Number(stat[field]) || 0), 0) * TICK_MS;
  }, 0);
}

/** `execArgv` of a process whose `heldMiB` is going to be asked for. */
export const COLLECTING = [
  '--import',
  `${pathToFileURL(join(here, 'collect.mjs'))}?${encodeURIComponent(tmpdir())}`,
];

/** What a process holds after a collection: JavaScript's heap and its buffers. */
export async function heldMiB(pid) {
  const file = join(tmpdir(), `parley-bench-${pid}`);
  for (let i = 0; i < 2; i += 1) {
    rmSync(file, { force: true });
    process.kill(pid, 'SIGUSR2');
    for (let waited = 0; !lines(file); waited += 50) {
      if (waited > 10_000) throw new Error(`${pid} does not collect`);
      await delay(50);
    }
  }
  const bytes = Number(lines(file));
  rmSync(file);
  return bytes / 2 ** 20;
}

const running = new Set();

/** Ends everything that was started, whatever state it is in. */
export async function stopAll() {
  await Promise.all([...running].map((stop) => stop()));
}

async function end(child, signal, patienceMs) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const below = descendants(child.pid);
  const exited = once(child, 'exit');
  child.kill(signal);
  if (await Promise.race([exited.then(() => true), delay(patienceMs, false, { ref: false })])) return;
  for (const pid of [child.pid, ...below]) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // it has ended meanwhile
    }
  }
}

/** One of this folder's programs; `ready` is its first message. */
export async function startProgram(name, args = [], { waits = true, execArgv = [] } = {}) {
  const child = fork(join(here, name), args, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'], execArgv });
  const stop = async () => {
    running.delete(stop);
    await end(child, 'SIGTERM', 2_000);
  };
  running.add(stop);
  const gone = once(child, 'exit').then(([code]) => {
    throw new Error(`${name} ended with ${code}`);
  });
  gone.catch(() => undefined);
  const ready = waits ? (await Promise.race([once(child, 'message'), gone]))[0] : {};
  return { child, pid: child.pid, url: `http://127.0.0.1:${ready.port}`, stop, gone };
}

/** The load client: `ask` sends a command; `onEarly` is called when its measured part is over. */
export async function startClient(name = 'client.mjs') {
  const program = await startProgram(name, [], { waits: false });
  let ids = 0;
  const waiting = new Map();
  program.child.on('message', ({ id, early, result, error }) => {
    const { resolve, reject, onEarly } = waiting.get(id) ?? {};
    // Of a command that has ended with an error.
    if (!resolve) return;
    if (early) return onEarly?.(early);
    waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(result);
  });
  const ask = (command, input, onEarly) =>
    Promise.race([
      program.gone,
      new Promise((resolve, reject) => {
        const id = (ids += 1);
        waiting.set(id, { resolve, reject, onEarly });
        program.child.send({ id, command, ...input });
      }),
    ]);
  return { ...program, ask };
}

const MAIN = join(here, '..', 'dist', 'src', 'main.js');

/** Parley as it is shipped: the built server on its embedded PostgreSQL, quickstart on, in a directory of its own. */
export async function startParley({ upstream, model, profileDir, env, execArgv = [], main = MAIN }) {
  const dataDir = mkdtempSync(join(tmpdir(), 'parley-bench-'));
  chmodSync(dataDir, 0o755); // started by root, Postgres runs as somebody else
  const flags = profileDir ? ['--cpu-prof', `--cpu-prof-dir=${profileDir}`] : [];
  const child = spawn(process.execPath, ['--max-semi-space-size=16', ...flags, ...execArgv, main], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      PATH: process.env.PATH,
      HOST: '127.0.0.1',
      PORT: '0',
      PARLEY_DATA_DIR: dataDir,
      ...(upstream && {
        OPENAI_BASE_URL: `${upstream}/v1`,
        OPENAI_API_KEY: 'sk-bench',
        OPENAI_MODEL: model,
      }),
      LOG_LEVEL: 'warn',
      ...env,
    },
  });
  const stop = async () => {
    running.delete(stop);
    await end(child, 'SIGTERM', 30_000);
    rmSync(dataDir, { recursive: true, force: true });
  };
  running.add(stop);
  let said = '';
  child.stdout.on('data', (text) => (said += text));
  child.stderr.on('data', (text) => {
    said += text;
    process.stderr.write(text);
  });
  const deadline = Date.now() + 60_000;
  while (!/Parley is ready/.test(said)) {
    if (child.exitCode !== null || Date.now() > deadline) throw new Error(`Parley did not start: ${said}`);
    await delay(50);
  }
  const file = join(dataDir, 'quickstart.json');
  if (!existsSync(file)) throw new Error('Parley wrote no quickstart.json');
  // As the superuser, where row-level security does not count.
  const databaseUrl = (name) => {
    const port = readFileSync(join(dataDir, 'postgres', 'postmaster.pid'), 'utf8').split('\n')[3];
    const password = readFileSync(join(dataDir, 'postgres-password'), 'utf8').trim();
    return `postgres://postgres:${password}@127.0.0.1:${port}/${name}`;
  };
  return { child, pid: child.pid, stop, databaseUrl, quickstart: JSON.parse(readFileSync(file, 'utf8')) };
}

/** In Parley's database, as the superuser. */
export async function withDatabase(parley, work) {
  const database = new pg.Client({ connectionString: parley.databaseUrl('parley') });
  await database.connect();
  try {
    return await work(database);
  } finally {
    await database.end();
  }
}

/**
 * Every connection is a file to both ends. What is raised here is inherited by every process started later; only root
 * may go above the hard limit.
 */
export function raiseFileLimit(needed) {
  const limit = () => Number(/^Max open files\s+(\d+)/m.exec(lines('/proc/self/limits'))?.[1] ?? Infinity);
  if (limit() >= 2 * needed) return;
  spawnSync('prlimit', [`--pid=${process.pid}`, '--nofile=65536:65536'], { stdio: 'ignore' });
  if (limit() < needed) throw new Error(`${limit()} open files are too few: ulimit -n ${2 * needed}`);
}
