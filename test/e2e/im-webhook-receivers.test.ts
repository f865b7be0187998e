import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { bootApp, eventually, type TestApp } from '../support/app';
import { Hooked, Receiver, type Frame } from '../support/im-rest';
import { gate } from '../support/upstream';

const EVENTS = ['message.created'];
const ATTEMPTS = 12;

let app: TestApp;
let rival: Hooked;

beforeAll(async () => {
  app = await bootApp({
    WEBHOOK_ATTEMPTS: String(ATTEMPTS),
    WEBHOOK_ATTEMPTS_PER_TENANT: '6',
    WEBHOOK_ATTEMPTS_PER_ORIGIN: '4',
    WEBHOOK_ATTEMPTS_PER_WEBHOOK: '2',
    WEBHOOK_PAUSE_FAILURES: '3',
  });
  rival = await acme();
});
afterAll(async () => {
  // Whatever became of the others' receivers, this one took what was sent to it and is none the worse.
  await rival.im.say('ann', 'bob', 'last');
  await rival.delivered();
  expect(await receiverOf(rival)).toEqual({
    failures: 0,
    pausedUntil: null,
    lastError: null,
    lastFailureAt: null,
  });
  await app.close();
});

const acme = (url?: string) => Hooked.make(app, EVENTS, url);
const receiverOf = async ({ im, path }: Hooked) => (await im.get(path)).body.receiver as Frame;
const texts = ({ received }: Receiver): string[] =>
  received.map(({ body }) => ((body.data as Frame).frame as Frame).msg.content as string);
const pauseOver = (to: Hooked) =>
  to.sql('update webhooks set paused_until = now() where id = $1', to.hook.id);

/** Fails three times: paused, with three deliveries put off. */
async function paused(): Promise<Hooked> {
  const to = await acme();
  to.receiver.answer = () => 503;
  for (const text of ['one', 'two', 'three']) await to.im.say('ann', 'bob', text);
  await to.all(({ last_error }) => last_error !== null);
  return to;
}

describe('receivers that hang', () => {
  it('of three tenants, more than there are attempts for, keep nothing from a fourth one', async () => {
    const { opened, open } = gate();
    const hanging = await Promise.all([acme(), acme(), acme()]);
    const receivers = hanging.map(({ receiver }) => receiver);
    for (const to of hanging) {
      for (let n = 1; n < 20; n += 1) {
        const receiver = await Receiver.start();
        receivers.push(receiver);
        await to.im.post('/webhooks', { url: receiver.url, events: EVENTS });
      }
    }
    for (const receiver of receivers) receiver.answer = () => opened.then(() => 200);
    const began = () => receivers.reduce((sum, { received }) => sum + received.length, 0);
    try {
      await Promise.all(hanging.map(({ im }) => im.say('ann', 'bob', 'hang')));
      // Each tenant has as many as it may have beside the others.
      await eventually(async () => began() >= ATTEMPTS - 3);
      const quiet = await acme();
      for (let n = 1; n <= 5; n += 1) {
        await quiet.im.say('ann', 'bob', `m${n}`);
        await quiet.receiver.has(n);
      }
      expect(began()).toBeLessThan(ATTEMPTS);
    } finally {
      open();
    }
    await Promise.all(hanging.map((to) => eventually(async () => (await waitingOf(to)) === 0)));
    expect(began()).toBe(60);
  });

  it('hold no more than their share of a webhook, and those of one origin their share of it', async () => {
    const { opened, open } = gate();
    const to = await acme();
    to.receiver.answer = () => opened.then(() => 200);
    const inFlight = () => to.receiver.received.length;
    try {
      for (const text of ['a', 'b', 'c', 'd']) await to.im.say('ann', 'bob', text);
      await to.receiver.has(2);
      // Three more of the same origin: each might have two, together with the first they have four.
      for (let n = 0; n < 3; n += 1) await to.im.post('/webhooks', { url: to.receiver.url, events: EVENTS });
      await to.im.say('ann', 'bob', 'e');
      await to.receiver.has(4);
      // What came later has gone out to another one: a look has been taken at all of them.
      await rival.im.say('ann', 'bob', 'x');
      await rival.delivered();
      expect(inFlight()).toBe(4);
    } finally {
      open();
    }
    await eventually(async () => (await waitingOf(to)) === 0);
    expect(inFlight()).toBe(8);
  });
});

