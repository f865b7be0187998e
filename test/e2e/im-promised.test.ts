import { bootApp, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { ImSocket, imToken, type Frame, type SocketOptions } from '../support/im-socket';

let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;
const sockets: ImSocket[] = [];

beforeAll(async () => {
  app = await bootApp();
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
afterEach(async () => {
  await Promise.all(sockets.splice(0).map((socket) => socket.close()));
});
afterAll(() => app.close());

let users = 0;
const someone = (): string => `user-${(users += 1)}`;

async function open(
  user: string,
  { client, tenant = acme, ...options }: SocketOptions & { client?: string; tenant?: TestTenant } = {},
): Promise<ImSocket> {
  const token = await imToken(app.url, tenant.apiKey, user, client ? { client } : {});
  const socket = await ImSocket.open(app.url, { token, ...options });
  sockets.push(socket);
  return socket;
}

const isSingle = ({ type }: Frame): boolean => type === 'single';
const isSent = ({ type }: Frame): boolean => type === 'sent';
const seqs = (frames: Frame[]): number[] => frames.filter(isSingle).map(({ seq }) => seq as number);
const message = (source: string, target: string, msg: object) => ({ type: 'single', source, target, msg });

/** Stored for the target while none of its devices was there. */
async function stored(source: string, target: string, count: number): Promise<Frame[]> {
  const answers = [];
  for (let n = 1; n <= count; n += 1) {
    const answer = await acme.post(
      '/api/v1/im/messages',
      message(source, target, { msgId: n, content: `m${n}` }),
    );
    answers.push(answer.body as Frame);
  }
  return answers;
}

it('durable before acknowledged: the row is there when `sent` comes', async () => {
  const [a, b] = [someone(), someone()];
  const socket = await open(a, { rich: true });
  for (let n = 0; n < 5; n += 1) {
    socket.send(message(a, b, { msgId: n, content: `durable ${n}` }));
    const { id, seq, conversationId } = await socket.next(isSent);
    expect(
      await query(app.databaseUrl, `select seq, conversation_id from messages where id = ${id as string}`),
    ).toEqual([{ seq: `${seq}`, conversation_id: conversationId }]);
  }
});

it('in order, without gaps, whoever of two sends how many at once, on every device', async () => {
  const [a, b] = [someone(), someone()];
  const devices = [
    await open(a, { rich: true }),
    await open(b, { rich: true }),
    await open(b, { rich: true, client: 'phone' }),
  ];
  for (let n = 0; n < 60; n += 1) {
    devices[0]!.send(message(a, b, { msgId: n, timestamp: 1 }));
    devices[1]!.send(message(b, a, { msgId: n, timestamp: 1 }));
  }
  const watcher = devices[2]!;
  await watcher.next(({ seq }) => seq === 120);
  expect(seqs(watcher.frames)).toEqual(Array.from({ length: 120 }, (_, index) => index + 1));
  for (const device of [devices[0]!, devices[1]!]) {
    const numbered = device.frames
      .filter(({ seq }) => typeof seq === 'number')
      .map(({ seq }) => seq as number);
    await device.next(({ seq }) => seq === Math.max(...numbered)).catch(() => undefined);
    expect(new Set(numbered).size).toBe(numbered.length);
  }
});

describe('at least once', () => {
  it("brings what was stored for a user to the user's very first device, in order", async () => {
    const [a, b] = [someone(), someone()];
    await stored(a, b, 5);
    const device = await open(b);
    await device.next(({ seq }) => seq === 5);
    expect(seqs(device.frames)).toEqual([1, 2, 3, 4, 5]);
  });

  it('lets a further new device begin at the present', async () => {
    const [a, b] = [someone(), someone()];
    await stored(a, b, 3);
    await (await open(b)).next(({ seq }) => seq === 3);
    const further = await open(b, { client: 'tablet', rich: true });
    const speaker = await open(a, { rich: true });
    speaker.send(message(a, b, { msgId: 'now' }));
    await further.next(isSingle);
    expect(seqs(further.frames)).toEqual([4]);
  });

  it('repeats to a plain device what no pong has proven to be read, with the same ids', async () => {
    const [a, b] = [someone(), someone()];
    const sent = await stored(a, b, 3);
    for (let time = 0; time < 2; time += 1) {
      const device = await open(b, { autoPong: false });
      await device.next(({ seq }) => seq === 3);
      expect(device.frames.filter(isSingle).map(({ id, seq }) => [id, seq])).toEqual(
        sent.map(({ id, seq }) => [id, seq]),
      );
      await device.close();
    }
  });

  it('moves a plain device’s mark with its pong, and then sends what is new alone', async () => {
    const [a, b] = [someone(), someone()];
    await stored(a, b, 3);
    const device = await open(b);
    const proven = new Promise((resolve) => device.ws.once('ping', resolve));
    await device.next(({ seq }) => seq === 3);
    await proven;
    await device.settled();
    await device.close();
    await acme.post('/api/v1/im/messages', message(a, b, { msgId: 'new' }));
    const again = await open(b);
    await again.next(isSingle);
    await again.settled();
    expect(seqs(again.frames)).toEqual([4]);
  });

  it('sends a rich device what it has not acknowledged, and nothing that it has', async () => {
    const [a, b] = [someone(), someone()];
    const sent = await stored(a, b, 4);
    const device = await open(b, { rich: true });
    await device.next(({ seq }) => seq === 4);
    device.send({ type: 'ack', conversationId: sent[0]!.conversationId, seq: 2 });
    await device.settled();
    await device.close();
    const again = await open(b, { rich: true });
    await again.next(({ seq }) => seq === 4);
    expect(seqs(again.frames)).toEqual([3, 4]);
    again.send({ type: 'ack', conversationId: sent[0]!.conversationId, seq: 4_000 });
    await again.settled();
    await again.close();
    await acme.post('/api/v1/im/messages', message(a, b, { msgId: 'later' }));
    const third = await open(b, { rich: true });
    await third.next(isSingle);
    expect(seqs(third.frames)).toEqual([5]);
  });

  it('catches up with more than a page, in order', async () => {
    const [a, b] = [someone(), someone()];
    const speaker = await open(a, { rich: true });
    for (let n = 0; n < 150; n += 1) speaker.send(message(a, b, { msgId: n, content: 'x'.repeat(100) }));
    await speaker.next(({ seq }) => seq === 150);
    const more = await open(a, { rich: true, client: 'phone' });
    for (let n = 0; n < 150; n += 1) more.send(message(a, b, { msgId: `p${n}` }));
    await more.next(({ seq }) => seq === 300);
    const device = await open(b, { rich: true });
    await device.next(({ seq }) => seq === 300);
    expect(seqs(device.frames)).toEqual(Array.from({ length: 300 }, (_, index) => index + 1));
  });
});

describe('sent once', () => {
  it('answers a retry with the first one’s id and seq, however it spells its ids, also much later', async () => {
    const [a, b] = [someone(), someone()];
    const [from, to] = [await open(a, { rich: true }), await open(b, { rich: true })];
    const results: Frame[] = [];
    for (const msg of [
      { msgId: 1, timestamp: '1611065986', content: 'x' },
      { msgId: '1', timestamp: 1611065986, content: 'x' },
      { content: 'x', timestamp: '1611065986', msgId: 1 },
    ]) {
      from.send(message(a, b, msg));
      results.push(await from.next(isSent));
    }
    await from.close();
    const again = await open(a, { rich: true });
    again.send(message(a, b, { msgId: 1, timestamp: 1611065986, content: 'x' }));
    results.push(await again.next(isSent));
    expect(new Set(results.map(({ id, seq }) => `${id as string} ${seq as number}`)).size).toBe(1);
    again.send(message(a, b, { msgId: 2, timestamp: 1611065986, content: 'end' }));
    await to.next(({ seq }) => seq === 2);
    expect(seqs(to.frames)).toEqual([1, 2]);
  });

  it('takes the same msgId at another time, or none at all, for new messages', async () => {
    const [a, b] = [someone(), someone()];
    const [from, to] = [await open(a), await open(b, { rich: true })];
    for (const msg of [
      { msgId: 1, timestamp: 1 },
      { msgId: 1, timestamp: 2 },
      { msgId: 1 },
      {},
      {},
      { timestamp: 1 },
    ]) {
      from.send(message(a, b, msg));
    }
    await to.next(({ seq }) => seq === 6);
    expect(seqs(to.frames)).toEqual([1, 2, 3, 4, 5, 6]);
  });

  it('keeps senders and conversations apart', async () => {
    const [a, b, c] = [someone(), someone(), someone()];
    const [one, two] = [await open(a, { rich: true }), await open(b, { rich: true })];
    one.send(message(a, b, { msgId: 1, timestamp: 1 }));
    const first = await one.next(isSent);
    two.send(message(b, a, { msgId: 1, timestamp: 1 }));
    expect((await two.next(isSent)).seq).toBe((first.seq as number) + 1);
    one.send(message(a, c, { msgId: 1, timestamp: 1 }));
    const other = await one.next(isSent);
    expect(other.conversationId).not.toBe(first.conversationId);
    expect(other.seq).toBe(1);
  });
});

it('the rival’s users of the same names get nothing of it, then or later', async () => {
  const [a, b] = [someone(), someone()];
  await stored(a, b, 3);
  const device = await open(b, { tenant: rival, rich: true });
  expect(device.frames[0]).toMatchObject({ type: 'ready', conversations: [] });
  expect((await device.settled()).filter(isSingle)).toEqual([]);
});
