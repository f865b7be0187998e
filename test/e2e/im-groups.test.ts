import {
  ask,
  bootApp,
  eventually,
  ROOT_KEY,
  type Answer,
  type TestApp,
  type TestTenant,
} from '../support/app';
import { Im, type Device, type Frame } from '../support/im-rest';

let app: TestApp;
let acme: TestTenant;
let im: Im;
let rival: Im;
let groups = 0;

beforeAll(async () => {
  app = await bootApp();
  const tenants = await Promise.all([app.tenant(), app.tenant()]);
  acme = tenants[0];
  [im, rival] = tenants.map(({ apiKey }) => new Im(app.url, apiKey)) as [Im, Im];
});
afterAll(() => app.close());

/** A group of the test's own; the rival has one of the same id, with the same users. */
async function group(input: object = {}): Promise<{ groupId: string; path: string; id: string }> {
  groups += 1;
  const groupId = `g${groups}`;
  await rival.post('/groups', { groupId, owner: 'ann', members: ['ben', 'cat'] });
  const made = await im.post('/groups', { groupId, owner: 'ann', members: ['ben', 'cat'], ...input });
  if (made.status !== 201) throw new Error(made.text);
  return { groupId, path: `/groups/${groupId}`, id: made.body.conversationId as string };
}

const says = (target: string, content: string): Frame => ({ type: 'group', target, msg: { content } });

/** Resolves when the device has everything that was sent to it until now: a frame behind it all has arrived. */
async function caughtUp(device: Device, of = im): Promise<void> {
  const content = `end ${(groups += 1)}`;
  await of.say('end', device.user, content);
  while (((await device.next({ source: 'end' })).msg as Frame).content !== content);
}

const roles = async (path: string, of = im): Promise<string[]> =>
  ((await of.get(`${path}/members`)).body.data as Frame[]).map(({ userId, role }) => `${userId} ${role}`);