describe('a receiver that fails several times in a row', () => {
  it('is paused: what waits for it costs no attempt, and its webhook says so', async () => {
    const to = await paused();
    await to.im.say('ann', 'bob', 'four');
    await to.dueNow(1);
    await rival.im.say('ann', 'bob', 'x');
    await rival.delivered();
    expect((await to.outbox()).map(({ attempts }) => attempts)).toEqual([1, 1, 1, 1]);
    expect(to.receiver.received).toHaveLength(3);
    const { pausedUntil, lastFailureAt, ...rest } = await receiverOf(to);
    expect(rest).toEqual({ failures: 3, lastError: 'answered 503' });
    expect(Date.parse(pausedUntil as string)).toBeGreaterThan(Date.parse(lastFailureAt as string));
    expect((await rival.im.get(to.path)).status).toBe(404);
  });

  it('is tried with one delivery when the pause is over, and paused for twice as long if that fails', async () => {
    const to = await paused();
    await to.dueNow(1);
    await pauseOver(to);
    await to.receiver.has(4);
    await eventually(async () => (await receiverOf(to)).failures === 4);
    const [row] = await to.sql<{ pauses: number; seconds: number }>(
      `select pauses, extract(epoch from paused_until - last_failure_at)::float8 as seconds
       from webhooks where id = $1`,
      to.hook.id,
    );
    expect(row).toEqual({ pauses: 2, seconds: 20 });
    expect((await to.outbox()).map(({ attempts }) => attempts)).toEqual([2, 1, 1]);
    expect(texts(to.receiver)).toEqual([...texts(to.receiver).slice(0, 3), 'one']);
  });

  it('gets all that waits, the oldest first, when it takes the one', async () => {
    const to = await paused();
    for (let n = 4; n <= 9; n += 1) await to.im.say('ann', 'bob', `m${n}`);
    const { opened, open } = gate();
    to.receiver.answer = () => opened.then(() => 200);
    await to.dueNow(1);
    await pauseOver(to);
    await to.receiver.has(4);
    expect(texts(to.receiver)[3]).toBe('one');
    open();
    await to.delivered();
    // Two at a time: the neighbours may change places on their way.
    const order = texts(to.receiver)
      .slice(4)
      .map((text) => ['two', 'three', 'm4', 'm5', 'm6', 'm7', 'm8', 'm9'].indexOf(text));
    order.forEach((place, index) => expect(Math.abs(place - index)).toBeLessThanOrEqual(1));
    expect(await receiverOf(to)).toMatchObject({ failures: 0, pausedUntil: null, lastError: 'answered 503' });
  });

  it('is tried at once at a new address', async () => {
    const to = await paused();
    const moved = await Receiver.start();
    await to.im.patch(to.path, { url: moved.url });
    await to.dueNow(1);
    await moved.has(3);
    await to.delivered();
    expect((await receiverOf(to)).failures).toBe(0);
  });

  it("pauses nobody else's deliveries to the same place", async () => {
    const to = await paused();
    const other = await acme(to.receiver.url);
    to.receiver.answer = ({ body }) => (body.id === 'none' ? 503 : 200);
    await other.im.say('ann', 'bob', 'theirs');
    await other.delivered();
    expect(texts(to.receiver).at(-1)).toBe('theirs');
    expect((await receiverOf(to)).failures).toBe(3);
  });

  it('leaves a dead letter of what has been due for too long, without a call', async () => {
    const to = await paused();
    await to.sql(
      `update webhook_deliveries set next_at = now() - interval '25 hours' where webhook_id = $1`,
      to.hook.id,
    );
    await to.all(({ dead }) => dead);
    expect((await to.outbox()).map(({ last_error }) => last_error)).toEqual(
      Array(3).fill('it waited for 24 hours: answered 503'),
    );
    expect(to.receiver.received).toHaveLength(3);
  });
});

describe('an answer', () => {
  it.each([
    ['longer than it is read', (write: (text: string) => void) => write('x'.repeat(1_000_000))],
    ['that never ends', (write: (text: string) => void) => write('x')],
  ])('%s is taken by its status', async (_, say) => {
    let calls = 0;
    const server = createServer((request, response) => {
      request.resume();
      calls += 1;
      response.writeHead(200);
      say((text) => void response.write(text));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const to = await acme(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
    await to.im.say('ann', 'bob', 'taken');
    await to.delivered();
    expect([calls, (await receiverOf(to)).failures]).toEqual([1, 0]);
    server.closeAllConnections();
    server.close();
  });
});

/** Of all the tenant's webhooks. */
async function waitingOf(to: Hooked): Promise<number> {
  return (await to.sql('select 1 from webhook_deliveries where tenant_id = $1', to.tenant.id)).length;
}
