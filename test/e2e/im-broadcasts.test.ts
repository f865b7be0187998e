import { ask, bootApp, eventually, type Answer, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import { Im, type Frame } from '../support/im-rest';

let app: TestApp;
let acme: TestTenant;
let im: Im;
let rival: Im;

beforeAll(async () => {
  app = await bootApp({ IM_BROADCAST_RECIPIENTS: '250', IM_BROADCASTS_PER_TENANT: '2' });
  const tenants = await Promise.all([app.tenant(), app.tenant()]);
  acme = tenants[0];
  [im, rival] = tenants.map(({ apiKey }) => new Im(app.url, apiKey)) as [Im, Im];
});
afterAll(() => app.close());

const contents = (frames: Frame[]): unknown[] => frames.map(({ msg }) => (msg as Frame).content);
const users = (prefix: string, count: number): string[] =>
  Array.from({ length: count }, (_, index) => `${prefix}${String(index).padStart(3, '0')}`);
const text = (msgId: string, content = msgId) => ({ msgId, content });

function keyed(body: object, key: string): Promise<Answer> {
  const headers = { 'x-api-key': acme.apiKey, 'idempotency-key': key };
  return ask(app.url, 'POST', '/api/v1/im/broadcasts', body, headers);
}

async function accept(body: object, server = im): Promise<Frame> {
  const answer = await server.post('/broadcasts', body);
  if (answer.status !== 202) throw new Error(`${answer.status} ${answer.text}`);
  expect(answer.headers.location).toBe(`/api/v1/im/broadcasts/${answer.body.id}`);
  return answer.body as Frame;
}

function ended(id: unknown, server = im): Promise<Frame> {
  return eventually(async () => {
    const { body } = await server.get(`/broadcasts/${String(id)}`);
    return body.status !== 'running' && (body as Frame);
  });
}

const send = async (body: object, server = im): Promise<Frame> =>
  ended((await accept(body, server)).id, server);

/** An older broadcast of the tenant that is not moved on: those after it wait. */
async function holdUp(work: () => Promise<void>): Promise<void> {
  await query(
    app.databaseUrl,
    `insert into broadcasts (id, tenant_id, sender, request_key, request_hash, frame, everybody, incarnation)
     values (1, $1, 'x', 'x', 'x', '{}', true, (select incarnation from nodes limit 1))`,
    [acme.id],
  );
  try {
    await work();
  } finally {
    await query(app.databaseUrl, 'delete from broadcasts where id = 1');
  }
}

async function failuresOf(id: unknown): Promise<Frame[]> {
  return (await im.get(`/broadcasts/${String(id)}/failures`)).body.data as Frame[];
}

/** How many messages of `source` a user has. */
async function copies(user: string, source = 'system'): Promise<number> {
  const { body } = await im.get(`/conversations?userId=${user}`);
  const found = (body.data as Frame[]).find(({ target }) => target === source);
  return (found?.lastSeq as number | undefined) ?? 0;
}

describe('a broadcast', () => {
  it('is accepted at once, reaches the users it names, and says how far it is', async () => {
    const devices = await Promise.all(['b1', 'b2'].map((user) => im.connect(user)));
    const accepted = await accept({ users: ['b1', 'b2', 'never-seen'], msg: text('news') });
    expect(accepted).toEqual({
      id: expect.stringMatching(/^\d+$/) as string,
      status: 'running',
      source: 'system',
      msgId: 'news',
      everybody: false,
      recipients: 3,
      stored: 0,
      repeated: 0,
      failed: 0,
      createdAt: expect.any(Number) as number,
      endedAt: null,
    });
    expect(await ended(accepted.id)).toEqual({
      ...accepted,
      status: 'finished',
      stored: 3,
      endedAt: expect.any(Number) as number,
    });
    for (const device of devices) {
      await device.next({ type: 'single' });
      expect(contents(device.of('single'))).toEqual(['news']);
    }
    const late = await im.connect('never-seen');
    expect(await late.next({ type: 'single' })).toMatchObject({ source: 'system', seq: 1 });
  });

  it('reaches a user who is named twice once, and keeps the JSON types', async () => {
    const { recipients } = await send({ source: 7, users: [81, '81', 81.0], msg: { content: 'no msgId' } });
    expect(recipients).toBe(1);
    const device = await im.connect(81);
    await im.say('end', 81, 'end');
    await device.next({ source: 'end' });
    expect(device.of('single')).toMatchObject([{ source: 7, target: 81 }, { source: 'end' }]);
  });

  it('to more than a page of users reaches all of them', async () => {
    const named = users('page-', 230);
    expect(await send({ users: named, msg: text('pages') })).toMatchObject({
      status: 'finished',
      recipients: 230,
      stored: 230,
      failed: 0,
    });
    expect(
      await Promise.all(['page-000', 'page-099', 'page-100', 'page-229'].map((user) => copies(user))),
    ).toEqual([1, 1, 1, 1]);
  });

  it('is told to webhooks like any message', async () => {
    const rows = () =>
      query<{ n: string }>(
        app.databaseUrl,
        `select count(*) as n from webhook_deliveries where event = 'message.created' and payload like '%hooked%'`,
      );
    const hook = await im.post('/webhooks', { url: 'http://127.0.0.1:9/', events: ['message.created'] });
    await send({ users: users('hooked-', 3), msg: text('hooked') });
    expect(await rows()).toEqual([{ n: '3' }]);
    await im.delete(`/webhooks/${hook.body.id}`);
  });
});

describe('to whom', () => {
  it('reaches everybody who ever connected only where that is said, and nobody of another tenant', async () => {
    const third = new Im(app.url, (await app.tenant()).apiKey);
    const [here, gone, foreign] = await Promise.all([
      third.connect('here'),
      third.connect('gone'),
      rival.connect('here'),
    ]);
    await gone.close();
    await third.say('x', 'only-written-to', 'x');
    const everybody = { source: 'ceo', everybody: true, msg: text('all') };
    expect(await accept(everybody, third)).toMatchObject({ everybody: true, recipients: null });
    const { id } = await accept(everybody, third);
    expect(await ended(id, third)).toMatchObject({ recipients: 2, stored: 2 });
    await here.next({ type: 'single', source: 'ceo' });
    await (await third.connect('gone')).next({ type: 'single', source: 'ceo' });
    await rival.say('end', 'here', 'end');
    await foreign.next({ source: 'end' });
    expect(foreign.of('single')).toHaveLength(1);
  });

  it.each<[string, string, object]>([
    ['no users', 'users', {}],
    ['null', 'users', { users: null }],
    ['an empty list', 'users', { users: [] }],
    ['a word', 'users', { users: 'all' }],
    ['null beside everybody', 'users', { users: null, everybody: true }],
    ['users beside everybody', 'everybody', { users: ['a'], everybody: true }],
    ['not everybody', 'everybody', { everybody: false }],
    ['null for everybody', 'everybody', { everybody: null }],
    ['a wrong id', 'users', { users: ['a', {}] }],
    ['a fraction', 'users', { users: ['a', 5.5] }],
    ['one user too many', 'users', { users: users('many-', 251) }],
    ['no msg', 'msg', { users: ['a'], msg: undefined }],
    ['a time far ahead', 'msg.timestamp', { users: ['a'], msg: { timestamp: Date.now() + 40 * 86_400_000 } }],
  ])('refuses %s', async (_, field, body) => {
    const answer = await im.post('/broadcasts', { msg: { content: 'x' }, ...body });
    expect(answer).toMatchObject({ status: 400, body: { code: 'BAD_INPUT' } });
    expect(answer.body.error).toMatch(new RegExp(`(^|; )${field}\\b`));
  });

  it('is refused for the root key that names no tenant', async () => {
    const body = { users: ['a'], msg: { content: 'x' } };
    const headers = { 'x-api-key': app.rootKey };
    expect((await ask(app.url, 'POST', '/api/v1/im/broadcasts', body, headers)).status).toBe(400);
  });
});

describe('the same again', () => {
  it('is the same job, by its msgId', async () => {
    const body = { users: ['again-1', 'again-2'], msg: text('again') };
    const first = await send(body);
    expect(await accept(body)).toEqual(first);
    expect(await copies('again-1')).toBe(1);
  });

  it('to more users is another job, and reaches only those it had not reached', async () => {
    const body = { users: ['wide-1', 'wide-2'], msg: text('wider') };
    await send(body);
    const wider = await send({ ...body, users: ['wide-1', 'wide-2', 'wide-3'] });
    expect(wider).toMatchObject({ recipients: 3, stored: 1, repeated: 2, failed: 0 });
    expect(await copies('wide-1')).toBe(1);
  });

  it('without a msgId is the same job by its Idempotency-Key alone', async () => {
    const body = { users: ['key-1'], msg: { content: 'keyed' } };
    const [first, again] = [await keyed(body, 'k-1'), await keyed(body, 'k-1')];
    expect([first.status, again.status]).toEqual([202, 202]);
    expect(again.body.id).toBe(first.body.id);
    expect(await keyed({ ...body, msg: { content: 'other' } }, 'k-1')).toMatchObject({
      status: 422,
      body: { code: 'IDEMPOTENCY_MISMATCH' },
    });
    await ended(first.body.id);
    const anew = await send(body);
    expect(anew.id).not.toBe(first.body.id);
    expect(await copies('key-1')).toBe(2);
  });

  it('at the same moment is one job', async () => {
    const body = { users: users('once-', 30), msg: text('once') };
    const answers = await Promise.all(Array.from({ length: 4 }, () => im.post('/broadcasts', body)));
    expect(new Set(answers.map(({ body: { id } }) => id as string)).size).toBe(1);
    expect(await ended(answers[0]!.body.id)).toMatchObject({ stored: 30, repeated: 0 });
  });
});

describe('whom it can not reach', () => {
  it('is listed with the reason, and all others are reached', async () => {
    await im.post('/messages', { type: 'single', target: 'c-2', msg: text('clash', 'something else') });
    const named = ['c-1', 'c-2', 'agent:nobody', 'c-3', '123456789012345678'];
    const done = await send({ users: named, msg: text('clash') });
    expect(done).toMatchObject({ status: 'finished', recipients: 5, stored: 3, repeated: 0, failed: 2 });
    expect(await failuresOf(done.id)).toEqual([
      { userId: 'agent:nobody', code: 4004, reason: expect.stringMatching(/assistant/) as string },
      { userId: 'c-2', code: 4006, reason: expect.stringMatching(/msgId/) as string },
    ]);
    expect(await Promise.all(['c-1', 'c-3'].map((user) => copies(user)))).toEqual([1, 1]);
  });

  it('is listed page by page', async () => {
    const named = users('clash-', 5);
    await send({ users: named, msg: text('five', 'first') });
    const { id } = await send({ users: named, msg: text('five', 'second') });
    const first = await im.get(`/broadcasts/${String(id)}/failures?limit=3`);
    expect(first.body.data.map(({ userId }: Frame) => userId as string)).toEqual(named.slice(0, 3));
    const rest = await im.get(`/broadcasts/${String(id)}/failures?limit=3&cursor=${first.body.nextCursor}`);
    expect(rest.body).toMatchObject({ data: [{ userId: named[3] }, { userId: named[4] }], nextCursor: null });
  });
});

describe('while it waits', () => {
  it('is cancelled: nobody gets it, and nothing is left of what it said', async () => {
    await holdUp(async () => {
      const { id } = await accept({ users: ['spared'], msg: text('cancelled') });
      const cancelled = await im.delete(`/broadcasts/${String(id)}`);
      expect(cancelled).toMatchObject({ status: 200, body: { id, status: 'cancelled', stored: 0 } });
      expect((await im.delete(`/broadcasts/${String(id)}`)).body).toEqual(cancelled.body);
      expect(await query(app.databaseUrl, 'select frame from broadcasts where id = $1', [id])).toEqual([
        { frame: null },
      ]);
    });
    const { id } = await send({ users: ['spared'], msg: text('after it') });
    expect(await copies('spared')).toBe(1);
    expect(await im.delete(`/broadcasts/${String(id)}`)).toMatchObject({
      status: 409,
      body: { code: 'CONFLICT' },
    });
  });

  it('counts among those under way: one too many is 429, the same again is not', async () => {
    const body = { users: ['q'], msg: text('queued') };
    let id: unknown;
    await holdUp(async () => {
      ({ id } = await accept(body));
      const more = await im.post('/broadcasts', { users: ['q'], msg: text('one too many') });
      expect(more).toMatchObject({ status: 429, body: { code: 'RATE_LIMITED' } });
      expect(Number(more.headers['retry-after'])).toBeGreaterThan(0);
      expect((await accept(body)).id).toBe(id);
      // The rival has its own.
      expect((await rival.post('/broadcasts', body)).status).toBe(202);
    });
    await ended(id);
  });

  it('is gone on with when its process dies, and reaches nobody twice', async () => {
    const named = users('taken-', 130);
    const msg = text('taken over');
    let id: unknown;
    await holdUp(async () => {
      ({ id } = await accept({ users: named, msg }));
      // What a process that died had sent without noting it.
      for (const target of named.slice(0, 30)) await im.post('/messages', { type: 'single', target, msg });
      await query(app.databaseUrl, 'update broadcasts set incarnation = 12345 where id = $1', [id]);
    });
    expect(await ended(id)).toMatchObject({ stored: 130, repeated: 0, failed: 0 });
    expect(await Promise.all(['taken-000', 'taken-029', 'taken-129'].map((user) => copies(user)))).toEqual([
      1, 1, 1,
    ]);
  });

  it('waits while its tenant is suspended', async () => {
    const active = (status: string) =>
      ask(app.url, 'PATCH', `/api/admin/tenants/${acme.id}`, { status }, { 'x-api-key': app.rootKey });
    let id: unknown;
    await holdUp(async () => {
      ({ id } = await accept({ users: ['patient'], msg: text('suspended') }));
      await active('suspended');
    });
    const row = () => query(app.databaseUrl, 'select status from broadcasts where id = $1', [id]);
    // Another tenant's, accepted later, is done meanwhile.
    await send({ users: ['somebody'], msg: text('meanwhile') }, rival);
    expect(await row()).toEqual([{ status: 'running' }]);
    await active('active');
    await eventually(async () => (await im.get('/broadcasts')).status === 200);
    expect(await ended(id)).toMatchObject({ status: 'finished', stored: 1 });
  });
});

describe('broadcasts', () => {
  it('are listed from the newest, page by page', async () => {
    const made: unknown[] = [];
    for (const name of ['one', 'two', 'three'])
      made.unshift((await send({ users: ['l'], msg: text(`list ${name}`) })).id);
    const first = await im.get('/broadcasts?limit=2');
    expect(first.body.data.map(({ id }: Frame) => id as string)).toEqual(made.slice(0, 2));
    const next = await im.get(`/broadcasts?limit=2&cursor=${first.body.nextCursor}`);
    expect(next.body.data[0].id).toBe(made[2]);
    expect((await im.get('/broadcasts?cursor=x')).status).toBe(400);
  });

  it("are the tenant's own", async () => {
    const { id } = await send({ users: ['private'], msg: text('private') });
    for (const path of [`/broadcasts/${String(id)}`, `/broadcasts/${String(id)}/failures`])
      expect((await rival.get(path)).status).toBe(404);
    expect((await rival.delete(`/broadcasts/${String(id)}`)).status).toBe(404);
    const { body } = await rival.get('/broadcasts?limit=200');
    expect((body.data as Frame[]).map(({ id: other }) => other as string)).not.toContain(id);
    for (const unknown of ['12345', 'x']) expect((await im.get(`/broadcasts/${unknown}`)).status).toBe(404);
  });

  it('of a user who is erased go: in their name, to them, and what is known of them', async () => {
    await im.post('/messages', { type: 'single', target: 'erased', msg: text('er', 'other') });
    const failed = await send({ users: ['erased', 'kept'], msg: text('er') });
    const own = await send({ source: 'erased', users: ['kept'], msg: text('own') });
    let waiting: unknown;
    await holdUp(async () => {
      ({ id: waiting } = await accept({ users: ['erased', 'kept'], msg: text('later') }));
      const erased = await ask(app.url, 'DELETE', '/api/admin/users/erased', undefined, {
        'x-api-key': acme.apiKey,
      });
      expect(erased.status).toBeLessThan(300);
    });
    expect(await failuresOf(failed.id)).toEqual([]);
    expect((await im.get(`/broadcasts/${String(own.id)}`)).status).toBe(404);
    expect(await ended(waiting)).toMatchObject({ recipients: 1, stored: 1 });
  });
});