describe('a group', () => {
  it('is made with its owner and members, who find it in their conversations', async () => {
    const input = { groupId: 'made', name: 'Crew', attributes: { color: 'red' }, maxMembers: 9 };
    const made = await im.post('/groups', { ...input, owner: 1, members: ['1', 'ben', 2] });
    const record = {
      ...input,
      conversationId: expect.stringMatching(/^\d+$/) as string,
      muted: false,
      memberCount: 3,
      lastSeq: 3,
      createdAt: expect.any(Number) as number,
    };
    expect(made).toMatchObject({ status: 201, body: record });
    expect((await im.get('/groups/made')).body).toEqual(record);
    expect(await roles('/groups/made')).toEqual(['1 owner', '2 member', 'ben member']);
    const ben = await im.connect('ben');
    await im.post('/messages', says('made', 'welcome'));
    expect(await ben.next({ type: 'group' })).toMatchObject({ target: 'made', seq: 4 });
    expect((await im.get('/conversations?userId=2')).body).toMatchObject({
      data: [{ kind: 'group', target: 'made' }],
    });
  });

  it('is 409 when its id is taken, 400 when a field is wrong, 404 for who does not have it', async () => {
    const { groupId, path } = await group();
    expect(await im.post('/groups', { groupId })).toMatchObject({ status: 409, body: { code: 'CONFLICT' } });
    for (const [field, wrong] of [
      ['groupId', { groupId: '' }],
      ['groupId', { groupId: 'a\u0000' }],
      ['owner', { owner: 'system' }],
      ['members', { members: ['agent:main'] }],
      ['maxMembers', { maxMembers: 0 }],
      ['name', { name: 7 }],
      ['attributes', { attributes: [] }],
      ['muted', { muted: 'yes' }],
    ] as const) {
      const answer = await im.post('/groups', { groupId: 'wrong', ...wrong });
      expect([field, answer.status, answer.body.error]).toEqual([
        field,
        400,
        expect.stringMatching(new RegExp(`^${field}\\b`)),
      ]);
    }
    await im.post('/groups', { groupId: 'mine-alone', owner: 'ann' });
    for (const answer of [
      await rival.get('/groups/mine-alone'),
      await rival.patch('/groups/mine-alone', { name: 'x' }),
      await rival.delete('/groups/mine-alone'),
      await rival.get('/groups/mine-alone/members'),
      await rival.post('/groups/mine-alone/members', { users: ['eve'] }),
      await rival.patch('/groups/mine-alone/members/ann', { role: 'admin' }),
      await rival.delete('/groups/mine-alone/members/ann'),
      await im.delete(`${path}/members/nobody`),
      await im.patch(`${path}/members/nobody`, { role: 'admin' }),
    ])
      expect(answer).toMatchObject({ status: 404, body: { code: 'NOT_FOUND' } });
    expect(await roles('/groups/mine-alone')).toEqual(['ann owner']);
  });

  it('of an id with a line break is refused: that is how deleted ones are marked', async () => {
    expect((await im.post('/groups', { groupId: 'two\nlines', owner: 'ann' })).status).toBe(400);
    const ann = await im.connect('ann');
    expect(await ann.fails({ type: 'join', target: 'two\nlines' })).toMatchObject({ code: 4000 });
  });

  it('that could not hold its members does not come into being', async () => {
    const crowd = { groupId: 'crowd', maxMembers: 2, owner: 'ann', members: ['ben', 'cat'] };
    expect((await im.post('/groups', crowd)).status).toBe(409);
    expect((await im.get('/groups/crowd')).status).toBe(404);
  });

  it('of a thousand members is made at once, each an entry of its log, and grows by a thousand at once', async () => {
    const names = (prefix: string) =>
      Array.from({ length: 1_000 }, (_, index) => `${prefix}${String(index).padStart(4, '0')}`);
    const [first, last] = await Promise.all(['k0000', 'k0999'].map((user) => im.connect(user)));
    const members = names('k');
    const made = await im.post('/groups', { groupId: 'kilo', owner: 'k0999', members });
    expect(made).toMatchObject({ status: 201, body: { memberCount: 1_000, lastSeq: 1_000 } });
    const id = made.body.conversationId as string;
    // The owner is the first of all.
    expect(await im.history(id, '?limit=2')).toMatchObject([
      { seq: 1, type: 'join', source: 'k0999', target: 'kilo' },
      { seq: 2, type: 'join', source: 'k0000', target: 'kilo' },
    ]);
    await im.post('/messages', says('kilo', 'welcome'));
    for (const device of [first!, last!])
      expect(await device.next({ type: 'group' })).toMatchObject({ target: 'kilo', seq: 1_001 });
    // Each has the log from the own join on, in order and without gaps.
    const seqs = (device: Device) =>
      device.frames.filter(({ target }) => target === 'kilo').map(({ seq }) => seq as number);
    const upTo = (from: number) => Array.from({ length: 1_002 - from }, (_, index) => from + index);
    expect([seqs(first!), seqs(last!)]).toEqual([upTo(2), upTo(1)]);
    const more = await im.post('/groups/kilo/members', { users: [...names('m').slice(1), 'k0001'] });
    expect(more.body).toEqual({ added: 999, memberCount: 1_999 });
    expect((await im.get('/groups/kilo')).body).toMatchObject({ memberCount: 1_999, lastSeq: 2_000 });
  });

  it('takes all that are added, or none: who finds no room keeps the others out', async () => {
    const { path } = await group({ maxMembers: 5 });
    const crowd = { users: ['x1', 'x2', 'x3'] };
    expect(await im.post(`${path}/members`, crowd)).toMatchObject({
      status: 409,
      body: { code: 'CONFLICT' },
    });
    expect(await im.get(path)).toMatchObject({ body: { memberCount: 3, lastSeq: 3 } });
    // Who is in takes no room.
    const fitting = await im.post(`${path}/members`, { users: ['ann', 'x1', 'ben', 'x2'] });
    expect(fitting.body).toEqual({ added: 2, memberCount: 5 });
    expect((await im.post(`${path}/members`, { users: ['ann'] })).body).toEqual({ added: 0, memberCount: 5 });
  });

  it('is listed in pages bounded in characters, too', async () => {
    const own = new Im(app.url, (await app.tenant()).apiKey);
    const attributes = { text: 'x'.repeat(19_000) };
    for (let n = 10; n < 26; n += 1) await own.post('/groups', { groupId: `large-${n}`, attributes });
    const { body } = await own.get('/groups?limit=200');
    expect([body.data.length, body.nextCursor]).toEqual([14, 'large-23']);
    expect((await own.get('/groups?limit=200&cursor=large-23')).body).toMatchObject({
      data: [{ groupId: 'large-24' }, { groupId: 'large-25' }],
      nextCursor: null,
    });
  });

  it('is listed in pages, its members too', async () => {
    const one = await app.tenant();
    const own = new Im(app.url, one.apiKey);
    const ids = ['a', 'b', '中', 'd'];
    for (const groupId of ids) await own.post('/groups', { groupId, members: ['u3', 'u1', 'u2'] });
    const walk = async (path: string, field: string): Promise<string[][]> => {
      const found: string[][] = [];
      for (let cursor: string | null = ''; cursor !== null;) {
        const { body }: Answer = await own.get(`${path}?limit=2&cursor=${encodeURIComponent(cursor)}`);
        found.push((body.data as Record<string, string>[]).map((row) => row[field]!));
        cursor = body.nextCursor as string | null;
      }
      return found;
    };
    expect(await walk('/groups', 'groupId')).toEqual([
      ['a', 'b'],
      ['d', '中'],
    ]);
    expect(await walk('/groups/a/members', 'userId')).toEqual([['u1', 'u2'], ['u3']]);
  });

  it('is renamed, and keeps what is not named', async () => {
    const { path } = await group({ name: 'old', attributes: { a: 1 }, maxMembers: 5 });
    expect((await im.patch(path, { name: 'new' })).body).toMatchObject({
      name: 'new',
      attributes: { a: 1 },
      maxMembers: 5,
      memberCount: 3,
    });
    expect((await im.patch(path, { maxMembers: null, attributes: {} })).body).toMatchObject({
      name: 'new',
      attributes: {},
      maxMembers: null,
    });
    expect((await rival.get(path)).body).toMatchObject({ name: '' });
  });

  it('that is muted hears only its owner and admins', async () => {
    const { groupId, path } = await group();
    await im.patch(`${path}/members/ben`, { role: 'admin' });
    await im.patch(path, { muted: true });
    const [ann, ben, cat] = await Promise.all(['ann', 'ben', 'cat'].map((user) => im.connect(user)));
    expect(await cat!.fails({ ...says(groupId, 'me?'), msg: { msgId: 3, content: 'me?' } })).toMatchObject({
      code: 4005,
      msgId: 3,
    });
    ann!.send(says(groupId, 'owner'));
    await cat!.next({ type: 'group', source: 'ann' });
    ben!.send(says(groupId, 'admin'));
    await cat!.next({ type: 'group', source: 'ben' });
    await im.patch(path, { muted: false });
    cat!.send(says(groupId, 'now'));
    await ann!.next({ type: 'group', source: 'cat' });
  });

  it('that is full lets nobody in: 4005 over the socket, 409 over REST', async () => {
    const { groupId, path } = await group({ maxMembers: 3 });
    const dan = await im.connect('dan');
    expect(await dan.fails({ type: 'join', target: groupId })).toMatchObject({ code: 4005 });
    expect((await im.post(`${path}/members`, { users: ['dan'] })).status).toBe(409);
    expect((await im.post(`${path}/members`, { users: ['ben'] })).body).toEqual({ added: 0, memberCount: 3 });
    await im.patch(path, { maxMembers: 4 });
    expect((await im.post(`${path}/members`, { users: ['dan'] })).body).toEqual({ added: 1, memberCount: 4 });
  });
});

