import { bootApp, type TestApp } from '../support/app';
import { Hooked, type Frame } from '../support/im-rest';

const EVENTS = ['message.created', 'user.online', 'user.offline', 'group.changed'];

let app: TestApp;
let rival: Hooked;

beforeAll(async () => {
  app = await bootApp();
  rival = await acme(EVENTS);
});
afterAll(async () => {
  // The rival asked for everything, and all of it happened to others.
  expect(rival.receiver.received).toEqual([]);
  await app.close();
});

const acme = (events: string[]) => Hooked.make(app, events);

describe('a webhook', () => {
  it('shows its secret once, and keeps it sealed', async () => {
    const to = await acme(EVENTS);
    const { im, hook } = to;
    const { secret, id, ...shown } = hook;
    expect(secret).toMatch(/^whsec_\S{40,}$/);
    expect((await im.get(`/webhooks/${id}`)).body).toEqual({ id, ...shown });
    expect((await im.get('/webhooks')).body).toEqual({ data: [{ id, ...shown }] });
    expect((await im.patch(`/webhooks/${id}`, { events: ['user.online'] })).text).not.toContain('whsec_');
    const rows = await to.sql('select to_jsonb(w)::text as row from webhooks w');
    expect(JSON.stringify(rows)).not.toContain(secret.replace('whsec_', ''));
  });

  it('is seen by nobody else', async () => {
    const { im, hook } = await acme(EVENTS);
    const path = `/webhooks/${hook.id}`;
    const foreign = [
      await rival.im.get(path),
      await rival.im.patch(path, { url: rival.receiver.url }),
      await rival.im.delete(path),
    ];
    expect(foreign.map(({ status }) => status)).toEqual([404, 404, 404]);
    expect((await rival.im.get('/webhooks')).text).not.toContain(hook.id);
    expect((await im.get(path)).status).toBe(200);
  });

  it('that is switched off is told of nothing: what had been waiting fails with each attempt, uncalled', async () => {
    const to = await acme(['message.created']);
    const { im, path, receiver } = to;
    receiver.answer = () => 500;
    await im.say('ann', 'bob', 'before');
    await to.all(({ last_error }) => last_error !== null);
    receiver.answer = () => 200;
    expect((await im.patch(path, { enabled: false })).body).toMatchObject({ enabled: false });
    await im.say('ann', 'bob', 'meanwhile');
    await to.dueNow(1);
    const [row] = await to.all(({ attempts }) => attempts === 2);
    expect(row).toMatchObject({ last_error: 'the webhook is switched off', dead: false });
    expect(row!.wait).toBeGreaterThan(5);
    expect([receiver.received.length, (await to.outbox()).length]).toEqual([1, 1]);
    await im.patch(path, { enabled: true });
    await to.dueNow(2);
    await im.say('ann', 'bob', 'after');
    await to.delivered();
    const told = receiver.data('message.created').map(({ frame }) => (frame as Frame).msg.content as string);
    expect(told.sort()).toEqual(['after', 'before', 'before']);
  });

  it('that stays switched off leaves dead letters, which come when they are asked for', async () => {
    const to = await acme(['message.created']);
    const { im, path, receiver } = to;
    receiver.answer = () => 500;
    await im.say('ann', 'bob', 'waiting');
    await to.all(({ last_error }) => last_error !== null);
    await im.patch(path, { enabled: false });
    await to.dueNow(11);
    await to.all(({ dead }) => dead);
    expect((await im.get(`${path}/dead-letters`)).body.data).toMatchObject([
      { attempts: 12, lastError: 'the webhook is switched off' },
    ]);
    receiver.answer = () => 200;
    await im.patch(path, { enabled: true });
    await im.post(`${path}/dead-letters/retry`);
    await to.delivered();
    expect(receiver.received).toHaveLength(2);
  });

  it('that is deleted takes what was waiting with it', async () => {
    const to = await acme(['message.created']);
    to.receiver.answer = () => 500;
    await to.im.say('ann', 'bob', 'waiting');
    await to.all(({ last_error }) => last_error !== null);
    expect((await to.im.delete(to.path)).status).toBe(204);
    await to.im.say('ann', 'bob', 'too late');
    expect(await to.outbox()).toEqual([]);
    expect((await to.im.get('/webhooks')).body).toEqual({ data: [] });
  });

  it.each([
    ['url', { url: 'ftp://example.com/' }],
    ['url', { url: 'no url' }],
    ['url', { url: undefined }],
    ['url', { url: null }],
    ['events', { events: undefined }],
    ['events', { events: [] }],
    ['events', { events: ['everything'] }],
    ['enabled', { enabled: 'no' }],
  ])('is refused by name when its %s is wrong: %j', async (field, wrong) => {
    const good = { url: 'http://127.0.0.1:9/', events: ['user.online'] };
    const { status, body } = await rival.im.post('/webhooks', { ...good, ...wrong });
    expect([status, body.error]).toEqual([400, expect.stringMatching(new RegExp(`^${field}\\b`))]);
  });
});

describe('an address inside our own network', () => {
  const PRIVATE = [
    '10.0.0.1',
    '192.168.1.1',
    '169.254.169.254',
    '0.0.0.0',
    '[fc00::1]',
    '[fe80::1]',
    '[::ffff:10.0.0.1]',
  ];
  const LOOPBACK = ['127.0.0.1', '127.1.2.3', '[::1]', 'localhost'];
  const refusals = async ({ im, path }: Hooked, hosts: string[]): Promise<unknown[]> => {
    const answers: unknown[] = [];
    for (const host of hosts) {
      const url = `http://${host}:9/`;
      const made = await im.post('/webhooks', { url, events: ['user.online'] });
      const changed = await im.patch(path, { url });
      answers.push([host, made.status, changed.status]);
    }
    return answers;
  };

  it('can not be a webhook', async () => {
    expect(await refusals(await acme(['user.online']), PRIVATE)).toEqual(
      PRIVATE.map((host) => [host, 400, 400]),
    );
  });

  it('is not called either when a name leads there by then; where refused, this machine is one, too', async () => {
    const strict = await bootApp({ PRIVATE_WEBHOOK_ADDRESSES: 'refuse' });
    try {
      const to = await Hooked.make(strict, ['message.created'], 'http://8.8.8.8/');
      const { im, hook, receiver } = to;
      const all = [...PRIVATE, ...LOOPBACK];
      expect(await refusals(to, all)).toEqual(all.map((host) => [host, 400, 400]));
      for (const host of ['localhost', '127.0.0.1']) {
        await to.sql(
          'update webhooks set url = $2 where id = $1',
          hook.id,
          `http://${host}:${receiver.port}/`,
        );
        await im.say('ann', 'bob', host);
        await to.all(({ last_error }) => last_error?.includes('private address') ?? false);
        await to.sql('delete from webhook_deliveries');
      }
      expect(receiver.received).toEqual([]);
    } finally {
      await strict.close();
    }
  });
});
