import { ask, bootApp, eventually, says, SseClient, type TestApp, type TestTenant } from '../support/app';
import { Channel, away, fresh, open, textOf, type ChannelOptions, type Frame } from '../support/channel';
import { imToken } from '../support/im';
import { Im } from '../support/im-rest';
import { gate, Upstream, type Exchange } from '../support/upstream';

let app: TestApp;
let upstream: Upstream;
let acme: TestTenant;
let rival: TestTenant;

beforeAll(async () => {
  [app, upstream] = await Promise.all([bootApp(), Upstream.start()]);
  [acme, rival] = await Promise.all([
    app.tenant({ baseUrl: upstream.url, model: 'of-acme' }),
    app.tenant({ baseUrl: upstream.url, model: 'of-the-rival' }),
  ]);
  upstream.on('of-acme', (exchange) => answer(exchange));
});
afterAll(async () => {
  await app.close();
  await upstream.close();
});

/** What is said with one of these in it is answered as the test wants it; all else comes back. */
const scripts = new Map<string, (exchange: Exchange) => Promise<unknown>>();
async function answer(exchange: Exchange): Promise<unknown> {
  const { content } = (exchange.body.messages as { content: string }[]).at(-1)!;
  const [, script] = [...scripts].find(([word]) => content.includes(word)) ?? [];
  if (script) return script(exchange);
  await exchange.pieces('You ', 'said: ', content);
  return exchange.done();
}

/** What has this in it is answered by half, and then no more. */
function halting(word: string): { aborted: () => Promise<void> } {
  const { opened, open: asked } = gate();
  let exchange: Exchange;
  scripts.set(word, async (given) => {
    exchange = given;
    await given.piece('half');
    asked();
  });
  return { aborted: () => opened.then(() => exchange.aborted) };
}

const prompts = (model = 'of-acme'): string[][] =>
  upstream
    .seen(model)
    .map(({ body }) =>
      (body.messages as { role: string; content: string }[])
        .filter(({ role }) => role !== 'system')
        .map(({ content }) => content),
    );
const as = (user: string) => ({ 'user-id': user });
const server = (options: ChannelOptions = {}, tenant = acme): Promise<Channel> =>
  open(app.url, { key: tenant.apiKey, ...options });
const device = async (user: string, options: ChannelOptions = {}, tenant = acme): Promise<Channel> =>
  open(app.url, { token: await imToken(app.url, tenant, user), ...options });

/** On the assistant platform. */
const platform = (user: string, content: string, id?: string, tenant = acme): Promise<SseClient> =>
  tenant.send(says(content, { ...(id !== undefined && { id }) }), { headers: as(user) });

/** On the OpenAI wire. */
async function openAi(user: string, content: string, sessionId: string, tenant = acme): Promise<string> {
  const body = { model: 'agent:main', messages: [{ role: 'user', content }], sessionId };
  const headers = { authorization: `Bearer ${tenant.apiKey}`, ...as(user) };
  const answered = await ask(app.url, 'POST', '/v1/chat/completions', body, headers);
  if (answered.status !== 200) throw new Error(answered.text);
  return answered.body.choices[0].message.content as string;
}

async function rowsOf(id: string): Promise<Frame[]> {
  return (await acme.get(`/api/copywriting/message/list/${id}?pageSize=100`)).body.rows as Frame[];
}
/** The dialogue that this was said in. */
async function dialogueWith(content: string): Promise<string> {
  return eventually(async () => {
    const { rows } = (await acme.get('/api/copywriting/dialogue/list?pageSize=100')).body as {
      rows: Frame[];
    };
    for (const { id } of rows)
      if ((await rowsOf(id as string)).some((row) => row.content === content)) return id as string;
    return null;
  });
}

/** Two who watch a dialogue: a user's own device, and the tenant's server in the event view. */
async function watchers(user: string, sessionId: string): Promise<{ plain: Channel; events: Channel }> {
  const [plain, events] = await Promise.all([device(user), server({ events: true })]);
  for (const one of [plain, events]) await one.send({ type: 'subscribe', sessionId }).handled();
  return { plain, events };
}