describe('members', () => {
  it('are added: the group hears a `join`, the new one gets everything from then on', async () => {
    const { groupId, path } = await group();
    const [ann, dan] = await Promise.all([im.connect('ann'), im.connect('dan')]);
    await im.post('/messages', says(groupId, 'before'));
    const added = await im.post(`${path}/members`, { users: ['dan', 'ben'], role: 'admin' });
    expect(added.body).toEqual({ added: 1, memberCount: 4 });
    for (const device of [ann, dan])
      expect(await device.next({ type: 'join', target: groupId, source: 'dan' })).toMatchObject({ seq: 5 });
    ann.send(says(groupId, 'after'));
    expect(await dan.next({ type: 'group', target: groupId })).toMatchObject({ msg: { content: 'after' } });
    expect(await roles(path)).toEqual(['ann owner', 'ben member', 'cat member', 'dan admin']);
  });

  it('get roles, and there is one owner', async () => {
    const { path } = await group();
    const to = (user: string, role: string) => im.patch(`${path}/members/${user}`, { role });
    expect((await to('ben', 'admin')).body).toEqual({
      userId: 'ben',
      role: 'admin',
      mutedUntil: null,
      joinedAt: expect.any(Number) as number,
    });
    expect((await to('ann', 'member')).status).toBe(409);
    expect((await to('cat', 'owner')).body).toMatchObject({ role: 'owner' });
    expect(await roles(path)).toEqual(['ann admin', 'ben admin', 'cat owner']);
    expect((await to('cat', 'king')).status).toBe(400);
    expect(await roles(path, rival)).toEqual(['ann owner', 'ben member', 'cat member']);
  });

  it('are muted for a while, and unmuted', async () => {
    const { groupId, path } = await group();
    const ben = await im.connect('ben', { rich: true });
    const speak = async (msgId: number): Promise<Frame> =>
      ben
        .send({ ...says(groupId, ''), msg: { msgId } })
        .next((frame) => frame.msgId === msgId && ['sent', 'error'].includes(frame.type as string));
    const mute = (mutedSeconds: number) => im.patch(`${path}/members/ben`, { mutedSeconds });
    const muted = await mute(60);
    expect(Math.abs((muted.body.mutedUntil as number) - Date.now() - 60_000)).toBeLessThan(5_000);
    expect(await speak(1)).toMatchObject({ code: 4005 });
    expect((await mute(0)).body).toMatchObject({ mutedUntil: null });
    expect(await speak(2)).toMatchObject({ type: 'sent' });
    await mute(1);
    expect(await speak(3)).toMatchObject({ code: 4005 });
    await eventually(async () => (await speak(4)).type === 'sent');
  });

  it('are put out: the group and they themselves hear a `leave`, and they nothing more', async () => {
    const { groupId, path } = await group();
    const [ann, ben] = await Promise.all([im.connect('ann'), im.connect('ben')]);
    const kicked = await im.delete(`${path}/members/ben`);
    expect(kicked).toMatchObject({ status: 200, body: { userId: 'ben', seq: 4 } });
    for (const device of [ann, ben])
      expect(await device.next({ type: 'leave', target: groupId })).toMatchObject({ source: 'ben', seq: 4 });
    expect(await ben.fails(says(groupId, 'let me in'))).toMatchObject({ code: 4004 });
    ann.send(says(groupId, 'without ben'));
    await im.post('/messages', says(groupId, 'nor so'));
    await ann.next({ type: 'group', source: 'system' });
    await caughtUp(ben);
    await ben.close();
    const back = await im.connect('ben');
    await caughtUp(back);
    expect([ben, back].map((device) => device.of('group', groupId))).toEqual([[], []]);
    expect((await im.delete(`${path}/members/ben`)).status).toBe(404);
    expect(await roles(path)).toEqual(['ann owner', 'cat member']);
    expect(await roles(path, rival)).toContain('ben member');
  });

  it('hear nothing more, also when put out at the very moment they connect', async () => {
    const { groupId, path } = await group();
    for (let n = 0; n < 20; n += 1) {
      const token = await im.token('eve', { groups: [groupId] });
      const [eve, kicked] = await Promise.all([
        im.connect('eve', { rich: true, token }),
        im.delete(`${path}/members/eve`),
      ]);
      expect(kicked.status).toBe(200);
      await im.post('/messages', says(groupId, 'without eve'));
      await caughtUp(eve);
      expect(eve.of('group', groupId)).toEqual([]);
      await eve.close();
    }
  });

  it('follow a leaving owner: the oldest admin, else the oldest member', async () => {
    const { groupId, path } = await group({ members: ['zoe', 'ben', 'cat'] });
    await im.patch(`${path}/members/cat`, { role: 'admin' });
    const leave = async (user: string): Promise<void> => {
      const device = await im.connect(user, { rich: true });
      await device.send({ type: 'leave', target: groupId }).next({ type: 'sent' });
    };
    await leave('ann');
    expect(await roles(path)).toEqual(['ben member', 'cat owner', 'zoe member']);
    await im.delete(`${path}/members/cat`);
    expect(await roles(path)).toEqual(['ben member', 'zoe owner']);
    await leave('zoe');
    await leave('ben');
    expect(await roles(path)).toEqual([]);
    expect((await im.get(path)).body).toMatchObject({ memberCount: 0 });
  });
});

