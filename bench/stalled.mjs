// `node bench/run.mjs stalled`: what clients cost that ask for long answers and read nothing of them.
// docs/benchmarks.md says what each figure means.
import { connect } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { rowsOf } from './figures.mjs';
import { residentMiB, withDatabase } from './processes.mjs';
import { CONTENT, openAiBody, SHORT, startScene } from './streaming.mjs';

const READERS = 200;
/** 50,000 pieces, 205,000 characters: 12 MB of events on either wire. */
const LONG = 'burst-50000';
const TARGET_MIB = 300;
/** None of them is given up while it is measured. */
const PATIENT = { STREAM_SLOW_READER_SECONDS: '3600' };
const WARM_UP = 40;
/** It has come to a stop: no new peak, by so much, within so many looks. */
const LOOK_MS = 500;
const STEADY_LOOKS = 20;
const STEADY_MIB = 2;
const PATIENCE_MS = 300_000;
const SETTLE_MS = 3_000;

export const SECTIONS = ['completions', 'dialogues'];

export async function measure({ only = SECTIONS, profileDir, say }) {
  const { rows, row } = rowsOf();
  const { parley, headers, services } = await startScene({
    proxies: [],
    shapes: [LONG],
    profileDir,
    env: PATIENT,
    say,
  });
  const { url, assistantVersionId } = parley.quickstart;
  const completion = (shape) => ({
    path: '/v1/chat/completions',
    body: openAiBody(shape === SHORT ? services.get(SHORT) : services.get(LONG)),
  });
  const dialogue = (shape) => ({
    path: `/api/copywriting/dialogue/sse/send-message/${assistantVersionId}`,
    body: JSON.stringify({
      speechUserDialogueMessage: { content: CONTENT },
      modelServiceId: services.get(shape),
    }),
  });
  const asked = { completions: completion, dialogues: dialogue };
  for (const section of only) {
    const target = asked[section];
    for (let i = 0; i < WARM_UP; i += 1) {
      const { path, body } = target(SHORT);
      const answer = await fetch(url + path, { method: 'POST', headers, body });
      if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
      await answer.text();
    }
    await delay(SETTLE_MS);
    const before = residentMiB(parley.pid);
    say(`${section}: ${READERS} clients ask and read nothing`);
    const sockets = await Promise.all(
      Array.from({ length: READERS }, () => stalled(url, headers, target(LONG))),
    );
    const ended = section === 'dialogues' ? () => writing(parley) : undefined;
    const told = (mib) => say(`${section}: ${(mib - before).toFixed(0)} MiB more`);
    const peak = await steady(parley.pid, told, ended);
    for (const socket of sockets) socket.destroy();
    row(`${section}: ${READERS} stalled readers, resident growth`, 'MiB', peak - before, undefined, {
      target: TARGET_MIB,
      judged: peak - before,
      digits: 0,
    });
    await delay(SETTLE_MS);
  }
  return rows;
}

/** Asks, and never reads a byte: what comes fills what the kernels hold, and then waits. */
async function stalled(url, headers, { path, body }) {
  const { hostname, port } = new URL(url);
  const socket = connect({ host: hostname, port: Number(port), readableHighWaterMark: 1 });
  socket.on('error', () => undefined);
  await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject));
  socket.pause();
  const head = Object.entries({ ...headers, host: hostname, 'content-length': Buffer.byteLength(body) })
    .map(([name, value]) => `${name}: ${value}\r\n`)
    .join('');
  await new Promise((resolve) => socket.write(`POST ${path} HTTP/1.1\r\n${head}\r\n${body}`, resolve));
  return socket;
}

/** Kept replies that have not been written to their end. */
async function writing(parley) {
  const { rows } = await withDatabase(parley, (database) =>
    database.query('select count(*)::int as open from replies_in_progress'),
  );
  return rows[0].open;
}

/** The most there was until it grew no more, and nothing was being written. */
async function steady(pid, told, stillOpen = async () => 0) {
  const deadline = Date.now() + PATIENCE_MS;
  let peak = 0;
  let still = 0;
  while (still < STEADY_LOOKS && Date.now() < deadline) {
    await delay(LOOK_MS);
    const now = residentMiB(pid);
    still = now < peak + STEADY_MIB ? still + 1 : 0;
    if (still === 0) told(now);
    peak = Math.max(peak, now);
    if (still >= STEADY_LOOKS && (await stillOpen()) > 0) still = 0;
  }
  return peak;
}
