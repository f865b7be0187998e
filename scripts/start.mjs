// What `npm start` runs, also in a fresh clone and on any Node >= 20: installs and builds what is not up to date, then
// runs the server on the project's own Node.
//
//   node scripts/start.mjs [server arguments]       install, build, serve
//   node scripts/start.mjs --prepare-only           install, build
//   node scripts/start.mjs --no-build               install
//   node scripts/start.mjs [--build] --run <command> [args]
//                                                   install, build if asked to, then the command, with
//                                                   node_modules/.bin first on PATH
//
// The server gets every stop signal from here, once, and an IPC channel: its 'disconnect' event says that this process
// is gone without having said so (kill -9), and that the server should stop too.
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { delimiter, dirname, join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const root = fs.realpathSync(resolve(dirname(fileURLToPath(import.meta.url)), '..'));
const bin = join(root, 'node_modules', '.bin');
const node = join(bin, 'node');
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'];
const SAME_STOP_MS = 1_000;
const LOCK_WAIT_MS = 15 * 60_000;
const LOCK_STALE_MS = 30_000;

const sha256 = (text) => createHash('sha256').update(text).digest('hex');
const read = (path) => (fs.existsSync(path) ? fs.readFileSync(path, 'utf8') : null);
const say = (text) => process.stderr.write(text);

class StartError extends Error {}

/** Files and folders by content; what does not exist counts as absent. */
function digest(names) {
  const hash = createHash('sha256');
  const add = (name) => {
    const path = join(root, name);
    const stat = fs.statSync(path, { throwIfNoEntry: false });
    if (stat?.isDirectory()) for (const entry of fs.readdirSync(path).sort()) add(join(name, entry));
    else hash.update(`${name}\0${stat ? sha256(fs.readFileSync(path)) : 'absent'}\0`);
  };
  names.forEach(add);
  return hash.digest('hex');
}

const modules = {
  stamp: join(root, 'node_modules', '.parley-installed'),
  wanted() {
    const rest = { ...JSON.parse(read(join(root, 'package.json'))), scripts: 'no matter' };
    const what = digest(['package-lock.json', '.npmrc']) + sha256(JSON.stringify(rest));
    return `${sha256(what)} ${process.platform} ${process.arch}`;
  },
  async make() {
    // The project's own Node goes away with node_modules: npm must run on the machine's.
    const path = process.env.PATH.split(delimiter).filter((folder) => !/node_modules.\.bin$/.test(folder));
    const env = { ...process.env, PATH: path.join(delimiter) };
    const args = ['ci', '--include=dev', '--loglevel=error'];
    await quietly('Installing dependencies', 'npm', args, env);
  },
};
const build = {
  stamp: join(root, 'dist', '.parley-built'),
  wanted: () =>
    digest(['src', 'migrations', 'package-lock.json', 'tsconfig.json', 'nest-cli.json', '.swcrc']),
  make: () => quietly('Building', node, [join(bin, 'nest'), 'build'], process.env),
};

/** Installed by hand (`npm ci && npm start`): npm's own record of what it put there, and a Node that runs. */
function installedByHand() {
  const lock = (name) => JSON.parse(read(join(root, name)) ?? '{}').packages ?? {};
  const there = lock('node_modules/.package-lock.json');
  const fits = ([path, { version, optional }]) =>
    !path || (there[path] ? there[path].version === version : optional);
  return Object.entries(lock('package-lock.json')).every(fits) && spawnSync(node, ['--version']).status === 0;
}

function upToDate(step) {
  if (step === modules && !fs.existsSync(step.stamp) && installedByHand())
    fs.writeFileSync(step.stamp, step.wanted());
  return read(step.stamp) === step.wanted();
}

async function bringUpToDate(steps) {
  if (steps.every(upToDate)) return;
  await withLock(async () => {
    for (const step of steps) {
      if (upToDate(step)) continue; // whoever held the lock has done it
      const wanted = step.wanted();
      fs.rmSync(step.stamp, { force: true });
      await step.make();
      fs.mkdirSync(dirname(step.stamp), { recursive: true });
      fs.writeFileSync(step.stamp, wanted);
    }
  });
}

/** Runs a step whose output is of interest only when it fails. */
async function quietly(label, command, args, env) {
  const began = Date.now();
  const seconds = () => `${Math.round((Date.now() - began) / 1000)} s`;
  const tty = process.stderr.isTTY;
  say(`${label} …${tty ? '' : '\n'}`);
  const ticker = tty && setInterval(() => say(`\r${label} … ${seconds()}`), 1_000);
  let output = '';
  const keep = (text) => (output = (output + text).slice(-20_000));
  const { code, problem } = await run(
    command,
    args,
    { cwd: root, env, stdio: ['ignore', 'pipe', 'pipe'] },
    (child) => {
      child.stdout.setEncoding('utf8').on('data', keep);
      child.stderr.setEncoding('utf8').on('data', keep);
    },
  );
  clearInterval(ticker);
  say(tty ? `\r${label} … ${seconds()}\n` : code === 0 ? `${label} … done in ${seconds()}\n` : '');
  if (code === 0) return;
  const tail = output.trimEnd().split('\n').slice(-30).join('\n');
  const reason = problem?.code === 'ENOENT' ? `${command} not found` : `exit code ${code}`;
  throw new StartError(`${tail}\n${label} failed: ${command} ${args.join(' ')} (${reason})`);
}

let current; // the child that signals are passed to
let sharesTerminal = false; // it gets the terminal's Ctrl-C by itself
let stopSignal; // the stop we were told of, if any
let stoppedAt = 0;

/** Resolves with how the child ended. */
function run(command, args, options, onSpawn = () => undefined) {
  return new Promise((done) => {
    const child = spawn(command, args, options);
    current = child;
    child.once('error', (problem) => done({ code: 127, problem }));
    // 'close' comes after the last of its output.
    child.once('close', (code, signal) => done({ code: code ?? 128 + constants.signals[signal] }));
    if (child.pid) onSpawn(child);
  }).finally(() => (current = undefined));
}

/** At a terminal one Ctrl-C arrives twice, from the terminal and from npm; a second one that is meant comes later. */
function passOn(signal) {
  const now = Date.now();
  if (now - stoppedAt < SAME_STOP_MS) return;
  stoppedAt = now;
  stopSignal = signal;
  if (current && sharesTerminal && signal === 'SIGINT') return;
  if (current) current.kill(signal);
  else process.exit(128 + constants.signals[signal]);
}

/** One installs and builds at a time. The holder touches its lock; one that nobody touches is a dead one's. */
async function withLock(work) {
  const lock = join(tmpdir(), `parley-start-${process.getuid?.() ?? 0}-${sha256(root).slice(0, 16)}.lock`);
  const mine = `${process.pid} ${Date.now()} ${Math.random()}`;
  const giveUp = Date.now() + LOCK_WAIT_MS;
  for (let told = false; ; await delay(100)) {
    try {
      fs.writeFileSync(lock, mine, { flag: 'wx' });
      break;
    } catch (error) {
      if (error.code !== 'EEXIST') throw new StartError(`cannot write ${lock}: ${error.message}`);
    }
    const holder = read(lock);
    if (holder !== null && isStale(lock, holder)) bury(lock, holder);
    else if (!told) say('Waiting for another start of this clone that installs or builds …\n');
    told ||= holder !== null;
    if (Date.now() > giveUp)
      throw new StartError(`another start does not get ready: remove ${lock} if there is none`);
  }
  const release = () => read(lock) === mine && fs.rmSync(lock, { force: true });
  const heartbeat = setInterval(() => fs.utimes(lock, new Date(), new Date(), () => undefined), 2_000);
  process.once('exit', release);
  try {
    await work();
  } finally {
    clearInterval(heartbeat);
    process.off('exit', release);
    release();
  }
}

function isStale(lock, holder) {
  const touched = fs.statSync(lock, { throwIfNoEntry: false })?.mtimeMs ?? Date.now();
  if (Date.now() - touched > LOCK_STALE_MS) return true;
  try {
    return Number.parseInt(holder, 10) > 0 && !process.kill(Number.parseInt(holder, 10), 0);
  } catch (error) {
    return error.code === 'ESRCH';
  }
}

/** Renamed first: of two that find the same dead lock, the slower must not remove the quicker's new one. */
function bury(lock, holder) {
  const grave = `${lock}.${process.pid}`;
  try {
    fs.renameSync(lock, grave);
    if (read(grave) !== holder) fs.linkSync(grave, lock);
  } catch {
    // Somebody else was quicker.
  }
  fs.rmSync(grave, { force: true });
}

async function main(args) {
  if (Number.parseInt(process.versions.node, 10) < 20) throw new StartError('Parley needs Node 20 or newer');
  const builds = args[0] === '--build';
  const [mode, ...rest] = builds ? args.slice(1) : args;
  const installOnly = mode === '--no-build' || (mode === '--run' && !builds);
  await bringUpToDate(installOnly ? [modules] : [modules, build]);
  if (stopSignal) return 128 + constants.signals[stopSignal];
  if (mode === '--no-build' || mode === '--prepare-only') return 0;
  if (mode === '--run') {
    sharesTerminal = process.stdin.isTTY === true;
    const env = { ...process.env, PATH: `${bin}${delimiter}${process.env.PATH}` };
    const { code, problem } = await run(rest[0], rest.slice(1), { cwd: root, env, stdio: 'inherit' });
    if (problem) say(`${rest[0]}: ${problem.message}\n`);
    return code;
  }
  // A process group of its own: a Ctrl-C at the terminal reaches it through `passOn` and no other way.
  const stdio = ['inherit', 'inherit', 'inherit', 'ipc'];
  // A thousand streams live in V8's young generation; its default size doubles the memory they take (docs/benchmarks.md).
  const server = ['--max-semi-space-size=16', join(root, 'dist', 'src', 'main.js'), ...args];
  return (await run(node, server, { cwd: root, detached: true, stdio })).code;
}

for (const signal of SIGNALS) process.on(signal, () => passOn(signal));
if (process.env.npm_lifecycle_event) {
  // npm passes its SIGTERM to the shell in between, and dash dies of it without a word to its child.
  const parent = process.ppid;
  setInterval(() => process.ppid !== parent && !stopSignal && passOn('SIGTERM'), 200).unref();
}
try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof StartError)) throw error;
  if (!stopSignal) say(`${error.message}\n`);
  process.exitCode = stopSignal ? 128 + constants.signals[stopSignal] : 1;
}