describe('a deleted group', () => {
  it('has nobody in it, its id is free again, and its history stays', async () => {
    const { groupId, path, id } = await group();
    const [ann, ben] = await Promise.all([im.connect('ann'), im.connect('ben')]);
    ann.send(says(groupId, 'remember'));
    await ben.next({ type: 'group', target: groupId });
    expect(await im.delete(path)).toMatchObject({ status: 200, body: { groupId, memberCount: 0 } });
    expect((await im.get(path)).status).toBe(404);
    expect(await ann.fails(says(groupId, 'x'))).toMatchObject({ code: 4004 });
    expect((await im.post('/messages', says(groupId, 'x'))).status).toBe(404);
    expect((await im.history(id)).at(-1)).toMatchObject({ seq: 4, msg: { content: 'remember' } });
    expect((await im.get('/conversations?userId=ben')).text).not.toContain(id);

    const again = await im.post('/groups', { groupId, owner: 'ben' });
    expect(again).toMatchObject({ status: 201, body: { memberCount: 1, lastSeq: 1 } });
    expect(again.body.conversationId).not.toBe(id);
    ben.send(says(groupId, 'anew'));
    expect(await ann.fails(says(groupId, 'x'))).toMatchObject({ code: 4004 });
    await caughtUp(ann);
    expect(ann.of('group', groupId)).toEqual([]);
    expect(await im.history(again.body.conversationId as string)).toMatchObject([
      { type: 'join', source: 'ben' },
      { type: 'group', source: 'ben' },
    ]);
    expect((await rival.get(path)).body).toMatchObject({ memberCount: 3 });
  });

  it('is gone on every node, and so is what they know of it', async () => {
    const second = await bootApp({}, app.databaseUrl);
    try {
      const elsewhere = new Im(second.url, acme.apiKey);
      const { groupId, path, id } = await group();
      const ann = await elsewhere.connect('ann', { rich: true });
      await ann.send({ ...says(groupId, ''), msg: { msgId: 1 } }).next({ type: 'sent', conversationId: id });
      await im.delete(path);
      const again = await im.post('/groups', { groupId, owner: 'ann' });
      const { conversationId } = again.body as Frame;
      const sent = await elsewhere.post('/messages', says(groupId, 'by the server'));
      expect(sent.body).toMatchObject({ conversationId });
      const own = ann.send({ ...says(groupId, ''), msg: { msgId: 2 } }).next({ type: 'sent', msgId: 2 });
      expect(await own).toMatchObject({ conversationId });
      expect(await im.history(id)).toHaveLength(4);
    } finally {
      await second.close();
    }
  });
});

