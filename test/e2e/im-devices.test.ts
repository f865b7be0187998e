import { DeviceKeeper } from '../../src/messages';
import { bootApp, type TestApp, type TestTenant } from '../support/app';
import { query } from '../support/database';
import {
  away,
  device,
  fresh,
  group,
  join,
  say,
  seqs,
  single,
  type ConnectOptions,
  type Device,
  type Frame,
  type TokenOptions,
} from '../support/im';

let app: TestApp;
let acme: TestTenant;
let rival: TestTenant;

beforeAll(async () => {
  app = await bootApp({ IM_DEVICE_RETENTION_DAYS: '30' });
  [acme, rival] = await Promise.all([app.tenant(), app.tenant()]);
});
afterAll(() => app.close());

const on = (user: string, options: TokenOptions & ConnectOptions = {}, tenant = acme): Promise<Device> =>
  device(app, tenant, user, options);
const sql = <T>(text: string, values: unknown[]): Promise<T[]> => query<T>(app.databaseUrl, text, values);

/** Over everything that is read in one page: the first one, and those after it. */
const MANY = 1_300;
let made = 0;

/**
 * Conversations of a user with as many others, of one message each, all as old as that; ids of the conversations, oldest
 * first. Straight into the tables: over the wire it would take a while.
 */
async function collected(user: string, count: number, age: string, tenant = acme): Promise<string[]> {
  made += 1;
  const first = made * 1_000_000;
  await sql(`select ensure_message_partition(now() - $1::interval)`, [age]);
  await sql(
    `insert into conversations (id, tenant_id, kind, key, member_count, last_seq, last_id, sent_first)
     select $2 + i, $1, 'single', json_build_array($3::text, 'x' || i)::text, 2, 1, message_id_at(now() - $5::interval) + $2 + i, 0
     from generate_series(1, $4::int) i`,
    [tenant.id, first, user, count, age],
  );
  await sql(
    `insert into conversation_members (conversation_id, user_id, tenant_id, side)
     select $2 + i, unnest(array[$3, 'x' || i]), $1, unnest(array[0, 1]) from generate_series(1, $4::int) i`,
    [tenant.id, first, user, count],
  );
  await sql(
    `insert into messages (id, tenant_id, conversation_id, seq, sender, client, frame)
     select message_id_at(now() - $5::interval) + $2 + i, $1, $2 + i, 1, 'x' || i, 'pc',
       json_build_object('type', 'single', 'source', 'x' || i, 'target', $3::text, 'msg', json_build_object('content', 'old'))::text
     from generate_series(1, $4::int) i`,
    [tenant.id, first, user, count, age],
  );
  return Array.from({ length: count }, (_, index) => String(first + index + 1));
}

/** A message that somebody's server or process stores in a conversation, under an id of that age. */
async function stored(conversationId: string, seq: number, age: string, tenant = acme): Promise<void> {
  await sql(
    `insert into messages (id, tenant_id, conversation_id, seq, sender, client, frame)
     select message_id_at(now() - $4::interval) + $2::bigint % 1000000 * 8 + $3, $1, $2, $3, 'x', 'pc',
       json_build_object('type', 'single', 'source', 'x', 'target', 'y', 'msg', json_build_object('n', $3::int))::text`,
    [tenant.id, conversationId, seq, age],
  );
  await sql('update conversations set last_seq = $2, last_id = message_id_at(now()) where id = $1', [
    conversationId,
    seq,
  ]);
}

const marksOf = async (user: string, client: string, tenant = acme): Promise<Record<string, number>> =>
  Object.fromEntries(
    (
      await sql<{ conversation_id: string; seq: string }>(
        'select conversation_id, seq from device_marks where tenant_id = $1 and user_id = $2 and client = $3',
        [tenant.id, user, client],
      )
    ).map(({ conversation_id, seq }) => [conversation_id, Number(seq)]),
  );

