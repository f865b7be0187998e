import fc from 'fast-check';
import { ask, bootApp, type TestApp, type TestTenant } from '../support/app';
import { freshDatabase, query } from '../support/database';
import {
  away,
  connect,
  device,
  fresh,
  group,
  imToken,
  join,
  leave,
  say,
  seqs,
  type ConnectOptions,
  type Device,
  type Frame,
  type Peer,
  type TokenOptions,
} from '../support/im';

let database: Awaited<ReturnType<typeof freshDatabase>>;
/** Two processes of one installation. */
let apps: readonly [TestApp, TestApp];
let acme: TestTenant;
let rival: TestTenant;

beforeAll(async () => {
  database = await freshDatabase();
  const env = { IM_FRAMES_BURST: '1000', IM_TOKENS_PER_MINUTE: '10000' };
  apps = [await bootApp(env, database.url), await bootApp(env, database.url)];
  [acme, rival] = await Promise.all([apps[0].tenant(), apps[0].tenant()]);
});
afterAll(async () => {
  for (const app of apps) await app.close();
  await database.drop();
});

const on = (user: string, options: TokenOptions & ConnectOptions = {}, tenant = acme): Promise<Device> =>
  device(apps[0], tenant, user, options);
const putOut = async (groupId: string, user: string, tenant = acme): Promise<void> => {
  const { status } = await fetch(
    `${apps[0].url}/api/v1/im/groups/${encodeURIComponent(groupId)}/members/${encodeURIComponent(user)}`,
    { method: 'DELETE', headers: { 'x-api-key': tenant.apiKey } },
  );
  expect(status).toBe(200);
};
const add = async (groupId: string, user: string, tenant = acme): Promise<void> => {
  const path = `/api/v1/im/groups/${encodeURIComponent(groupId)}/members`;
  expect((await tenant.post(path, { users: [user] })).status).toBe(200);
};
const of = (groupId: string, frames: Frame[]): Frame[] => frames.filter(({ target }) => target === groupId);

describe.each([
  ['plain', false],
  ['rich', true],
])('who comes back into a group, in the %s dialect', (_, rich) => {
  it('gets what was said before they were put out, nothing of what was said meanwhile, and what came since', async () => {
    const [a, b, g] = [fresh('a'), fresh('b'), fresh('g')];
    const speaker = await on(a, { rich: true });
    await say(speaker, join(a, g));
    await add(g, b);
    const theirs = await on(b, { groupId: [g], rich }, rival);
    const first = await on(b, { rich });
    await (await on(b, { rich, client: 'phone' })).drop();
    await first.drop();
    await say(speaker, group(a, g, { msgId: 3 }));
    await putOut(g, b);
    await say(speaker, group(a, g, { msgId: 5 }), group(a, g, { msgId: 6 }));
    await add(g, b);
    await say(speaker, group(a, g, { msgId: 8 }));
    await putOut(g, b);
    await say(speaker, group(a, g, { msgId: 10 }));
    await add(g, b);
    await say(speaker, group(a, g, { msgId: 12 }));
    for (const client of ['pc', 'phone']) {
      const back = await on(b, { rich, client });
      await back.next({ target: g, seq: 12 });
      const got = seqs(of(g, await back.settled()));
      // Its first connection may have had the join already, and was not asked whether it had.
      expect(got.filter((seq) => seq > 2)).toEqual([3, 4, 7, 8, 9, 11, 12]);
      await back.close();
    }
    expect(seqs(of(g, await theirs.settled()))).not.toContain(3);
    await away(speaker, theirs);
  });

  it('gets again what was written to it and not known to be read', async () => {
    const [a, b, g] = [fresh('a'), fresh('b'), fresh('g')];
    const speaker = await on(a, { rich: true });
    await say(speaker, join(a, g));
    await add(g, b);
    const deaf = await on(b, { rich, autoPong: false });
    await say(speaker, group(a, g, { msgId: 3 }));
    await deaf.next({ target: g, seq: 3 });
    await putOut(g, b);
    await say(speaker, group(a, g, { msgId: 5 }));
    await add(g, b);
    await deaf.next({ target: g, seq: 6 });
    expect(seqs(of(g, deaf.frames))).not.toContain(5);
    await deaf.drop();
    const back = await on(b, { rich });
    await back.next({ target: g, seq: 6 });
    expect(seqs(of(g, await back.settled()))).toEqual([2, 3, 4, 6]);
    await away(speaker, back);
  });

  it('goes on live, having left and joined by itself, on every device', async () => {
    const [a, b, g] = [fresh('a'), fresh('b'), fresh('g')];
    const speaker = await on(a, { rich: true });
    await say(speaker, join(a, g));
    const [pc, phone] = [await on(b, { rich }), await on(b, { rich, client: 'phone' })];
    await pc.send(join(b, g)).ping();
    await pc.send(leave(b, g)).ping();
    await say(speaker, group(a, g, { msgId: 4 }));
    await phone.send(join(b, g)).ping();
    await say(speaker, group(a, g, { msgId: 6 }));
    for (const peer of [pc, phone]) await peer.next({ target: g, seq: 6 });
    expect(seqs(of(g, await pc.settled()))).toEqual([5, 6]);
    expect(seqs(of(g, await phone.settled()))).toEqual([2, 3, 6]);
    await away(speaker, pc, phone);
  });
});

