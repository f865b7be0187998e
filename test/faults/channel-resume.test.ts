import { ChannelConnection } from '../../src/agent-channel/channel-connection';
import { SocketWriter } from '../../src/realtime';
import { bootApp, eventually, type TestApp, type TestTenant } from '../support/app';
import { away, fresh, isEnd, open, textOf, type Channel, type Frame } from '../support/channel';
import { imToken } from '../support/im';
import { Server } from '../support/server';
import { gate, Upstream } from '../support/upstream';

const MAX_BUFFERED = 1_048_576;

let app: TestApp;
let upstream: Upstream;
let acme: TestTenant;
let rival: TestTenant;
let models = 0;

beforeAll(async () => {
  [app, upstream] = await Promise.all([
    bootApp({
      MAX_REPLY_CHARS: '10000000',
      STREAM_LOG_RETENTION_MS: '30000',
      IM_SLOW_READER_SECONDS: '2',
      IM_MAX_BUFFERED_BYTES: String(MAX_BUFFERED),
      // How much may be sent again is tested elsewhere (e2e/socket-costs.test.ts).
      IM_REPLAY_BURST_BYTES: '1073741824',
    }),
    Upstream.start(),
  ]);
  [acme, rival] = await Promise.all([
    app.tenant({ baseUrl: upstream.url }),
    app.tenant({ baseUrl: upstream.url }),
  ]);
});
afterEach(() => jest.restoreAllMocks());
afterAll(async () => {
  await app.close();
  await upstream.close();
});

const connect = async (events = false, tenant = acme): Promise<Channel> =>
  open(app.url, { token: await imToken(app.url, tenant, 'bob'), events });

async function serviceOf(model: string): Promise<string> {
  const { body } = await acme.post('/api/admin/model-services', {
    name: model,
    model,
    providerId: acme.providerId,
  });
  return body.id as string;
}
const newModel = (): string => `resumed-${(models += 1)}`;

/** Pieces of one to thirty characters of any script. */
function anyText(pieces: number): string[] {
  const letters = ['a', 'é', '中', '😀', '👩‍🚀', ' ', '"', '\\', '\n', 'e\u0301'];
  const any = (below: number): number => Math.floor(Math.random() * below);
  return Array.from(
    { length: pieces },
    (_, n) => `${n}:${Array.from({ length: 1 + any(20) }, () => letters[any(letters.length)]!).join('')}`,
  );
}

/** A client that keeps what it has got of one reply, over as many connections as it takes. */
class Reader {
  text = '';
  end: Frame | undefined;
  private channel!: Channel;

  constructor(
    private readonly sessionId: string,
    private readonly events: boolean,
  ) {}

  async connect(): Promise<void> {
    this.channel = await connect(this.events);
  }

  async watch(): Promise<void> {
    await this.channel.send({ type: 'subscribe', sessionId: this.sessionId }).handled();
  }

  resume(messageId: string): void {
    this.channel.send({ type: 'resume', sessionId: this.sessionId, messageId, offset: this.text.length });
  }

  /** Reads until it has so many characters or the end, then vanishes. */
  async until(length: number): Promise<void> {
    while (!this.end && this.text.length < length) this.take(await this.channel.next());
    await this.channel.drop();
  }

  private take(frame: Frame): void {
    if (isEnd(frame)) this.end = frame;
    else if (frame.type === 'text') this.text += frame.payload.content as string;
    else if (frame.type === 'stream') {
      expect(frame.offset).toBe(this.text.length);
      this.text += frame.content as string;
    }
  }
}

