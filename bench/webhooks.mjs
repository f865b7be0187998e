// `node bench/run.mjs webhooks`: how long a quiet tenant's deliveries take, alone and beside two hundred receivers of
// others that hang, are slow, or are dead. docs/benchmarks.md says what each figure means.
import { once } from 'node:events';
import { createServer } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { Agent, request } from 'undici';
import { percentile, rowsOf } from './figures.mjs';
import { startParley, withDatabase } from './processes.mjs';

export const SECTIONS = ['hanging', 'slow', 'dead', 'backlog'];
const TENANTS = 10;
const WEBHOOKS_EACH = 20;
const BACKLOG = 1_000_000;
const MESSAGES = 60;
const EVERY_MS = 150;
const FLOOD_EVERY_MS = 1_000;
/** Until shares are full, and the first time-outs have come. */
const SETTLE_MS = 12_000;
const SLOW_MS = 8_000;
const PATIENCE_MS = 60_000;
const TARGET = 2;
const ROOT_KEY = 'root-key-of-the-benchmark-0123456789';

const ANSWERS = {
  hanging: () => undefined,
  slow: (response) => setTimeout(() => response.writeHead(204).end(), SLOW_MS).unref(),
};

export async function measure({ only = SECTIONS, profileDir, say }) {
  const { rows, row } = rowsOf();
  const agent = new Agent({ connections: 32 });
  const servers = [];

  async function serverOf(answer) {
    const server = createServer((incoming, response) => {
      let text = '';
      incoming.setEncoding('utf8').on('data', (part) => (text += part));
      incoming.on('end', () => answer(response, text));
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    servers.push(server);
    return { server, url: `http://127.0.0.1:${server.address().port}/hook` };
  }

  async function measured(section, parley) {
    const { url } = parley.quickstart;
    const call = async (method, path, body, key, tenant) => {
      const headers = {
        'content-type': 'application/json',
        'x-api-key': key,
        ...(tenant && { 'tenant-id': tenant }),
      };
      const answer = await request(url + path, {
        method,
        headers,
        body: JSON.stringify(body),
        dispatcher: agent,
      });
      const text = await answer.body.text();
      if (answer.statusCode >= 300) throw new Error(`${path}: ${answer.statusCode} ${text.slice(0, 300)}`);
      return JSON.parse(text);
    };
    const tenantOf = async (name, receivers) => {
      const { id } = await call('POST', '/api/admin/tenants', { name }, ROOT_KEY);
      const keys = `/api/admin/tenants/${id}/api-keys`;
      const { key } = await call('POST', keys, { name, scopes: ['im'] }, ROOT_KEY, id);
      const hooks = [];
      for (const receiver of receivers) {
        const input = { url: receiver, events: ['message.created'] };
        hooks.push((await call('POST', '/api/v1/im/webhooks', input, key)).id);
      }
      const say = (content) =>
        call(
          'POST',
          '/api/v1/im/messages',
          { type: 'single', source: 'ann', target: 'bob', msg: { content } },
          key,
        );
      return { id, hooks, say };
    };

    const waiting = new Map();
    const quietReceiver = await serverOf((response, text) => {
      response.writeHead(204).end();
      waiting.get(JSON.parse(text).data.frame.msg.content)?.(performance.now());
    });
    const quiet = await tenantOf('quiet', [quietReceiver.url]);
    let sent = 0;
    /** From the message's acknowledgement to its delivery, in ms. */
    const times = async () => {
      const taken = [];
      for (let n = 0; n < MESSAGES; n += 1) {
        const name = `m${(sent += 1)}`;
        const arrived = new Promise((resolve) => waiting.set(name, resolve));
        await quiet.say(name);
        const acknowledged = performance.now();
        taken.push(arrived.then((at) => at - acknowledged));
        // No multiple of the dispatcher's own interval.
        await delay(EVERY_MS + ((n * 37) % 100));
      }
      const late = delay(PATIENCE_MS, null, { ref: false }).then(() => {
        throw new Error('deliveries of the quiet tenant did not arrive');
      });
      return Promise.race([Promise.all(taken), late]);
    };

    say(`${section}: the quiet tenant alone`);
    await times();
    const alone = await times();

    const receivers = [];
    for (let n = 0; n < (section === 'backlog' ? 1 : TENANTS * WEBHOOKS_EACH); n += 1) {
      const { server, url: address } = await serverOf(ANSWERS[section] ?? ((response) => response.destroy()));
      // Nobody listens there any more.
      if (section === 'dead' || section === 'backlog') server.close();
      receivers.push(address);
    }
    const flooding = [];
    for (let n = 0; n * WEBHOOKS_EACH < receivers.length; n += 1)
      flooding.push(
        await tenantOf(`flood ${n}`, receivers.slice(n * WEBHOOKS_EACH, (n + 1) * WEBHOOKS_EACH)),
      );
    if (section === 'backlog') {
      say(`${section}: ${BACKLOG} deliveries wait for one dead receiver`);
      await withDatabase(parley, (database) =>
        database.query(
          `insert into webhook_deliveries (webhook_id, tenant_id, event, event_id, payload)
           select $1, $2, 'message.created', n::text, '{}' from generate_series(1, ${BACKLOG}) n`,
          [flooding[0].hooks[0], flooding[0].id],
        ),
      );
    }
    let on = true;
    const flood = Promise.all(
      flooding.map(async ({ say: tell }) => {
        while (on) {
          await tell('flood');
          await delay(FLOOD_EVERY_MS);
        }
      }),
    );
    say(`${section}: beside ${receivers.length} receivers`);
    await delay(SETTLE_MS);
    const beside = await times();
    on = false;
    await flood;
    for (const [name, p] of [
      ['p50', 50],
      ['p95', 95],
    ]) {
      const [now, before] = [percentile(beside, p), percentile(alone, p)];
      row(`${section}: a quiet tenant's delivery, ${name}`, 'ms', now, before, {
        ratio: now / before,
        target: TARGET,
      });
    }
  }

  try {
    for (const section of only) {
      say(`${section}: starting Parley`);
      const env = { PARLEY_ROOT_KEY: ROOT_KEY, DRAIN_TIMEOUT_MS: '1000' };
      const parley = await startParley({ profileDir, env });
      try {
        await measured(section, parley);
      } finally {
        await parley.stop();
        for (const server of servers.splice(0)) {
          server.close();
          server.closeAllConnections();
        }
      }
    }
  } finally {
    await agent.destroy();
  }
  return rows;
}
