// `node bench/run.mjs builds --against <folder>`: this build beside another one, in one run. The folder is a checkout
// with its own node_modules and dist/. Both serve the same loads in turns (A B B A …), each on its own PostgreSQL; what
// is told is the median of the rounds' ratios, so a machine that changes its speed does so for both.
import { join } from 'node:path';
import { median, rowsOf } from './figures.mjs';
import { cpuBelowMs, cpuMs, startClient, startParley, startProgram } from './processes.mjs';
import { BURST, CONTENT, openAiBody, PACED, PACED_WARM_UP, SHORT } from './streaming.mjs';

const USERS = 100;
const SATURATED = { warmUpMs: 1_500, measureMs: 4_000, inFlight: 16, ordered: true };
const WARM_UPS = 1;
/** How much a build may cost more, or carry less, than the one before. */
const WITHIN = 0.03;
const MAIN = ['dist', 'src', 'main.js'];
/** The limits are there against what this is. */
const UNLIMITED = Object.fromEntries(
  ['FRAMES_PER_SECOND', 'FRAMES_BURST', 'TOKENS_PER_MINUTE', 'CONNECTIONS_PER_ADDRESS'].map((name) => [
    `IM_${name}`,
    '1000000',
  ]),
);

export const SECTIONS = ['im', 'dialogue', 'openai', 'paced'];

export async function measure({ only = SECTIONS, against, rounds, profileDir, say }) {
  if (!against) throw new Error('builds: --against <folder of the other build> is needed');
  const { rows, row } = rowsOf();
  say('starting upstream, clients and both builds');
  const upstream = await startProgram('upstream.mjs');
  const [imClient, client] = await Promise.all([startClient('im-client.mjs'), startClient()]);
  const start = async (main) => {
    const folder = profileDir && join(profileDir, main ? 'before' : 'ours');
    const settings = { upstream: upstream.url, model: SHORT, env: UNLIMITED, main, profileDir: folder };
    const parley = await startParley(settings);
    const { url, apiKey, modelServiceId } = parley.quickstart;
    const headers = { 'content-type': 'application/json', 'x-api-key': apiKey };
    const call = async (path, body) => {
      const answer = await fetch(url + path, {
        headers,
        ...(body && { method: 'POST', body: JSON.stringify(body) }),
      });
      if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
      return answer.json();
    };
    const { providerId } = await call(`/api/admin/model-services/${modelServiceId}`);
    const services = new Map([[SHORT, modelServiceId]]);
    for (const shape of [BURST.shape, PACED.shape, PACED_WARM_UP.shape])
      services.set(
        shape,
        (await call('/api/admin/model-services', { name: shape, providerId, model: shape })).id,
      );
    return { ...parley, headers, services };
  };
  const before = await start(join(against, ...MAIN));
  const ours = await start();

  const used = (side) => ({ server: cpuMs(side.pid), database: cpuBelowMs(side.pid) });
  /** What `work` cost a side: µs of CPU, server and Postgres, and what it says itself. */
  async function costing(side, work) {
    let first = used(side);
    let cost;
    const result = await work(({ measuring }) => {
      if (measuring) first = used(side);
      else {
        const last = used(side);
        cost = {
          server: (last.server - first.server) * 1000,
          database: (last.database - first.database) * 1000,
        };
      }
    });
    return { ...result, ...cost };
  }

  let phases = 0;
  async function chat(side) {
    phases += 1;
    const { url, appKey, appSecret } = side.quickstart;
    const users = await Promise.all(
      Array.from({ length: USERS }, async (_, i) => {
        const name = `p${phases}-${i}`;
        const body = JSON.stringify({ appKey, appSecret, client: 'pc', userId: name });
        const answer = await fetch(`${url}/chat/oauth/token`, {
          method: 'POST',
          headers: side.headers,
          body,
        });
        return { name, token: (await answer.json()).data.token };
      }),
    );
    await imClient.ask('open', { target: { url, rich: true }, users, concurrency: 20 });
    const { messages, ms, server, database } = await costing(side, (told) =>
      imClient.ask('saturate', SATURATED, told),
    );
    await imClient.ask('close', {});
    return { rate: (messages * 1000) / ms, server: server / messages, database: database / messages };
  }

  const streams =
    (targetOf) =>
    async (side, { shape, ...load }) => {
      const first = used(side);
      const { pieces, wallMs } = await client.ask(
        'streams',
        { target: targetOf(side, shape), ...load },
        () => undefined,
      );
      const last = used(side);
      return {
        rate: (pieces * 1000) / wallMs,
        server: ((last.server - first.server) * 1000) / pieces,
        database: ((last.database - first.database) * 1000) / pieces,
      };
    };
  const dialogue = streams(({ quickstart, headers, services }, shape) => ({
    name: 'dialogue',
    wire: 'sse',
    shape,
    url: quickstart.url,
    path: `/api/copywriting/dialogue/sse/send-message/${quickstart.assistantVersionId}`,
    headers,
    body: JSON.stringify({
      speechUserDialogueMessage: { content: CONTENT },
      modelServiceId: services.get(shape),
    }),
  }));
  const openai = streams(({ quickstart, headers }, shape) => ({
    name: 'openai',
    wire: 'openai',
    shape,
    url: quickstart.url,
    path: '/v1/chat/completions',
    headers,
    body: openAiBody(shape, { stream_options: { include_usage: true } }),
  }));

  const sections = {
    im: { what: 'message', run: (side) => chat(side), saturated: true },
    dialogue: { what: 'piece', run: (side) => dialogue(side, BURST), saturated: true },
    openai: { what: 'piece', run: (side) => openai(side, BURST), saturated: true },
    paced: {
      what: 'piece',
      run: (side) => openai(side, PACED),
      warmUp: (side) => openai(side, PACED_WARM_UP),
    },
  };
  for (const name of SECTIONS.filter((one) => only.includes(one))) {
    const { what, run, warmUp = run, saturated } = sections[name];
    for (let i = 0; i < WARM_UPS; i += 1) for (const side of [before, ours]) await warmUp(side);
    const seen = [];
    for (let i = 0; i < rounds; i += 1) {
      const round = {};
      for (const side of i % 2 ? ['ours', 'before'] : ['before', 'ours'])
        round[side] = await run(side === 'ours' ? ours : before);
      seen.push(round);
      const shown = (side) =>
        `${side} ${round[side].rate.toFixed(0)} ${what}s/s, server ${round[side].server.toFixed(2)} µs, Postgres ${round[side].database.toFixed(2)} µs`;
      say(`${name}: round ${i + 1} of ${rounds}: ${shown('before')}; ${shown('ours')}`);
    }
    const of = (side, field) => median(seen.map((round) => round[side][field]));
    const ratio = (field) => median(seen.map((round) => round.ours[field] / round.before[field]));
    const tell = (label, unit, field, more) =>
      row(`${name}: ${label}`, unit, of('ours', field), of('before', field), {
        ratio: ratio(field),
        digits: 2,
        ...more,
      });
    if (saturated) tell(`${what}s/s`, '', 'rate', { digits: 0, target: 1 - WITHIN, atLeast: true });
    tell(`CPU a ${what}, server`, 'µs', 'server', { target: 1 + WITHIN });
    tell(`CPU a ${what}, Postgres`, 'µs', 'database');
  }
  return rows;
}
