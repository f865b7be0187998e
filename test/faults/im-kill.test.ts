import { readFile } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { ask, eventually, makeTenant } from '../support/app';
import { ImClient, misses, userToken, type Frame } from '../support/im-client';
import { Server } from '../support/server';

/** FULL_FAULTS=1: as many people for as long as the promise is worth; without it the same in short. */
const FULL = process.env.FULL_FAULTS === '1';
const PEOPLE = FULL ? 50 : 10;
const TALK_MS = FULL ? 30_000 : 8_000;
const EACH_MS = 100;
const SERVER_KILLS = 3;
const SETTLE_MS = 60_000;

/** What is tested here is not how fast they may talk. */
const LIMITS = {
  IM_FRAMES_PER_SECOND: '100000',
  IM_FRAMES_BURST: '1000000',
  IM_TOKENS_PER_MINUTE: '100000',
};

/** The clients come back to where the server was. */
async function freePort(): Promise<string> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return String(port);
}

async function postmaster({ dataDir }: Server): Promise<number> {
  return Number((await readFile(join(dataDir, 'postgres/postmaster.pid'), 'utf8')).split('\n')[0]);
}

const numbersTo = (count: number): number[] => Array.from({ length: count }, (_, index) => index + 1);

/** A conversation's whole log, as the tenant's server reads it. */
async function history({ quickstart: q }: Server, id: string): Promise<Frame[]> {
  const entries: Frame[] = [];
  for (;;) {
    const after = entries.at(-1)?.seq ?? 0;
    const path = `/api/v1/im/conversations/${id}/messages?after=${after}&limit=100`;
    const { status, text, body } = await ask(q.url, 'GET', path, undefined, { 'x-api-key': q.apiKey });
    if (status !== 200) throw new Error(`${path}: ${status} ${text}`);
    entries.push(...(body.data as Frame[]));
    if (!body.hasMore) return entries;
  }
}

async function conversationsOf({ quickstart: q }: Server, user: string): Promise<Frame[]> {
  const path = `/api/v1/im/conversations?userId=${user}`;
  const { body } = await ask(q.url, 'GET', path, undefined, { 'x-api-key': q.apiKey });
  return body.data as Frame[];
}

/** People in pairs and all in one group, each telling the other or everybody something ten times a second. */
class Crowd {
  readonly people: ImClient[] = [];
  private readonly timers: NodeJS.Timeout[] = [];
  private turns = 0;

  async connect({ quickstart: q }: Server, count: number): Promise<void> {
    for (let n = 0; n < count; n += 1) {
      const user = `u${n}`;
      const token = await userToken(q.url, q.apiKey, user, { groups: ['all'] });
      // Two of five speak the plain dialect: pairs of both, of either, and of one and the other.
      this.people.push(new ImClient({ url: q.url, token, user, rich: n % 5 < 3 }));
    }
    await Promise.all(this.people.map((one) => one.waitFor(({ open }) => open)));
  }

  partnerOf(n: number): string {
    return `u${n % 2 === 0 ? n + 1 : n - 1}`;
  }

  talk(): void {
    for (const [n, one] of this.people.entries()) {
      const timer = setInterval(() => {
        this.turns += 1;
        const content = `${one.user} says ${this.turns}`;
        if (this.turns % 7 === 0) one.say('group', 'all', content);
        else one.say('single', this.partnerOf(n), content);
      }, EACH_MS);
      this.timers.push(timer);
    }
  }

  /** Everybody says so much at once that a blow which follows meets the server in the midst of storing it. */
  async burst(count: number): Promise<void> {
    const from = this.stored;
    for (const [n, one] of this.people.entries()) {
      for (let turn = 1; turn <= count; turn += 1)
        one.say('single', this.partnerOf(n), `${one.user} bursts ${turn}`);
    }
    const [first] = this.people;
    await first!.waitFor(() => this.stored > from);
  }

  hush(): void {
    for (const timer of this.timers.splice(0)) clearInterval(timer);
  }

  /** Messages that somebody was told to be stored. */
  get stored(): number {
    return this.people.reduce((sum, { sent }) => sum + sent.size, 0);
  }

  /** Resolves when everybody is back, and has said so many more that are stored. */
  async progress(count: number): Promise<void> {
    await Promise.all(this.people.map((one) => one.waitFor(({ open }) => open, SETTLE_MS)));
    await eventually(async () => this.people.every(({ pending }) => pending < 10), SETTLE_MS);
    const from = this.stored;
    await eventually(async () => this.stored >= from + count, SETTLE_MS);
  }

  async stop(): Promise<void> {
    this.hush();
    await Promise.all(this.people.map((one) => one.stop()));
  }
}