it('a client that vanishes again and again gets each character once', async () => {
  const parts = Array.from({ length: 6 }, () => anyText(60));
  const whole = parts.flat().join('');
  const ends = parts.map(
    (_, n) =>
      parts
        .slice(0, n + 1)
        .flat()
        .join('').length,
  );
  const gates = parts.map(() => gate());
  const model = newModel();
  upstream.on(model, async (exchange) => {
    for (const [n, pieces] of parts.entries()) {
      await gates[n]!.opened;
      await exchange.pieces(...pieces);
    }
    await exchange.done();
  });
  const [one, stranger, sessionId] = [await connect(), await connect(false, rival), fresh('dropped')];
  await stranger.send({ type: 'subscribe', sessionId }).handled();
  const readers = Array.from({ length: 8 }, (_, n) => new Reader(sessionId, n % 2 === 1));
  await Promise.all(readers.map((reader) => reader.connect()));
  await Promise.all(readers.map((reader) => reader.watch()));
  one.send({ type: 'chat', sessionId, message: 'x', modelServiceId: await serviceOf(model) });
  gates[0]!.open();
  const { messageId } = await one.next({ type: 'stream' });
  let begin = 0;
  for (const [n, end] of ends.entries()) {
    // Each leaves somewhere in this part; the next part is written while nobody is there.
    await Promise.all(
      readers.map((reader) => reader.until(begin + 1 + Math.floor(Math.random() * (end - begin - 1)))),
    );
    gates[n + 1]?.open();
    await one.until(() => one.frames.some((frame) => frame.offset >= end || isEnd(frame)) || undefined);
    await Promise.all(readers.map((reader) => reader.connect()));
    for (const reader of readers) reader.resume(messageId as string);
    begin = end;
  }
  await Promise.all(readers.map((reader) => reader.until(Infinity)));
  for (const { text, end } of readers) {
    expect(text).toBe(whole);
    expect((end!.payload as Frame | undefined)?.status ?? end!.status).toBe('finished');
  }
  expect(textOf(one.frames)).toBe(whole);
  await stranger.handled();
  expect(stranger.frames).toEqual([]);
  await away(one, stranger);
}, 60_000);

describe('a client that does not read', () => {
  const PIECE = `${'文'.repeat(4_999)}😀`;
  const PIECES = 1_200;

  /** 18 MB to each who watches it, written when the gate opens. */
  async function large(): Promise<{ modelServiceId: string; go: () => void; whole: string }> {
    const { opened, open: go } = gate();
    const model = newModel();
    upstream.on(model, async (exchange) => {
      await exchange.piece('begin ');
      await opened;
      for (let n = 0; n < PIECES; n += 1) await exchange.piece(PIECE);
      await exchange.done();
    });
    return { modelServiceId: await serviceOf(model), go, whole: `begin ${PIECE.repeat(PIECES)}` };
  }

  /** Looks at every write: what waits for any connection never is over the limit. */
  function mostBuffered(): () => number {
    let most = 0;
    const { write } = SocketWriter.prototype;
    jest.spyOn(SocketWriter.prototype, 'write').mockImplementation(function (this: SocketWriter, frame) {
      write.call(this, frame);
      most = Math.max(most, this.buffered);
    });
    return () => most;
  }

  it('is closed with 4008 while the others get all of it, costs no more than may wait for it, and can resume', async () => {
    const closed = jest.spyOn(ChannelConnection.prototype, 'close');
    const buffered = mostBuffered();
    const { modelServiceId, go, whole } = await large();
    const sessionId = fresh('slow');
    const [one, slow, idle] = [await connect(), await connect(), await connect()];
    for (const each of [slow, idle]) await each.send({ type: 'subscribe', sessionId }).handled();
    one.send({ type: 'chat', sessionId, message: 'x', modelServiceId });
    for (const each of [one, slow, idle]) await each.next({ content: 'begin ' });
    slow.pause();
    idle.pause();
    go();
    await one.until(() => one.frames.some(isEnd) || undefined);
    expect(textOf(one.frames) === whole).toBe(true);
    await eventually(async () => closed.mock.calls.filter(([code]) => code === 4008).length === 2);
    expect(buffered()).toBeLessThanOrEqual(MAX_BUFFERED);

    for (const each of [slow, idle]) {
      each.unpause();
      // Who reads again in time learns why; later its socket is just gone.
      expect([4008, 1006]).toContain((await each.closed).code);
      const got = textOf(each.frames, 0);
      expect(got.length).toBeLessThan(whole.length);
      const back = await connect();
      const { messageId } = each.frames[0]!;
      const rest = await back.send({ type: 'resume', sessionId, messageId, offset: got.length }).reply();
      expect(got + textOf(rest, got.length) === whole).toBe(true);
      await back.close();
    }
    expect(closed.mock.calls.filter(([code]) => code === 4008)).toHaveLength(2);
    expect(buffered()).toBeLessThanOrEqual(MAX_BUFFERED);
    await one.close();
  }, 60_000);

  it('now and then is served at its own pace', async () => {
    const buffered = mostBuffered();
    const { modelServiceId, go, whole } = await large();
    const [one, sessionId] = [await connect(), fresh('pace')];
    one.send({ type: 'chat', sessionId, message: 'x', modelServiceId });
    await one.next({ content: 'begin ' });
    go();
    for (let n = 0; n < PIECES; n += 100) {
      one.pause();
      await new Promise((resolve) => setTimeout(resolve, 50));
      one.unpause();
      for (let m = 0; m < 100; m += 1) await one.next({ type: 'stream' });
    }
    await one.until(() => one.frames.some(isEnd) || undefined);
    expect(textOf(one.frames) === whole).toBe(true);
    expect(buffered()).toBeLessThanOrEqual(MAX_BUFFERED);
    await one.close();
  }, 60_000);
});

