// `npm run dev`: rebuilds and restarts when src/ or migrations/ changes. A restart waits for the old process to be gone.
import { spawn, spawnSync } from 'node:child_process';
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';

/** Looked at, not listened to: what an editor or git replaces by renaming is lost to recursive fs.watch on Linux. */
const LOOK_MS = 400;
const folders = ['src', 'migrations'];

let server;
let closing = false;
let restarting;

function build() {
  return (
    spawnSync('nest', ['build'], {
      stdio: ['ignore', 'ignore', 'inherit'],
      shell: process.platform === 'win32',
    }).status === 0
  );
}

function start() {
  server = spawn('node', ['--enable-source-maps', 'dist/src/main.js'], {
    stdio: ['inherit', 'inherit', 'inherit', 'ipc'],
  });
  server.once('exit', () => (server = undefined));
}

async function restart() {
  if (!build()) return;
  if (server) {
    const gone = new Promise((resolve) => server.once('exit', resolve));
    server.kill('SIGTERM');
    await gone;
  }
  if (!closing) start();
}

/** Every file with its time and size: equal as long as nothing has changed. */
function state() {
  return folders
    .flatMap((folder) => readdirSync(folder, { recursive: true, withFileTypes: true }))
    .filter((entry) => entry.isFile())
    .map((entry) => {
      const path = join(entry.parentPath, entry.name);
      const { mtimeMs, size } = statSync(path, { throwIfNoEntry: false }) ?? {};
      return `${path} ${mtimeMs} ${size}`;
    })
    .join('\n');
}

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => {
    closing = true;
    if (!server) process.exit(0);
    server.once('exit', () => process.exit(0));
    if (signal === 'SIGTERM' || !process.stdin.isTTY) server.kill('SIGTERM');
  });
}
let built = state();
if (build()) start();
setInterval(() => {
  const now = state();
  if (now === built || restarting || closing) return;
  built = now;
  restarting = restart().finally(() => (restarting = undefined));
}, LOOK_MS);