it('with `groupPolicy: managed` only the server makes groups and members', async () => {
  const tenant = await app.tenant();
  const managed = new Im(app.url, tenant.apiKey);
  const root = { 'x-api-key': ROOT_KEY };
  const path = `/api/admin/tenants/${tenant.id}`;
  expect((await ask(app.url, 'PATCH', path, { groupPolicy: 'managed' }, root)).status).toBe(200);
  await managed.post('/groups', { groupId: 'closed', owner: 'ann' });
  const dan = await managed.connect('dan');
  const join = async (groupId: string): Promise<unknown> =>
    (await dan.fails({ type: 'join', target: groupId })).code;
  expect([await join('closed'), await join('brand-new')]).toEqual([4004, 4004]);
  expect((await managed.get('/groups/brand-new')).status).toBe(404);
  await managed.post('/groups/closed/members', { users: ['dan'] });
  await dan.next({ type: 'join', source: 'dan', target: 'closed' });
  const eve = await managed.connect('eve', { groups: ['closed'] });
  dan.send(says('closed', 'hi'));
  await eve.next({ type: 'group', source: 'dan' });
  const free = await rival.connect('dan');
  free.send({ type: 'join', target: 'brand-new' }).send(says('brand-new', 'mine'));
  await eventually(async () => (await rival.get('/groups/brand-new')).body.lastSeq === 2);
});

it('answers 404 or 200, and nothing else, to members who are put out while their group is dissolved', async () => {
  const members = Array.from({ length: 20 }, (_, i) => `m${i}`);
  const { path } = await group({ members });
  const out = members.map((user) => im.delete(`${path}/members/${user}`));
  const answers = await Promise.all([...out.slice(0, 10), im.delete(path), ...out.slice(10)]);
  for (const { status, text } of answers) expect([text, [200, 404].includes(status)]).toEqual([text, true]);
});

it.each([
  ['members', { members: null }],
  ['owner', { owner: null }],
])('refuses null for %s: it is neither none nor all', async (field, input) => {
  groups += 1;
  const answer = await im.post('/groups', { groupId: `g${groups}`, ...input });
  expect(answer).toMatchObject({ status: 400, body: { code: 'BAD_INPUT' } });
  expect(answer.text).toContain(field);
});