it('goes on whichever wire it is taken up on; who watches sees every reply live, in one order', async () => {
  const bob = fresh('bob');
  const begun = await platform(bob, 'on the platform');
  await begun.end();
  const id = begun.record.id as string;
  const { plain, events } = await watchers(bob, id);
  const stranger = await device(bob, {}, rival);
  await stranger.send({ type: 'subscribe', sessionId: id }).handled();

  const own = await device(bob);
  expect(textOf(await own.chat('on the channel', { sessionId: id }))).toBe('You said: on the channel');
  expect(await openAi(bob, 'on the OpenAI wire', id)).toBe('You said: on the OpenAI wire');
  const again = await platform(bob, 'on the platform again', id);
  await again.end();
  expect(again.text).toBe('You said: on the platform again');
  const key = await server();
  expect(textOf(await key.chat('by the server', { sessionId: id }))).toBe('You said: by the server');

  const said = ['on the channel', 'on the OpenAI wire', 'on the platform again', 'by the server'];
  const shown: string[][] = [];
  for (const what of said) {
    const reply = await plain.reply();
    expect(textOf(reply, 0)).toBe(`You said: ${what}`);
    expect(reply.at(-1)).toMatchObject({ done: true, status: 'finished', sessionId: id });
    const told = (await events.reply()).filter(({ payload }) => payload.status !== 'subscribed');
    expect(told.map(({ type }) => type as string)).toEqual(['status', 'text', 'text', 'text', 'done']);
    expect(told.map(({ payload }) => payload.content as string).join('')).toBe(`You said: ${what}`);
    shown.push([reply[0]!.messageId as string, told[0]!.taskId as string]);
  }
  // Everybody was shown the same replies, which are those that are stored, and each prompt had what came before.
  const rows = await rowsOf(id);
  const replies = rows.filter(({ role }) => role === 'assistant').map((row) => row.id as string);
  expect(shown).toEqual(replies.slice(1).map((replyId) => [replyId, replyId]));
  const everything = ['on the platform', ...said].flatMap((what) => [what, `You said: ${what}`]);
  expect(rows.map(({ content }) => content as string)).toEqual(everything);
  expect(prompts().at(-1)).toEqual(everything.slice(0, -1));

  // The history is the same on every wire that tells it.
  const { body } = await acme.get(`/api/v1/sessions/${id}/messages?size=100`, as(bob));
  expect(told(body.data as Frame[])).toEqual(told(rows));
  const late = await device(bob);
  for (const { id: messageId, content } of rows.filter(({ role }) => role === 'assistant')) {
    const whole = await late.send({ type: 'resume', sessionId: id, messageId: messageId as string }).reply();
    expect(textOf(whole)).toBe(content);
    const sse = await resumed(messageId as string);
    expect(sse.text).toBe(content);
  }
  await stranger.handled();
  expect(stranger.frames).toEqual([]);
  await away(plain, events, stranger, own, key, late);
});

const told = (rows: Frame[]) => rows.map(({ id, role, content, status }) => ({ id, role, content, status }));
async function resumed(replyId: string, tenant = acme): Promise<SseClient> {
  const sse = await SseClient.open(
    app.url,
    'GET',
    `/api/copywriting/dialogue/sse/resume/${replyId}`,
    undefined,
    {
      'x-api-key': tenant.apiKey,
    },
  );
  await sse.end();
  return sse;
}

it('that began on the IM wire is read on the platform, goes on on the channel, and is told to the device', async () => {
  const user = fresh('ann');
  const im = new Im(app.url, acme.apiKey);
  const phone = await im.connect(user);
  const send = (content: string) =>
    phone.send({ type: 'single', target: 'agent:main', msg: { msgId: content, content } });
  const first = `hello from ${user}`;
  const reply = await send(first).next({ type: 'single' });
  expect(reply.msg.content).toBe(`You said: ${first}`);
  const id = await dialogueWith(first);
  expect((await rowsOf(id)).map(({ role, content }) => [role, content] as string[])).toEqual([
    ['user', first],
    ['assistant', `You said: ${first}`],
  ]);

  const { plain, events } = await watchers(user, id);
  expect(textOf(await plain.chat('from the channel', { sessionId: id }))).toBe('You said: from the channel');
  expect(prompts().at(-1)).toEqual([first, `You said: ${first}`, 'from the channel']);
  // The device is told of the turn that was taken elsewhere: what was said, and the answer.
  const mirrored = [await phone.next({ type: 'single' }), await phone.next({ type: 'single' })];
  expect(mirrored.map(({ source, msg }) => [source, msg.content] as string[])).toEqual([
    [user, 'from the channel'],
    ['agent:main', 'You said: from the channel'],
  ]);
  // And who watches the channel is shown what the device asks.
  await send('from the phone').next({ type: 'single' });
  const live = await plain.reply();
  expect(textOf(live, 0)).toBe('You said: from the phone');
  expect(await openAi(user, 'from OpenAI', id)).toBe('You said: from OpenAI');
  expect(textOf(await plain.reply(), 0)).toBe('You said: from OpenAI');
  const tasks: string[] = [];
  for (let n = 0; n < 3; n += 1) tasks.push((await events.reply()).at(-1)!.taskId as string);
  const rows = await rowsOf(id);
  expect(
    rows
      .filter(({ role }) => role === 'assistant')
      .map((row) => row.id as string)
      .slice(1),
  ).toEqual(tasks);
  expect(rows.filter(({ role }) => role === 'user').map(({ content }) => content as string)).toEqual([
    first,
    'from the channel',
    'from the phone',
    'from OpenAI',
  ]);
  await away(plain, events);
  await phone.close();
});

