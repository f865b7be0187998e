// `node bench/run.mjs strangers`: what connections cost that never show a key. docs/benchmarks.md says what each figure
// means.
import { connect } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { rowsOf } from './figures.mjs';
import { residentMiB, startParley } from './processes.mjs';

const CONNECTIONS = 1_000;
const PARKED_BYTES = 1_048_576;
const ALLOWED_BYTES = 16_384;
/** Longer than a stranger's body may take. */
const WATCH_MS = 22_000;
const SAMPLE_MS = 100;
const TARGET_MIB = 40;

/** What a connection does: all of a body but its last byte. */
const SECTIONS_OF = {
  refused: { path: '/v1/chat/completions', bytes: PARKED_BYTES },
  long: { path: '/chat/oauth/token', bytes: PARKED_BYTES },
  allowed: { path: '/chat/oauth/token', bytes: ALLOWED_BYTES },
};
export const SECTIONS = Object.keys(SECTIONS_OF);

/** So that every connection and every body is let in: the limits of one address would end the measurement early. */
const LIMITS = {
  STRANGER_CONNECTIONS: '10000',
  STRANGER_CONNECTIONS_PER_ADDRESS: '10000',
  STRANGER_BODIES: '10000',
  STRANGER_BODIES_PER_ADDRESS: '10000',
};

export async function measure({ only, say }) {
  const { rows, row } = rowsOf();
  for (const name of only) {
    for (const [limits, env] of [
      ['no limit of connections', LIMITS],
      ['as shipped', {}],
    ]) {
      const parley = await startParley({ env });
      const { url } = parley.quickstart;
      for (let i = 0; i < 200; i += 1) await (await fetch(`${url}/health`)).text();
      await delay(2_000);
      say(`${name}, ${limits}`);
      const { grownMiB, statuses, open } = await park(url, parley.pid, SECTIONS_OF[name]);
      say(`  answers: ${JSON.stringify(statuses)}; ${open} still open at the end`);
      row(`${name}: ${limits}, resident memory grown by`, 'MiB', grownMiB, undefined, {
        judged: grownMiB,
        target: TARGET_MIB,
      });
      row(`${name}: ${limits}, connections open after ${WATCH_MS / 1_000} s`, '', open, undefined, {
        judged: open,
        target: 0,
        digits: 0,
      });
      await parley.stop();
    }
  }
  return rows;
}

async function park(url, pid, { path, bytes }) {
  const { hostname, port } = new URL(url);
  const head = `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${bytes}\r\n\r\n`;
  const body = Buffer.alloc(bytes - 1, ' ');
  const statuses = {};
  const sockets = new Set();
  const before = residentMiB(pid);
  let peak = before;
  for (let i = 0; i < CONNECTIONS; i += 1) {
    const socket = connect({ host: hostname, port: Number(port) });
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.once('close', () => sockets.delete(socket));
    socket.once('data', (data) => {
      const status = String(data).slice(9, 12);
      statuses[status] = (statuses[status] ?? 0) + 1;
    });
    socket.write(head);
    socket.write(body);
  }
  for (let waited = 0; waited < WATCH_MS && sockets.size > 0; waited += SAMPLE_MS) {
    await delay(SAMPLE_MS);
    peak = Math.max(peak, residentMiB(pid));
  }
  const open = sockets.size;
  for (const socket of sockets) socket.destroy();
  return { grownMiB: peak - before, statuses, open };
}