it('`sync` brings every interval of the membership, and none of the others', async () => {
  const [a, b, g] = [fresh('a'), fresh('b'), fresh('g')];
  const speaker = await on(a, { rich: true });
  const [{ conversationId }] = (await say(speaker, join(a, g))) as [Frame];
  const id = conversationId as string;
  for (let round = 0; round < 3; round += 1) {
    await add(g, b);
    await say(speaker, group(a, g, { msgId: round }));
    await putOut(g, b);
    await say(speaker, group(a, g, { msgId: -1 - round }));
  }
  await add(g, b);
  const peer = await on(b, { rich: true });
  const visible = [2, 3, 4, 6, 7, 8, 10, 11, 12, 14];
  await peer.next({ seq: 14 });
  const before = peer.frames.length;
  peer.send({ type: 'sync', cursors: { [id]: 0 } });
  expect(await peer.next({ type: 'sync' })).toEqual({ type: 'sync', cursors: { [id]: 14 }, hasMore: false });
  expect(seqs(peer.frames.slice(before).filter(({ target }) => target === g))).toEqual(visible);
  peer.send({ type: 'sync', cursors: { [id]: 8 } });
  await peer.next({ type: 'sync' });
  expect(seqs(of(g, peer.frames.slice(before)))).toEqual([...visible, 10, 11, 12, 14]);
  // The server's history is the conversation's, whoever was in it when.
  const { body } = await acme.get(`/api/v1/im/conversations/${id}/messages?limit=200`);
  expect(seqs(body.data as Frame[])).toEqual(Array.from({ length: 14 }, (_, index) => index + 1));
  expect((await rival.get(`/api/v1/im/conversations/${id}/messages`)).status).toBe(404);
  await away(speaker, peer);
});

interface Step {
  readonly what: 'say' | 'in' | 'out' | 'come' | 'go' | 'ack';
  readonly device: 0 | 1;
  readonly node: 0 | 1;
}

const scripts = fc.record({
  /** On one process everything is told at once; on two, what a device hears while its user is out is not promised. */
  apart: fc.boolean(),
  steps: fc.array(
    fc.record<Step>({
      what: fc.oneof(
        { weight: 5, arbitrary: fc.constant('say' as const) },
        { weight: 3, arbitrary: fc.constantFrom('in' as const, 'out' as const) },
        { weight: 3, arbitrary: fc.constantFrom('come' as const, 'go' as const) },
        { weight: 1, arbitrary: fc.constant('ack' as const) },
      ),
      device: fc.constantFrom(0 as const, 1 as const),
      node: fc.constantFrom(0 as const, 1 as const),
    }),
    { minLength: 5, maxLength: 25, size: 'max' },
  ),
});

