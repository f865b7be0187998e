// `npm run dev`: rebuilds and restarts when src/ or migrations/ changes. A restart waits for the old process to be gone.
import { spawn, spawnSync } from 'node:child_process';
import { watch } from 'node:fs';

let server;
let closing = false;
let timer;

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

for (const folder of ['src', 'migrations']) {
  watch(folder, { recursive: true }, () => {
    clearTimeout(timer);
    timer = setTimeout(() => void restart(), 200);
  });
}
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => {
    closing = true;
    if (!server) process.exit(0);
    server.once('exit', () => process.exit(0));
    if (signal === 'SIGTERM' || !process.stdin.isTTY) server.kill('SIGTERM');
  });
}
if (build()) start();
