// What `npm start` and the other commands run first: needs nothing but Node >= 20 and npm.
//   node scripts/start.mjs                      install and build if needed, then run the server
//   node scripts/start.mjs --run <command …>    install if needed, then run a command with the project's Node first on PATH
//   node scripts/start.mjs --build --run …      the same with a build
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const at = (...parts) => join(root, ...parts);
const bin = at('node_modules', '.bin');
const node = join(bin, process.platform === 'win32' ? 'node.cmd' : 'node');
const env = { ...process.env, PATH: `${bin}${delimiter}${process.env.PATH}` };
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'];

/** A hash of the files' names and contents; folders are walked. */
function fingerprint(paths) {
  const hash = createHash('sha256').update(`${process.platform}-${process.arch}`);
  const walk = (path) => {
    if (!existsSync(at(path))) return;
    if (statSync(at(path)).isDirectory()) {
      for (const name of readdirSync(at(path)).sort()) walk(join(path, name));
    } else {
      hash.update(`\0${path}\0`).update(readFileSync(at(path)));
    }
  };
  paths.forEach(walk);
  return hash.digest('hex');
}

function upToDate(stamp, hash) {
  return existsSync(at(stamp)) && readFileSync(at(stamp), 'utf8') === hash;
}

/** Runs a step silently with a line of progress; its output is shown only if it fails. */
async function step(title, command, args) {
  const started = Date.now();
  const seconds = () => Math.round((Date.now() - started) / 1000);
  const tty = process.stderr.isTTY;
  process.stderr.write(tty ? title : `${title}\n`);
  const ticker = tty ? setInterval(() => process.stderr.write(`\r${title} ${seconds()} s`), 1000) : undefined;
  const child = spawn(command, args, {
    cwd: root,
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
    shell: process.platform === 'win32',
  });
  let output = '';
  const keep = (chunk) => (output = (output + chunk).slice(-20_000));
  child.stdout.on('data', keep);
  child.stderr.on('data', keep);
  const stop = (signal) => child.kill(signal);
  for (const signal of SIGNALS) process.on(signal, stop);
  const code = await new Promise((resolve) => {
    child.once('error', (error) => {
      keep(String(error));
      resolve(1);
    });
    child.once('close', (status, signal) => resolve(signal ? 128 + constants.signals[signal] : status));
  });
  for (const signal of SIGNALS) process.off(signal, stop);
  clearInterval(ticker);
  process.stderr.write(tty ? `\r${title} ${code === 0 ? 'done' : 'failed'}, ${seconds()} s\n` : '');
  if (code !== 0) {
    const noise = /EBADENGINE|Unknown (user|project|env) config/;
    process.stderr.write(
      `${output
        .split('\n')
        .filter((line) => !noise.test(line))
        .slice(-30)
        .join('\n')}\n`,
    );
    process.stderr.write(`parley: ${title.replace(/ …$/, '').toLowerCase()} failed (exit code ${code})\n`);
    process.exit(1);
  }
}

/** Two starts at once must not install into one folder; the lock of a process that is gone is taken over. */
async function locked(work) {
  const lock = at('.parley-setup.lock');
  for (let waited = 0; ; waited += 250) {
    try {
      mkdirSync(lock);
      writeFileSync(join(lock, 'pid'), String(process.pid));
      break;
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
      let holder = 0;
      try {
        holder = Number(readFileSync(join(lock, 'pid'), 'utf8'));
        process.kill(holder, 0);
      } catch (gone) {
        if (gone.code === 'ESRCH' || (gone.code === 'ENOENT' && waited > 2_000)) {
          rmSync(lock, { recursive: true, force: true });
          continue;
        }
      }
      if (waited > 600_000) {
        process.stderr.write(
          `parley: another start (pid ${holder}) has been installing for ten minutes; remove ${lock} if it is not\n`,
        );
        process.exit(1);
      }
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
  }
  const release = () => rmSync(lock, { recursive: true, force: true });
  process.once('exit', release);
  await work();
  release();
  process.off('exit', release);
}

async function prepare(build) {
  await locked(async () => {
    const installed = fingerprint(['package.json', 'package-lock.json', '.npmrc']);
    if (!upToDate('node_modules/.parley-stamp', installed)) {
      await step('Installing dependencies …', 'npm', ['ci', '--loglevel=error', '--no-audit', '--no-fund']);
      writeFileSync(at('node_modules', '.parley-stamp'), installed);
    }
    if (!build) return;
    const built = fingerprint([
      'src',
      'migrations',
      'package-lock.json',
      'tsconfig.json',
      'nest-cli.json',
      '.swcrc',
    ]);
    if (!upToDate('dist/.parley-stamp', built)) {
      await step('Building …', node, [at('node_modules', '@nestjs', 'cli', 'bin', 'nest.js'), 'build']);
      writeFileSync(at('dist', '.parley-stamp'), built);
    }
  });
}

/** Hands over to the command: its output, its signals, its exit code. */
function run(command, args, ipc) {
  const child = spawn(command, args, {
    cwd: root,
    env,
    stdio: ['inherit', 'inherit', 'inherit', ...(ipc ? ['ipc'] : [])],
  });
  for (const signal of SIGNALS) {
    process.on(signal, () => {
      // At a terminal Ctrl-C and a hang-up reach the whole process group: passed on, the child would count two.
      if (signal === 'SIGTERM' || !process.stdin.isTTY) child.kill(signal);
    });
  }
  child.once('error', (error) => {
    process.stderr.write(`parley: ${error.message}\n`);
    process.exit(127);
  });
  child.once('exit', (code, signal) => process.exit(signal ? 128 + constants.signals[signal] : code));
}

const args = process.argv.slice(2);
const runAt = args.indexOf('--run');
const flags = runAt < 0 ? args : args.slice(0, runAt);
await prepare(runAt < 0 || flags.includes('--build'));
if (runAt >= 0) run(args[runAt + 1], args.slice(runAt + 2), false);
else run(node, [at('dist', 'src', 'main.js')], true);