it(`${PEOPLE} people talk while the server is killed three times and its database once: nothing is lost, doubled or out of order`, async () => {
  const env = { ...LIMITS, PORT: await freePort() };
  let server = await Server.start(env);
  const crowd = new Crowd();
  let rival: ImClient | undefined;
  try {
    const { url, rootKey } = server.quickstart;
    const other = await makeTenant(url, rootKey);
    const token = await userToken(url, other.apiKey, 'u1', { groups: ['all'] });
    rival = new ImClient({ url, token, user: 'u1' });
    await crowd.connect(server, PEOPLE);

    // As much as they say in a fifth of the time, three of five being told what was stored, before each blow and after.
    const spell = Math.floor((PEOPLE * 0.6 * TALK_MS) / EACH_MS / (SERVER_KILLS + 2));
    crowd.talk();
    for (let kill = 1; kill <= SERVER_KILLS; kill += 1) {
      await crowd.progress(spell);
      await server.end('SIGKILL');
      server = await Server.start(env, server.dataDir);
    }
    await crowd.progress(spell);
    const before = await postmaster(server);
    const { child } = server;
    const died = new Promise<never>((_, reject) =>
      child.once('exit', () => reject(new Error(`the server died with its database: ${server.output}`))),
    );
    died.catch(() => undefined);
    await crowd.burst(Math.ceil(5_000 / PEOPLE));
    process.kill(before, 'SIGKILL');
    const again = eventually(async () => {
      const now = await postmaster(server).catch(() => before);
      return now > 0 && now !== before;
    }, SETTLE_MS);
    await Promise.race([again, died]);
    await Promise.race([crowd.progress(spell), died]);
    crowd.hush();
    expect(server.child.exitCode).toBeNull();

    // Whoever is told what was stored has been told of everything.
    await Promise.all(crowd.people.map((one) => one.waitFor(({ pending }) => pending === 0, SETTLE_MS)));
    // And everybody's messages are there, those of plain clients, too.
    const said = crowd.people.reduce((sum, one) => sum + one.said.length, 0);
    const logs = new Map<string, { record: Frame; log: Frame[] }>();
    await eventually(async () => {
      for (const { user } of crowd.people) {
        for (const record of await conversationsOf(server, user))
          logs.set(record.id as string, { record, log: await history(server, record.id as string) });
      }
      const entries = [...logs.values()].flatMap(({ log }) => log);
      return entries.filter(({ type }) => type === 'single' || type === 'group').length >= said;
    }, SETTLE_MS);

    const everything = [...logs.values()].flatMap(({ log }) => log);
    const byId = new Map(everything.map((entry) => [entry.id as string, entry]));
    expect(logs.size).toBe(PEOPLE / 2 + 1);
    expect(byId.size).toBe(everything.length);
    for (const { log } of logs.values())
      expect(log.map(({ seq }) => seq as number)).toEqual(numbersTo(log.length));

    for (const one of crowd.people) {
      // Each message once, with its content; one's own in the order they were said, but for those that had to be said again.
      const own = everything.filter(
        ({ type, source }) => (type === 'single' || type === 'group') && source === one.user,
      );
      const shapes = (frames: readonly Frame[], target: string): string[] => {
        const all = frames.filter((frame) => frame.target === target).map(({ msg }) => JSON.stringify(msg));
        return one.deferred > 0 ? all.sort() : all;
      };
      for (const target of new Set(one.said.map((frame) => frame.target as string)))
        expect(shapes(own, target)).toEqual(shapes(one.said, target));
      expect(own).toHaveLength(one.said.length);
      // What was acknowledged is what is stored.
      expect(one.sent.size).toBe(one.rich ? one.said.length : 0);
      for (const [msgId, sent] of one.sent) {
        const { seq, conversationId, source, msg } = byId.get(sent.id as string)!;
        expect([seq, conversationId, source, String(msg.msgId)]).toEqual([
          sent.seq,
          sent.conversationId,
          one.user,
          msgId,
        ]);
      }
    }

    // Every device has seen every message of its conversations, each after the one before it.
    const places = crowd.people.flatMap((one, n) =>
      [
        { place: one.place('single', crowd.partnerOf(n)), target: crowd.partnerOf(n), from: () => 1 },
        {
          place: one.place('group', 'all'),
          target: 'all',
          from: (log: readonly Frame[]) =>
            log.find(({ type, source }) => type === 'join' && source === one.user)!.seq as number,
        },
      ].map(({ target, place, from }) => {
        const { log } = [...logs.values()].find(
          ({ record, log: [first] }) =>
            (target === 'all' ? record.kind === 'group' : record.kind === 'single') &&
            (target === 'all' || [first!.source, first!.target].includes(one.user)),
        )!;
        return { one, target, wrong: () => misses(one, place, log, from(log)) };
      }),
    );
    await eventually(
      async () => places.every(({ wrong }) => !wrong().some((what) => what.includes('never came'))),
      SETTLE_MS,
    ).catch(() => undefined);
    expect(
      places.flatMap(({ one, target, wrong }) => {
        const what = wrong();
        return what.length === 0
          ? []
          : [`${one.user} (${one.rich ? 'rich' : 'plain'}) of ${target}: ${what.slice(0, 5).join('; ')}`];
      }),
    ).toEqual([]);
    expect(crowd.people.flatMap(({ user, faults }) => faults.map((fault) => `${user}: ${fault}`))).toEqual(
      [],
    );
    for (const one of crowd.people) expect(one.connections).toBeGreaterThan(SERVER_KILLS);

    // Of the rival, all through it: nothing but its own joining.
    await rival.waitFor(({ open, connections }) => open && connections > SERVER_KILLS);
    await rival.handled();
    const entries = rival.frames.filter(({ type }) => type !== 'ready' && type !== 'pong');
    expect(new Set(entries.map((frame) => `${frame.type} ${frame.source} ${frame.seq}`))).toEqual(
      new Set(['join u1 1']),
    );
  } finally {
    await Promise.all([crowd.stop(), rival?.stop()]);
    await server.remove();
  }
}, 300_000);