/** What the log says its user may see. */
async function visible(groupId: string, user: string): Promise<number[]> {
  const log = await query<{ seq: string; frame: string }>(
    database.url,
    `select m.seq, m.frame from messages m join conversations c on c.id = m.conversation_id
     where c.tenant_id = $1 and c.key = $2 order by m.seq`,
    [acme.id, groupId],
  );
  const seen: number[] = [];
  let member = false;
  for (const row of log) {
    const { type, source } = JSON.parse(row.frame) as Frame;
    if (source === user && type === 'join') member = true;
    if (member) seen.push(Number(row.seq));
    if (source === user && type === 'leave') member = false;
  }
  return seen;
}

it('who is added again among many, in one request, lacks nothing and hears nothing of the time between', async () => {
  const [a, stays, g] = [fresh('a'), fresh('stays'), fresh('g')];
  const [here, hereToo, away1, away2] = Array.from({ length: 4 }, () => fresh('b')) as [
    string,
    string,
    string,
    string,
  ];
  const back = [here, hereToo, away1, away2];
  const addAll = async (users: readonly string[]): Promise<unknown> =>
    (await acme.post(`/api/v1/im/groups/${encodeURIComponent(g)}/members`, { users })).body;
  const speaker = await on(a, { rich: true });
  await say(speaker, join(a, g));
  expect(await addAll([stays, ...back])).toEqual({ added: 5, memberCount: 6 });
  const theirs = await on(here, { groupId: [g], rich: true }, rival);
  const rich = (user: string): boolean => user === here || user === away1;
  const peers = new Map<string, Device[]>();
  for (const user of [stays, ...back]) {
    const peer = await on(user, { rich: rich(user) });
    await peer.settled();
    peers.set(user, [peer]);
    if (user === away1 || user === away2) await peer.drop();
  }
  // In the second round there is an earlier interval, and devices lack some of each.
  for (let round = 0; round < 2; round += 1) {
    await say(speaker, group(a, g, { msgId: `before ${round}` }));
    for (const user of back) await putOut(g, user);
    await say(speaker, group(a, g, { msgId: `meanwhile ${round}` }), group(a, g, { msgId: `and ${round}` }));
    const news = Array.from({ length: 30 }, () => fresh('n'));
    expect(await addAll([...news.slice(0, 15), stays, ...back, ...news.slice(15)])).toMatchObject({
      added: 34,
    });
  }
  const [{ seq: last }] = (await say(speaker, group(a, g, { msgId: 'last' }))) as [Frame];
  for (const user of [away1, away2])
    peers.get(user)!.push(await device(apps[1], acme, user, { rich: rich(user) }));
  for (const [user, devices] of peers) {
    await devices.at(-1)!.next({ target: g, seq: last });
    const got = [...new Set(devices.flatMap(({ frames }) => seqs(of(g, frames))))].sort((x, y) => x - y);
    expect([user, got]).toEqual([user, await visible(g, user)]);
    const order = seqs(of(g, devices.at(-1)!.frames));
    expect(order).toEqual([...order].sort((x, y) => x - y));
  }
  // Its own join, in the group of that name that its tenant has.
  expect(seqs(of(g, await theirs.settled()))).toEqual([1]);
  await away(speaker, theirs, ...[...peers.values()].map((devices) => devices.at(-1)!));
});