it('a reply that one wire began is stopped from another', async () => {
  const bob = fresh('bob');
  const begun = await platform(bob, 'begin');
  await begun.end();
  const id = begun.record.id as string;
  const { plain, events } = await watchers(bob, id);
  const stopped = async (): Promise<void> => {
    expect((await plain.reply()).at(-1)).toMatchObject({ done: true, status: 'stopped' });
    expect((await events.reply()).at(-1)).toMatchObject({ type: 'done', payload: { status: 'stopped' } });
  };

  // Begun on the platform, stopped on the channel.
  const first = halting('halt 1');
  const sse = await platform(bob, 'halt 1', id);
  await sse.has(2);
  plain.send({ type: 'cancel', sessionId: id });
  await first.aborted();
  await sse.end();
  expect(sse.last).toMatchObject({ isEnd: true, status: 'stopped' });
  await stopped();

  // Begun on the channel, stopped on the platform.
  const second = halting('halt 2');
  const own = await device(bob);
  own.send({ type: 'chat', sessionId: id, message: 'halt 2' });
  await own.next({ content: 'half' });
  expect((await acme.get(`/copywriting/dialogue/sse/close/${id}`)).status).toBe(200);
  await second.aborted();
  expect(await own.next({ done: true })).toMatchObject({ status: 'stopped' });
  await stopped();

  // Begun on the OpenAI wire, stopped on the channel by the tenant's server.
  const third = halting('halt 3');
  const answered = openAi(bob, 'halt 3', id);
  await plain.next({ content: 'half' });
  events.send({ type: 'cancel', sessionId: id });
  await third.aborted();
  expect(await answered).toBe('half');
  await stopped();

  const replies = (await rowsOf(id)).filter(({ role }) => role === 'assistant').slice(1);
  expect(replies.map(({ content, status }) => [content, status] as string[])).toEqual(
    Array(3).fill(['half', 'stopped']),
  );
  await plain.chat('on', { sessionId: id });
  expect((await rowsOf(id)).at(-1)).toMatchObject({ content: 'You said: on', status: 'finished' });
  await away(plain, events, own);
});

it('waits on the channel while another wire’s reply is written', async () => {
  const bob = fresh('bob');
  const begun = await platform(bob, 'begin');
  await begun.end();
  const id = begun.record.id as string;
  const { opened, open: go } = gate();
  scripts.set('slowly', async (exchange) => {
    await exchange.piece('well …');
    await opened;
    await exchange.done();
  });
  const [own, asked] = [await device(bob), upstream.seen('of-acme').length];
  await own.send({ type: 'subscribe', sessionId: id }).handled();
  const sse = await platform(bob, 'slowly', id);
  await own.next({ content: 'well …' });
  await own.send({ type: 'chat', sessionId: id, message: 'and then?' }).handled();
  expect(upstream.seen('of-acme')).toHaveLength(asked + 1);
  go();
  await sse.end();
  expect(await own.next({ done: true })).toMatchObject({ status: 'finished' });
  expect(textOf(await own.reply())).toBe('You said: and then?');
  expect(prompts().at(-1)).toEqual(['begin', 'You said: begin', 'slowly', 'well …', 'and then?']);
  await own.close();
});