it('a stored reply larger than what may wait for a client is resumed in pieces that fit; as one it is too_large', async () => {
  const whole = `${'中文'.repeat(150_000)}${'😀\n'.repeat(50_000)}`;
  const forgetful = await bootApp({ STREAM_LOG_RETENTION_MS: '1000', IM_REPLAY_BURST_BYTES: '1000000000' });
  upstream.on('long', async (exchange) => {
    // Larger pieces than a provider sends.
    for (let at = 0; at < whole.length; at += 30_000) await exchange.piece(whole.slice(at, at + 30_000));
    await exchange.done();
  });
  try {
    const tenant = await forgetful.tenant({ baseUrl: upstream.url, model: 'long' });
    const [one, events] = await Promise.all(
      [false, true].map((view) => open(forgetful.url, { key: tenant.apiKey, events: view })),
    );
    const { messageId } = (await one!.chat('x', { sessionId: 's' }))[0]!;
    const resume = { type: 'resume', sessionId: 's', messageId: messageId as string };
    // From the log 31 pieces; from what is stored as few as fit.
    const counts = new Set<number>();
    await eventually(async () => {
      const frames = await one!.send(resume).reply();
      expect(textOf(frames) === whole).toBe(true);
      return counts.add(frames.length).size === 2;
    });
    const told = await events!.send(resume).reply();
    expect(told.map(({ payload }) => (payload.content as string | undefined) ?? '').join('') === whole).toBe(
      true,
    );
    expect(new Set(told.map(({ id }) => id as string)).size).toBe(told.length);
    const asOne = await one!.chat('x', { sessionId: 's', stream: false });
    expect(asOne).toMatchObject([{ type: 'error', code: 'too_large', sessionId: 's' }]);
    const { messageId: second } = asOne[0]!;
    expect(textOf(await one!.send({ ...resume, messageId: second as string }).reply()) === whole).toBe(true);
    await away(one!, events!);
  } finally {
    await forgetful.close();
  }
}, 60_000);

it('after a kill -9 and a restart resume brings what was stored, as interrupted; the session goes on', async () => {
  const provider = { OPENAI_BASE_URL: upstream.url, OPENAI_API_KEY: 'x', OPENAI_MODEL: 'killed' };
  upstream.on('killed', async (exchange) => {
    if (exchange.attempt === 1) return exchange.pieces('this ', 'much 😀 ', 'was ', 'said');
    await exchange.piece('and on');
    return exchange.done();
  });
  let server = await Server.start(provider);
  try {
    const before = await open(server.quickstart.url);
    before.send({ type: 'chat', sessionId: 's', message: 'tell me' });
    const { messageId } = await before.next({ content: 'said' });
    // Promised is a checkpoint every 2 s; nothing outside tells of it before the kill.
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    await server.end('SIGKILL');
    expect((await before.closed).code).toBe(1006);
    const got = 'this much';

    server = await Server.start(provider, server.dataDir);
    const { url, apiKey } = server.quickstart;
    const after = await open(url);
    const resume = { type: 'resume', sessionId: 's', messageId: messageId as string, offset: got.length };
    // At once: it waits until the reply's writer is known to be dead.
    const rest = await after.send(resume).until(() => after.frames.find(isEnd), 'the end', 15_000);
    expect(rest).toMatchObject({ done: true, status: 'interrupted', offset: 'this much 😀 was said'.length });
    expect(got + textOf(after.frames, got.length)).toBe('this much 😀 was said');
    await after.next({ done: true });
    expect(textOf(await after.chat('go on', { sessionId: 's' }))).toBe('and on');
    expect(upstream.seen('killed').at(-1)!.body.messages.slice(1)).toEqual([
      { role: 'user', content: 'tell me' },
      { role: 'assistant', content: 'this much 😀 was said' },
      { role: 'user', content: 'go on' },
    ]);
    // The quickstart's user is `demo`: to anybody else there is no such session.
    const other = await open(url, { key: apiKey, headers: { 'user-id': 'eve' } });
    expect(await other.fails(resume)).toMatchObject({ code: 'session_not_found' });
    await away(after, other);
  } finally {
    await server.remove();
  }
}, 90_000);