it.each([
  ['plain', false],
  ['rich', true],
])(
  'a connected %s device that is behind when its user is added again goes on where it was',
  async (_, rich) => {
    const [a, b, g] = [fresh('a'), fresh('b'), fresh('g')];
    const speaker = await on(a, { rich: true });
    await say(speaker, join(a, g));
    await add(g, b);
    const peer = await device(apps[1], acme, b, { rich });
    await peer.next({ target: g, seq: 2 });
    // Through the other process: nothing of it is told here.
    await say(speaker, group(a, g, { msgId: 3 }));
    await putOut(g, b);
    await say(speaker, group(a, g, { msgId: 5 }));
    const news = Array.from({ length: 5 }, () => fresh('n'));
    const path = `/api/v1/im/groups/${encodeURIComponent(g)}/members`;
    const headers = { 'x-api-key': acme.apiKey };
    const answer = await ask(apps[1].url, 'POST', path, { users: [...news, b] }, headers);
    expect(answer.body).toEqual({ added: 6, memberCount: 7 });
    await peer.next({ target: g, seq: 11 });
    expect(seqs(of(g, peer.frames))).toEqual([2, 3, 4, 11]);
    await away(speaker, peer);
  },
);

it('whatever happens: each device gets all that its user may see, and nothing else', async () => {
  await fc.assert(
    fc.asyncProperty(scripts, async ({ apart, steps }) => {
      const [user, g] = [fresh('u'), fresh('g')];
      const nodeOf = (node: number): TestApp => apps[apart ? node : 0]!;
      await acme.post('/api/v1/im/groups', { groupId: g, members: ['somebody'] });
      const change = async (node: TestApp, method: string, path: string, body?: object): Promise<void> => {
        await fetch(`${node.url}/api/v1/im/groups/${encodeURIComponent(g)}/members${path}`, {
          method,
          headers: { 'x-api-key': acme.apiKey, 'content-type': 'application/json' },
          ...(body && { body: JSON.stringify(body) }),
        });
      };
      // One of each dialect. Both are there before anything is said.
      const devices = await Promise.all(
        [false, true].map(async (rich) => {
          const client = rich ? 'rich' : 'plain';
          const token = await imToken(apps[0].url, acme, user, { client });
          return { rich, token, peers: [] as Peer[], open: undefined as Peer | undefined };
        }),
      );
      const come = async (one: (typeof devices)[number], node: TestApp): Promise<void> => {
        if (one.open) return;
        one.open = await connect(node.url, one.token, { rich: one.rich });
        one.peers.push(one.open);
      };
      const go = async (one: (typeof devices)[number]): Promise<void> => {
        await one.open?.drop();
        one.open = undefined;
      };
      for (const one of devices) {
        await come(one, apps[0]);
        await one.open!.ping();
        await go(one);
      }
      let said = 0;
      for (const { what, device: index, node } of steps) {
        const one = devices[index]!;
        const at = nodeOf(node);
        if (what === 'come') await come(one, at);
        else if (what === 'go') await go(one);
        else if (what === 'in') await change(at, 'POST', '', { users: [user] });
        else if (what === 'out') await change(at, 'DELETE', `/${encodeURIComponent(user)}`);
        else if (what === 'ack') {
          const last = of(g, devices[1]!.open?.frames ?? []).at(-1);
          if (last)
            devices[1]!.open!.send({ type: 'ack', conversationId: last.conversationId, seq: last.seq });
        } else {
          said += 1;
          await fetch(`${at.url}/api/v1/im/messages`, {
            method: 'POST',
            headers: { 'x-api-key': acme.apiKey, 'content-type': 'application/json' },
            body: JSON.stringify({ type: 'group', source: 'somebody', target: g, msg: { said } }),
          });
        }
      }
      const expected = await visible(g, user);
      for (const one of devices) {
        await go(one);
        await come(one, nodeOf(0));
        const got = (): Set<number> => new Set(one.peers.flatMap(({ frames }) => seqs(of(g, frames))));
        const deadline = Date.now() + 5_000;
        while (!expected.every((seq) => got().has(seq)) && Date.now() < deadline)
          await new Promise((resolve) => setTimeout(resolve, 5));
        const all = [...got()].sort((a, b) => a - b);
        if (apart) expect(all).toEqual(expect.arrayContaining(expected));
        else expect(all).toEqual(expected);
        for (const { frames } of one.peers) {
          const order = seqs(of(g, frames));
          expect(order).toEqual([...order].sort((a, b) => a - b));
        }
        await go(one);
      }
    }),
    { numRuns: 25 },
  );
}, 120_000);
