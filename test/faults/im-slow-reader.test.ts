import { readFile } from 'node:fs/promises';
import { Connection } from '../../src/im/connection';
import { CLOSE } from '../../src/realtime';
import { bootApp, eventually, makeTenant, type TestApp, type TestTenant } from '../support/app';
import { ImClient, misses, userToken, type Frame, type ImClientSettings } from '../support/im-client';
import { Im } from '../support/im-rest';
import { Server } from '../support/server';

/** What is tested here is not how much may be sent. */
const LIMITS = {
  IM_FRAMES_PER_SECOND: '100000',
  IM_FRAMES_BURST: '1000000',
  IM_SLOW_READER_SECONDS: '2',
};
const MIB = 1_048_576;
const SETTLE_MS = 60_000;
const STALLED = 40;

let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;
const clients: ImClient[] = [];

beforeAll(async () => {
  app = await bootApp(LIMITS);
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
afterEach(async () => {
  jest.restoreAllMocks();
  await Promise.all(clients.splice(0).map((client) => client.stop()));
});
afterAll(() => app.close());

interface Who extends Partial<ImClientSettings> {
  readonly groups?: readonly string[];
}

async function join(
  at: { readonly url: string; readonly apiKey: string },
  user: string,
  { groups, ...settings }: Who = {},
): Promise<ImClient> {
  const token = await userToken(at.url, at.apiKey, user, groups && { groups });
  const client = new ImClient({ url: at.url, token, user, ...settings });
  clients.push(client);
  await client.waitFor(({ open }) => open);
  return client;
}

const connect = (tenant: TestTenant, user: string, who?: Who): Promise<ImClient> =>
  join({ url: app.url, apiKey: tenant.apiKey }, user, who);

async function say(from: ImClient, to: string, count: number, chars: number): Promise<void> {
  for (let n = 0; n < count; n += 1) from.say('single', to, 'x'.repeat(chars));
  await from.waitFor(({ pending }) => pending === 0, SETTLE_MS);
}

/** The conversation's whole log. */
async function logOf(im: Im, conversationId: string): Promise<Frame[]> {
  const log: Frame[] = [];
  for (;;) {
    const page = await im.history(conversationId, `?after=${log.length}&limit=100`);
    if (page.length === 0) return log;
    log.push(...page);
  }
}

const numbers = (from: number, to: number): number[] =>
  Array.from({ length: to - from + 1 }, (_, index) => from + index);

/** Two that answer each other as fast as they can; each round is timed. */
class Chat {
  readonly rounds: number[] = [];
  private over = false;
  private running: Promise<void> | undefined;

  constructor(
    private readonly ann: ImClient,
    private readonly ben: ImClient,
  ) {}

  start(): void {
    this.running = (async () => {
      while (!this.over) {
        const began = performance.now();
        const n = this.rounds.length + 1;
        this.ann.say('single', this.ben.user, n);
        await this.ben.waitFor((ben) => ben.place('single', this.ann.user).arrivals.length >= n);
        this.ben.say('single', this.ann.user, n);
        await this.ann.waitFor((ann) => ann.place('single', this.ben.user).arrivals.length >= n);
        this.rounds.push(performance.now() - began);
      }
    })();
  }

  async end(): Promise<void> {
    this.over = true;
    await this.running;
  }
}

it('closes who does not read with 4008, who comes back to exactly what it had not acknowledged; others chat on', async () => {
  const [slow, sender, ann, ben, stranger] = await Promise.all([
    connect(acme, 'slow', { acknowledges: false }),
    connect(acme, 'sender'),
    connect(acme, 'ann'),
    connect(acme, 'ben'),
    connect(rival, 'slow'),
  ]);
  await say(sender, 'slow', 200, 100);
  const place = slow.place('single', 'sender');
  await slow.waitFor(() => place.upTo === 200);
  slow.acknowledge(place.conversationId!, 150);
  await slow.handled();

  // It reads again as soon as it is let go: the reason lies before it for a few seconds only.
  const close = Reflect.get(Connection.prototype, 'close');
  const closed = jest.spyOn(Connection.prototype, 'close').mockImplementation(function (
    this: Connection,
    ...why
  ) {
    close.apply(this, why);
    if (why[0] === CLOSE.tooSlow) slow.resume();
  });
  const chat = new Chat(ann, ben);
  chat.start();
  slow.pause();
  const roundsBefore = chat.rounds.length;
  const tooSlow = (): boolean => closed.mock.calls.some(([code]) => code === CLOSE.tooSlow);
  // At once for what is over the limit, or after a while of not reading; in any case for many times the limit.
  for (let batch = 0; batch < 100 && !tooSlow(); batch += 1) await say(sender, 'slow', 100, 4_096);
  await eventually(async () => tooSlow(), 30_000);
  expect(chat.rounds.length).toBeGreaterThan(roundsBefore);
  const whileAway = say(sender, 'slow', 1_000, 1_024);
  await slow.waitFor(({ closes }) => closes.length > 0);
  expect(slow.closes).toEqual([4008]);
  await whileAway;
  const last = sender.said.length;
  await slow.waitFor(() => place.upTo === last, SETTLE_MS);
  await chat.end();

  expect(last).toBeGreaterThan(1_200);
  const received = (connection: number): number[] =>
    place.arrivals.filter((arrival) => arrival.connection === connection).map(({ seq }) => seq);
  const first = received(1);
  expect(first).toEqual(numbers(1, first.length));
  expect(first.length).toBeGreaterThanOrEqual(200);
  expect(first.length).toBeLessThan(last);
  expect(received(2)).toEqual(numbers(151, last));
  expect(slow.faults).toEqual([]);
  const log = await logOf(new Im(app.url, acme.apiKey), place.conversationId!);
  expect(log).toHaveLength(last);
  expect(misses(slow, place, log)).toEqual([]);

  // Nobody else noticed.
  expect(closed.mock.calls.filter(([code]) => code === CLOSE.tooSlow)).toHaveLength(1);
  expect(Math.max(...chat.rounds)).toBeLessThan(3_000);
  for (const one of [sender, ann, ben, stranger])
    expect([one.user, one.connections, one.closes, one.faults]).toEqual([one.user, 1, [], []]);
  for (const [one, other] of [
    [ann, 'ben'],
    [ben, 'ann'],
  ] as const) {
    expect(one.place('single', other).upTo).toBe(2 * chat.rounds.length);
    expect(one.place('single', other).arrivals).toHaveLength(chat.rounds.length);
  }
  await stranger.handled();
  expect(stranger.frames.map(({ type }) => type as string)).toEqual(['ready', 'pong']);
}, 120_000);

it('brings who reads up to date, however large what it missed or is sent in one go', async () => {
  const [sender, reader] = await Promise.all([connect(acme, 'big'), connect(acme, 'reader')]);
  await reader.waitFor(({ frames }) => frames.length > 0);
  // 16 MiB, sixteen times what may wait for a client; each message as large as a frame may be.
  await say(sender, 'away', 256, 65_000);
  const away = await connect(acme, 'away');
  await away.waitFor((one) => one.place('single', 'big').upTo === 256, SETTLE_MS);
  expect([away.closes, away.faults]).toEqual([[], []]);

  await say(sender, 'reader', 256, 65_000);
  await reader.waitFor((one) => one.place('single', 'big').upTo === 256, SETTLE_MS);
  // Live, so much in one instant may look like slowness: then it comes back and has it.
  expect(reader.closes.filter((code) => code !== 4008)).toEqual([]);
  expect(reader.closes.length).toBeLessThan(6);
  expect(reader.faults).toEqual([]);
}, 180_000);

async function memory(server: Server, line: 'VmRSS' | 'VmHWM'): Promise<number> {
  const status = await readFile(`/proc/${server.child.pid}/status`, 'utf8');
  return Number(new RegExp(`^${line}:\\s+(\\d+) kB`, 'm').exec(status)![1]) * 1_024;
}

it('holds little for many that do not read: they are let go, and find everything when they do', async () => {
  const server = await Server.start(LIMITS);
  try {
    const { url, rootKey } = server.quickstart;
    const [own, other] = [await makeTenant(url, rootKey), await makeTenant(url, rootKey)];
    const at = { url, apiKey: own.apiKey };
    const stalled: ImClient[] = [];
    // Of both dialects.
    for (let n = 0; n < STALLED; n += 1)
      stalled.push(await join(at, `m${n}`, { groups: ['crowd'], rich: n % 2 === 0 }));
    const sender = await join(at, 'sender', { groups: ['crowd'] });
    const reader = await join(at, 'reader', { groups: ['crowd'] });
    const stranger = await join({ url, apiKey: other.apiKey }, 'm0', { groups: ['crowd'] });
    const tell = async (count: number): Promise<void> => {
      for (let n = 0; n < count; n += 1) sender.say('group', 'crowd', 'x'.repeat(32_768));
      await sender.waitFor(({ pending }) => pending === 0, SETTLE_MS);
    };
    const everyoneHas = (who: readonly ImClient[]): Promise<unknown> => {
      // Everybody's joining, then the messages.
      const seq = STALLED + 2 + sender.said.length;
      return Promise.all(
        who.map((one) => one.waitFor((client) => client.place('group', 'crowd').upTo === seq, SETTLE_MS)),
      );
    };
    // Everything is warm: what comes on top of this is held for those who don't read.
    for (let batch = 0; batch < 5; batch += 1) await tell(20);
    await everyoneHas([...stalled.filter(({ rich }) => rich), reader]);
    const before = await memory(server, 'VmRSS');
    for (const one of stalled) one.pause();
    // 25 MiB to each: a thousand in all, if they were held.
    for (let batch = 0; batch < 40; batch += 1) await tell(20);
    await everyoneHas([reader]);
    const peak = await memory(server, 'VmHWM');
    expect((peak - before) / MIB).toBeLessThan(300);
    expect([reader.closes, sender.closes]).toEqual([[], []]);

    const back = stalled.slice(0, 4);
    for (const one of back) one.resume();
    await everyoneHas(back);
    const { conversationId } = reader.place('group', 'crowd');
    const log = await logOf(new Im(url, own.apiKey), conversationId!);
    expect(log).toHaveLength(STALLED + 2 + sender.said.length);
    const wrong = [...back, reader].flatMap((one) => {
      const from = log.find(({ type, source }) => type === 'join' && source === one.user)!.seq as number;
      return misses(one, one.place('group', 'crowd'), log, from)
        .slice(0, 3)
        .concat(one.faults)
        .map((what) => `${one.user}: ${what}`);
    });
    expect(wrong).toEqual([]);
    // Who reads again in time learns why it was let go; later its socket is just gone.
    for (const one of back) expect(one.closes.filter((code) => code !== 4008 && code !== 1006)).toEqual([]);
    await stranger.handled();
    expect(stranger.place('group', 'crowd').arrivals).toHaveLength(1);
  } finally {
    await Promise.all(clients.splice(0).map((client) => client.stop()));
    await server.remove();
  }
}, 180_000);

it('a client that vanishes in the middle of sending says it again, and nothing is doubled', async () => {
  const [rich, plain, peer] = await Promise.all([
    connect(acme, 'vanishing'),
    connect(acme, 'plain', { rich: false }),
    connect(acme, 'peer'),
  ]);
  for (let round = 1; round <= 8; round += 1) {
    for (const one of [rich, plain]) {
      for (let n = 0; n < 50; n += 1) one.say('single', 'peer', `${round} ${n} ${'x'.repeat(200 * round)}`);
    }
    // In later and later moments: with nothing on its way yet, in the middle of it, and when some has been stored.
    if (round % 2 === 0) await rich.waitFor(({ sent }) => sent.size >= (round - 1) * 50 + round);
    rich.drop();
    plain.drop();
    await Promise.all(
      [rich, plain].map((one) => one.waitFor(({ open, connections }) => open && connections > round)),
    );
  }
  await rich.waitFor(({ pending }) => pending === 0);
  const im = new Im(app.url, acme.apiKey);
  for (const one of [rich, plain]) {
    const place = peer.place('single', one.user);
    await peer.waitFor(() => place.upTo === 400);
    const log = await eventually(async () => {
      const all = await logOf(im, place.conversationId!);
      return all.length >= 400 && all;
    });
    // Each once, in the order they were said.
    expect(log.map(({ msg }) => msg as Frame)).toEqual(one.said.map(({ msg }) => msg as Frame));
    expect(log.map(({ seq }) => seq as number)).toEqual(numbers(1, 400));
    expect(place.arrivals.map(({ id }) => id)).toEqual(log.map(({ id }) => id as string));
    expect(one.faults).toEqual([]);
    for (const [msgId, { id, seq }] of one.sent)
      expect([id, seq]).toEqual([log[Number(msgId) - 1]!.id, Number(msgId)]);
  }
  expect(rich.sent.size).toBe(400);
  expect([peer.closes, peer.faults]).toEqual([[], []]);
}, 60_000);