/** Marks are stored after the proof, in their own time. */
async function readOf(user: string, client: string, ids: readonly string[], seq: number): Promise<void> {
  for (;;) {
    const marks = await marksOf(user, client);
    if (ids.every((id) => marks[id] === seq)) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** The user has had a device before, which is not told of here. */
const known = (user: string, tenant = acme): Promise<unknown> =>
  sql(`insert into devices (tenant_id, user_id, client) values ($1, $2, 'first')`, [tenant.id, user]);

const told = (frames: Frame[]): unknown[] =>
  frames.filter(({ type }) => type === 'single').map(({ seq, conversationId }) => [conversationId, seq]);

describe('a new device of a user with very many conversations', () => {
  it('costs no row for any of them, is told of the latest 500, and of nothing from before', async () => {
    const user = fresh('collector');
    const ids = await collected(user, MANY, '1 day');
    await known(user);
    await collected(user, 3, '1 day', rival);
    const phone = await on(user, { client: 'phone', rich: true });
    const [ready] = phone.frames;
    expect((ready!.conversations as Frame[]).map(({ id }) => id as string)).toEqual(
      [...ids].reverse().slice(0, 500),
    );
    expect(ready).toMatchObject({ resumed: false });
    expect(await phone.settled()).toEqual([]);
    expect(await marksOf(user, 'phone')).toEqual({});
    await phone.drop();

    // While it is away, in the oldest of all, in one of the middle and in the newest.
    const some = [ids[0]!, ids[600]!, ids.at(-1)!];
    for (const id of some) await stored(id, 2, '0 seconds');
    const back = await on(user, { client: 'phone', rich: true });
    expect(back.frames[0]).toMatchObject({ resumed: true });
    expect(told(await back.settled()).sort()).toEqual(some.map((id) => [id, 2]).sort());
    for (const id of some) back.send({ type: 'ack', conversationId: id, seq: 2 });
    await readOf(user, 'phone', some, 2);
    await back.drop();
    const again = await on(user, { client: 'phone', rich: true });
    expect(told(await again.settled())).toEqual([]);
    // The first device had none of it: it gets everything.
    const first = await on(user, { client: 'first' });
    const all = (await first.take(MANY + 3, { type: 'single' })).map(({ msg }) => msg as Frame);
    expect(all.filter(({ content }) => content === 'old')).toHaveLength(MANY);
    const foreign = await on(user, { client: 'phone' }, rival);
    expect((await foreign.settled()).map(({ msg }) => msg as Frame)).toEqual(
      Array(3).fill({ content: 'old' }),
    );
    await away(again, first, foreign);
  });

  it('begins exactly where it came, also where something was said a moment before', async () => {
    const [user, other, g] = [fresh('u'), fresh('o'), fresh('g')];
    const [speaker, first] = [await on(other, { rich: true }), await on(user)];
    await say(speaker, single(other, user, { msgId: 1 }), join(other, g));
    await on(user, { groupId: [g] });
    const [{ conversationId: groupId }] = (await say(speaker, group(other, g, { msgId: 2 }))) as [Frame];
    const second = await on(user, { client: 'second' });
    expect((await second.settled()).map(({ msg }) => msg as Frame)).toEqual([]);
    expect(await marksOf(user, 'second')).toMatchObject({ [groupId as string]: 3 });
    await second.drop();
    await say(speaker, single(other, user, { msgId: 3 }), group(other, g, { msgId: 4 }));
    const back = await on(user, { client: 'second' });
    expect((await back.settled()).map(({ msg }) => (msg as Frame).msgId as number).sort()).toEqual([3, 4]);
    await away(speaker, first, back);
  });

  it('gets an answer that was being written when it first came, under an id from before', async () => {
    const user = fresh('u');
    const [quiet, asked] = (await collected(user, 2, '3 hours')) as [string, string];
    await known(user);
    await sql(
      `insert into reply_requests (message_id, tenant_id, conversation_id, assistant_id, sender, frame, next_at)
       values ($2::bigint * 10, $1, $2, 1, $3, '{}', now() + interval '1 day')`,
      [acme.id, asked, user],
    );
    await (await on(user, { client: 'new', rich: true })).drop();
    await stored(asked, 2, '1 hour');
    await stored(quiet, 2, '0 seconds');
    const back = await on(user, { client: 'new', rich: true });
    expect(told(await back.settled()).sort()).toEqual(
      [
        [quiet, 2],
        [asked, 2],
      ].sort(),
    );
    await back.close();
    await sql('delete from reply_requests where conversation_id = $1', [asked]);
  });

  it('is not taken back to before its beginning by an `ack` of less', async () => {
    const [user, other] = [fresh('u'), fresh('o')];
    const [id] = (await collected(user, 1, '1 day')) as [string];
    for (const seq of [2, 3, 4]) await stored(id, seq, '20 hours');
    await sql(
      'update conversations set last_id = message_id_at(now() - interval $$20 hours$$) where id = $1',
      [id],
    );
    await known(user);
    const phone = await on(user, { client: 'phone', rich: true });
    phone.send({ type: 'ack', conversationId: id, seq: 1 });
    await phone.ping();
    await phone.drop();
    await stored(id, 5, '0 seconds');
    const back = await on(user, { client: 'phone', rich: true });
    expect(told(await back.settled())).toEqual([[id, 5]]);
    back.send({ type: 'ack', conversationId: id, seq: 2 }, { type: 'ack', conversationId: id, seq: 5 });
    await readOf(user, 'phone', [id], 5);
    await back.drop();
    const again = await on(user, { client: 'phone', rich: true });
    expect(told(await again.settled())).toEqual([]);
    const foreign = await on(other, {}, rival);
    expect(await foreign.settled()).toEqual([]);
    await away(again, foreign);
  });

  it('begins anew when its first coming was not noted to the end', async () => {
    const user = fresh('u');
    const ids = await collected(user, MANY, '1 hour');
    await known(user);
    await sql(
      `insert into devices (tenant_id, user_id, client, since, fresh)
       values ($1, $2, 'new', message_id_at(now() - interval '1 day'), true)`,
      [acme.id, user],
    );
    const peer = await on(user, { client: 'new', rich: true });
    expect(peer.frames[0]).toMatchObject({ resumed: false });
    expect(await peer.settled()).toEqual([]);
    await peer.drop();
    const [row] = await sql<{ fresh: boolean }>(
      `select fresh from devices where tenant_id = $1 and user_id = $2 and client = 'new'`,
      [acme.id, user],
    );
    expect(row).toEqual({ fresh: false });
    await stored(ids[900]!, 2, '0 seconds');
    const back = await on(user, { client: 'new', rich: true });
    expect(told(await back.settled())).toEqual([[ids[900], 2]]);
    await back.close();
  });

  it('looks for what it missed in every one of them', async () => {
    const user = fresh('u');
    const ids = await collected(user, MANY, '1 day');
    await known(user);
    const peer = await on(user, { client: 'new', rich: true });
    // As another process would: nobody here hears of it.
    const some = [ids[0]!, ids[300]!, ids[1_000]!];
    for (const id of some) await stored(id, 2, '0 seconds');
    peer.send({ type: 'ping' });
    expect(told(await peer.take(3, { type: 'single' })).sort()).toEqual(some.map((id) => [id, 2]).sort());
    await peer.close();
  });
});

describe('a device that was not seen for long', () => {
  const unseen = (user: string, client: string, days: number, tenant = acme): Promise<unknown> =>
    sql(
      `update devices set seen_at = now() - make_interval(days => $4) where tenant_id = $1 and user_id = $2 and client = $3`,
      [tenant.id, user, client, days],
    );

  it('loses its marks, and goes on where it was last seen', async () => {
    const [user, other] = [fresh('u'), fresh('o')];
    const speaker = await on(other, { rich: true });
    const devices = [await on(user), await on(user, { client: 'phone' }), await on(user, { client: 'tv' })];
    const [{ conversationId }] = (await say(speaker, single(other, user, { msgId: 1 }))) as [Frame];
    const id = conversationId as string;
    for (const one of devices) await one.next({ seq: 1 });
    for (const client of ['pc', 'phone', 'tv']) await readOf(user, client, [id], 1);
    const [pc, phone, tv] = devices as [Device, Device, Device];
    await away(phone, pc);
    const gone = async (): Promise<boolean> =>
      (await sql('select 1 from im_sessions where tenant_id = $1 and user_id = $2', [acme.id, user]))
        .length === 1;
    while (!(await gone()));
    await unseen(user, 'pc', 29);
    await unseen(user, 'phone', 31);
    await unseen(user, 'tv', 31);
    const keeper = app.app.nest.get(DeviceKeeper);
    await keeper.keep();
    // One was seen lately, one is connected.
    expect([await marksOf(user, 'pc'), await marksOf(user, 'phone'), await marksOf(user, 'tv')]).toEqual([
      { [id]: 1 },
      {},
      { [id]: 1 },
    ]);
    await say(speaker, single(other, user, { msgId: 2 }));
    // Everything here was said after it was last seen, if one believes the clock that was put back.
    const back = await on(user, { client: 'phone' });
    expect(seqs(await back.settled())).toEqual([1, 2]);
    await away(back, tv, speaker);
  });

  it('gets nothing from before it was last seen', async () => {
    const user = fresh('u');
    const [before, after] = (await collected(user, 2, '40 days')) as [string, string];
    await known(user);
    await sql(
      `insert into device_marks (tenant_id, user_id, client, conversation_id, seq) values ($1, $2, 'first', $3, 1), ($1, $2, 'first', $4, 1)`,
      [acme.id, user, before, after],
    );
    await stored(after, 2, '33 days');
    await stored(after, 3, '31 days');
    await unseen(user, 'first', 32);
    // The rival's device of the same name was seen lately.
    await known(user, rival);
    await sql(
      `insert into device_marks (tenant_id, user_id, client, conversation_id, seq) values ($1, $2, 'first', 7, 1)`,
      [rival.id, user],
    );
    await app.app.nest.get(DeviceKeeper).keep();
    expect(await marksOf(user, 'first')).toEqual({});
    expect(await marksOf(user, 'first', rival)).toEqual({ 7: 1 });
    const back = await on(user, { client: 'first', rich: true });
    expect(told(await back.settled())).toEqual([[after, 3]]);
    await back.close();
    // It still counts among those who ever connected: a broadcast reaches its user.
    const [{ count }] = (await sql<{ count: string }>(
      'select count(*) from devices where tenant_id = $1 and user_id = $2',
      [acme.id, user],
    )) as [{ count: string }];
    expect(count).toBe('1');
  });
});

it("lists a user's 500 latest conversations over REST, however many there are", async () => {
  const user = fresh('u');
  const ids = await collected(user, MANY, '1 day');
  await sql(`update conversation_members set until_seq = 1 where conversation_id = $1 and user_id = $2`, [
    ids.at(-1),
    user,
  ]);
  const { body } = await acme.get(`/api/v1/im/conversations?userId=${encodeURIComponent(user)}`);
  expect((body.data as Frame[]).map(({ id }) => id as string)).toEqual([...ids].reverse().slice(1, 501));
  const { body: theirs } = await rival.get(`/api/v1/im/conversations?userId=${encodeURIComponent(user)}`);
  expect(theirs.data).toEqual([]);
});