it('is nobody else’s: another user may not read, watch, continue or stop it, nor may a rival', async () => {
  const bob = fresh('bob');
  const begun = await platform(bob, 'a secret');
  await begun.end();
  const id = begun.record.id as string;
  const old = begun.events[0]!.id.split(':')[0]!;
  const [eve, stranger, rivalsBob] = [
    await device('eve'),
    await server({}, rival),
    await device(bob, {}, rival),
  ];
  const others = [eve, stranger, rivalsBob];
  const refused = { type: 'error', code: 'session_not_found' };

  for (const one of others) await one.send({ type: 'subscribe', sessionId: id }).handled();
  const writing = halting('more secrets');
  const sse = await platform(bob, 'more secrets', id);
  await sse.has(2);
  const live = sse.events[0]!.id.split(':')[0]!;
  for (const one of others) {
    await one.send({ type: 'subscribe', sessionId: id }).handled();
    expect(await one.fails({ type: 'cancel', sessionId: id })).toMatchObject(refused);
    for (const messageId of [old, live])
      expect(await one.fails({ type: 'resume', sessionId: id, messageId })).toMatchObject(refused);
  }
  // The platform knows no user's token, and a rival's key finds nothing there.
  const token = await imToken(app.url, acme, 'eve');
  const paths = [`message/list/${id}`, `dialogue/sse/close/${id}`, `dialogue/sse/resume/${live}`];
  for (const path of paths) {
    const withToken = await ask(app.url, 'GET', `/api/copywriting/${path}`, undefined, {
      'x-api-key': token,
    });
    expect([path, withToken.status, (await rival.get(`/api/copywriting/${path}`)).status]).toEqual([
      path,
      401,
      404,
    ]);
  }
  expect((await platform(bob, 'me, too', id, rival)).status).toBe(404);
  expect((await rival.get(`/api/v1/sessions/${id}/messages`, as(bob))).status).toBe(404);

  // Under that name they have conversations of their own, if they insist.
  expect(textOf(await eve.chat('eve here', { sessionId: id }))).toBe('You said: eve here');
  expect(prompts().at(-1)).toEqual(['eve here']);
  await stranger.chat('the rival here', { sessionId: id });
  await openAi('somebody', 'the rival again', id, rival);
  expect(prompts('of-the-rival')).toEqual([['the rival here'], ['the rival again']]);
  for (const one of others) expect(one.texts.filter((text) => /secret|half/.test(text))).toEqual([]);

  // Nothing of it has touched what is bob's: it is still being written, until he stops it.
  const own = await device(bob);
  await own.send({ type: 'subscribe', sessionId: id }).next({ content: 'half' });
  own.send({ type: 'cancel', sessionId: id });
  await writing.aborted();
  await sse.end();
  expect(sse.last).toMatchObject({ status: 'stopped' });
  expect((await rowsOf(id)).map(({ content }) => content as string)).toEqual([
    'a secret',
    'You said: a secret',
    'more secrets',
    'half',
  ]);
  await away(own, ...others);
});

it('by a name: the OpenAI wire and the channel mean the same session', async () => {
  const [bob, sessionId] = [fresh('bob'), fresh('named')];
  const own = await device(bob);
  await own.chat('one', { sessionId });
  expect(await openAi(bob, 'two', sessionId)).toBe('You said: two');
  expect(textOf(await own.reply(), 0)).toBe('You said: two');
  await own.chat('three', { sessionId });
  expect(prompts().at(-1)).toEqual(['one', 'You said: one', 'two', 'You said: two', 'three']);
  await own.close();
});

it('by a name that another wire is the first to use: who has watched it from before finds it, and can stop it', async () => {
  const [bob, sessionId] = [fresh('bob'), fresh('named')];
  const own = await device(bob);
  await own.send({ type: 'subscribe', sessionId }).handled();
  const halted = halting('halt at once');
  const answered = openAi(bob, 'halt at once', sessionId);
  await eventually(async () => prompts().at(-1)?.at(-1) === 'halt at once');
  await own.send({ type: 'subscribe', sessionId }).next({ content: 'half' });
  own.send({ type: 'cancel', sessionId });
  await halted.aborted();
  expect(await own.next({ done: true })).toMatchObject({ status: 'stopped' });
  expect(await answered).toBe('half');
  await own.close();
});

it('by a name that another wire is the first to use: who has watched it from before sees the reply live', async () => {
  const [bob, sessionId] = [fresh('bob'), fresh('named')];
  const own = await device(bob);
  await own.send({ type: 'subscribe', sessionId }).handled();
  expect(await openAi(bob, 'first of all', sessionId)).toBe('You said: first of all');
  expect(textOf(await own.reply(), 0)).toBe('You said: first of all');
  await own.close();
});
