import { bootApp, eventually, type TestApp, type TestTenant } from '../support/app';
import { Im, type Frame } from '../support/im-rest';
import { gate, Upstream, type Script } from '../support/upstream';

let app: TestApp;
let upstream: Upstream;
let rival: TestTenant;
let models = 0;

beforeAll(async () => {
  [app, upstream] = await Promise.all([bootApp(), Upstream.start()]);
  rival = await app.tenant({ baseUrl: upstream.url, model: 'of-the-rival' });
});
afterAll(async () => {
  // Whatever happened here, the rival's assistant, of the same slug, was asked nothing.
  expect(upstream.seen('of-the-rival')).toEqual([]);
  await app.close();
  await upstream.close();
});

interface Acme {
  readonly im: Im;
  readonly tenant: TestTenant;
  /** What the assistant's model was asked, request by request. */
  readonly prompts: () => { role: string; content: string }[][];
}

/** A tenant whose assistant `main` answers as the script says; without one it repeats what it is told. */
async function acme(script?: Script): Promise<Acme> {
  const model = `contact-${(models += 1)}`;
  if (script) upstream.on(model, script);
  const tenant = await app.tenant({ baseUrl: upstream.url, model });
  const prompts = () => upstream.seen(model).map(({ body }) => (body as { messages: [] }).messages);
  return { im: new Im(app.url, tenant.apiKey), tenant, prompts };
}

const to = (target: string | number, content: string, type = 'single'): Frame => ({
  type,
  target,
  msg: { msgId: content, content },
});
const summary = (frames: Frame[]) => frames.map(({ source, msg }) => [source, (msg as Frame).content]);

/** A script that answers each of its requests when the test says so. */
function paced() {
  const asked = [gate(), gate(), gate()];
  const go = [gate(), gate(), gate()];
  const script: Script = async (exchange) => {
    const n = exchange.attempt - 1;
    await exchange.piece(`answer ${n + 1} `);
    asked[n]!.open();
    await go[n]!.opened;
    await exchange.piece('done');
    await exchange.done();
  };
  return { script, asked: asked.map(({ opened }) => opened), go: go.map(({ open }) => open) };
}

describe('one-to-one with an assistant', () => {
  it('is the same conversation by slug and by id', async () => {
    const { im, tenant } = await acme();
    const bob = await im.connect('bob');
    const slug = await bob.send(to('agent:main', 'by slug')).next({ type: 'single' });
    expect(slug).toMatchObject({ source: 'agent:main', target: 'bob', msgType: 'text', seq: 2 });
    expect(slug.msg).toMatchObject({ content: 'by slug' });
    const id = await bob.send(to(tenant.assistantId, 'by id')).next({ type: 'single' });
    expect(id).toMatchObject({
      source: tenant.assistantId,
      target: 'bob',
      seq: 4,
      msg: { content: 'by id' },
    });
    const { body } = await im.get('/conversations?userId=bob');
    expect(body.data).toMatchObject([{ kind: 'single', target: tenant.assistantId, lastSeq: 4, unread: 2 }]);
    const history = await im.history(body.data[0].id as string);
    expect(summary(history)).toEqual([
      ['bob', 'by slug'],
      ['agent:main', 'by slug'],
      ['bob', 'by id'],
      [tenant.assistantId, 'by id'],
    ]);
    expect(history[1]!.msg).toMatchObject({ inReplyTo: history[0]!.id as string });
  });

  it('shows the plain dialect the finished answer alone, the richer one how it grows', async () => {
    const pieces = ['👋 he', 'llo ', '中文', '👩‍🚀'];
    const { opened, open } = gate();
    const { im } = await acme(async (exchange) => {
      await exchange.piece(pieces[0]!);
      await opened;
      await exchange.pieces(...pieces.slice(1));
      await exchange.done();
    });
    const [plain, rich] = await Promise.all([
      im.connect('bob'),
      im.connect('bob', { client: 'phone', rich: true }),
    ]);
    const { conversationId } = await rich.send(to('agent:main', 'hi')).next({ type: 'sent' });
    const first = await rich.next({ type: 'stream' });
    expect(first).toEqual({
      type: 'stream',
      conversationId,
      id: expect.stringMatching(/^\d+$/) as string,
      offset: 0,
      content: pieces[0],
      done: false,
    });
    open();
    const answer = await rich.next({ type: 'single', source: 'agent:main' });
    expect(answer).toMatchObject({ id: first.id, conversationId, seq: 2, msg: { content: pieces.join('') } });
    const streamed = rich.of('stream');
    let text = '';
    for (const { id, offset, content } of streamed) {
      expect([id, offset]).toEqual([first.id, text.length]);
      text += content as string;
    }
    expect(text).toBe(pieces.join(''));
    expect(streamed.map(({ done }) => done as boolean)).toEqual([
      ...streamed.slice(1).map(() => false),
      true,
    ]);
    expect(rich.frames.at(-1)).toBe(answer);

    await plain.next({ seq: 2 });
    await im.say('end', 'bob', 'end');
    await plain.next({ source: 'end' });
    expect(plain.frames.map(({ type, source }) => [type, source])).toEqual([
      ['single', 'bob'],
      ['single', 'agent:main'],
      ['single', 'end'],
    ]);
  });

  it('answers one message after the other, each knowing what was said before', async () => {
    const { script, asked, go } = paced();
    const { im, prompts } = await acme(script);
    const bob = await im.connect('bob', { rich: true });
    await bob.send(to('agent:main', 'first')).next({ type: 'sent' });
    await asked[0];
    const { conversationId } = await bob.send(to('agent:main', 'second')).next({ type: 'sent' });
    // Another conversation waits for nobody.
    const cat = await im.connect('cat', { rich: true });
    cat.send(to('agent:main', 'me, too'));
    await asked[1];
    go[1]!();
    await cat.next({ type: 'single', source: 'agent:main' });
    expect(prompts()).toHaveLength(2);
    go[0]!();
    go[2]!();
    await bob.next({ type: 'single', source: 'agent:main', seq: 4 });
    const history = await im.history(conversationId as string);
    expect(summary(history)).toEqual([
      ['bob', 'first'],
      ['bob', 'second'],
      ['agent:main', 'answer 1 done'],
      ['agent:main', 'answer 3 done'],
    ]);
    expect(history.slice(2).map(({ msg }) => (msg as Frame).inReplyTo as string)).toEqual(
      history.slice(0, 2).map(({ id }) => id as string),
    );
    expect(prompts()[2]!.slice(1)).toEqual([
      { role: 'user', content: 'first' },
      { role: 'assistant', content: 'answer 1 done' },
      { role: 'user', content: 'second' },
    ]);
  });

  it("answers what the tenant's server sends in a user's name, a repeated message once", async () => {
    const { im, prompts } = await acme();
    const bob = await im.connect('bob');
    const more = { msg: { msgId: 1, timestamp: 1_700_000_000, content: 'hello' } };
    const first = await im.say('bob', 'agent:main', '', more);
    await bob.next({ source: 'agent:main' });
    const again = await im.say('bob', 'agent:main', '', more);
    expect(again.body).toMatchObject({ id: first.body.id as string, repeated: true });
    await bob.send(to('agent:main', 'and again')).next({ source: 'agent:main', seq: 4 });
    expect(prompts()).toHaveLength(2);
  });

  it('says so when the provider fails, and answers the next message', async () => {
    const { im } = await acme(async (exchange) => {
      if (exchange.attempt === 1) return exchange.fail(400, '{"error":{"message":"very-secret-detail"}}');
      await exchange.piece('fine');
      return exchange.done();
    });
    const bob = await im.connect('bob');
    const failed = await bob.send(to('agent:main', 'one')).next({ type: 'single' });
    expect(failed).toMatchObject({ source: 'agent:main', seq: 2, msg: { status: 'failed' } });
    expect((failed.msg as Frame).content).toMatch(/\w/);
    expect(JSON.stringify(bob.frames)).not.toContain('very-secret');
    const next = await bob.send(to('agent:main', 'two')).next({ type: 'single' });
    expect(next.msg).toMatchObject({ content: 'fine' });
    expect(next.msg).not.toHaveProperty('status');
  });

  it('goes on without the user, who finds the answer later', async () => {
    const { script, asked, go } = paced();
    const { im } = await acme(script);
    const bob = await im.connect('bob');
    bob.send(to('agent:main', 'think long'));
    await asked[0];
    await bob.close();
    go[0]!();
    const { id } = (await im.get('/conversations?userId=bob')).body.data[0] as Frame;
    await eventually(async () => (await im.history(id as string)).length === 2);
    const back = await im.connect('bob');
    expect(await back.next({ source: 'agent:main' })).toMatchObject({
      seq: 2,
      msg: { content: 'answer 1 done' },
    });
  });

  it('is a dialogue on the assistant platform, with the same content', async () => {
    const { im, tenant } = await acme();
    const bob = await im.connect('bob');
    await bob.send(to('agent:main', 'first')).next({ source: 'agent:main' });
    await bob.send(to('agent:main', 'second')).next({ source: 'agent:main', seq: 4 });
    const platform = async (path: string, of = tenant) =>
      (await of.get(`/api/copywriting/${path}`, { 'user-id': 'bob' })).body as Frame;
    const { rows } = (await platform('dialogue/list')) as { rows: Frame[] };
    expect(rows).toMatchObject([{ userId: 'bob', sceneId: tenant.versionId, manageId: tenant.assistantId }]);
    const dialogue = rows[0]!.id as string;
    const messages = (await platform(`message/list/${dialogue}`)).rows as Frame[];
    expect(messages.map(({ role, content }) => [role, content])).toEqual([
      ['user', 'first'],
      ['assistant', 'first'],
      ['user', 'second'],
      ['assistant', 'second'],
    ]);
    // An answer is the same message on both wires.
    expect(messages[3]!.id).toBe(bob.of('single').at(-1)!.id);
    expect(await platform(`scene/user/${rows[0]!.sceneId}`)).toMatchObject({ code: 200 });
    expect(await platform(`message/list/${dialogue}`, rival)).toMatchObject({ code: 404 });
  });

  it('needs a published assistant of this very tenant: 4004', async () => {
    const { im, tenant } = await acme();
    await tenant.post('/api/admin/assistants', { slug: 'draft', name: 'Not yet' });
    const bob = await im.connect('bob');
    for (const target of ['agent:nobody', 'agent:draft', 'agent:'])
      expect(await bob.fails(to(target, target))).toMatchObject({ code: 4004, msgId: target });
    expect((await im.say('bob', 'agent:nobody', 'x')).status).toBe(404);
    // A rival's assistant is no more than a user without a device.
    bob.send(to(rival.assistantId, 'hello?'));
    await bob.send(to('agent:main', 'end')).next({ source: 'agent:main' });
    expect(bob.of('single').map(({ source }) => source as string)).toEqual(['agent:main']);
  });
});

describe('an assistant in a group', () => {
  it('answers a message that mentions it, to everybody, and no other', async () => {
    const { im, prompts } = await acme();
    const [ann, ben] = await Promise.all([
      im.connect('ann', { rich: true, groups: ['crew'] }),
      im.connect('ben', { groups: ['crew'] }),
    ]);
    for (const content of ['main, are you there?', 'mail to me@main.example', '@nobody @mainframe', '@ main'])
      await ann.send(to('crew', content, 'group')).next({ type: 'sent' });
    const asked = 'tell us, @main!';
    const { id, conversationId } = await ann.send(to('crew', asked, 'group')).next({ type: 'sent' });
    const answers = await Promise.all([ann, ben].map((device) => device.next({ source: 'agent:main' })));
    for (const answer of answers) {
      expect(answer).toMatchObject({ type: 'group', target: 'crew', seq: 8 });
      expect(answer.msg).toMatchObject({ content: `ann: ${asked}`, inReplyTo: id as string });
    }
    const streamed = ann.of('stream');
    expect(streamed.map(({ content }) => content as string).join('')).toBe(`ann: ${asked}`);
    expect(streamed[0]).toMatchObject({ conversationId, id: answers[0]!.id as string, offset: 0 });
    await ben.send(to('crew', '@main and me?', 'group')).next({ source: 'agent:main' });
    expect(prompts().map((messages) => messages.at(-1)!.content)).toEqual([
      `ann: ${asked}`,
      'ben: @main and me?',
    ]);
    expect(prompts()[1]!.map(({ role }) => role)).toEqual(['system', 'user', 'assistant', 'user']);
  });

  it('is mentioned in capitals, too: keyboards begin sentences with them', async () => {
    const { im } = await acme();
    const ann = await im.connect('ann', { rich: true, groups: ['crew'] });
    await ann.send(to('crew', '@Main?', 'group')).next({ type: 'sent' });
    await ann.send(to('crew', '@main!', 'group')).next({ type: 'sent' });
    expect(await ann.next({ source: 'agent:main' })).toMatchObject({ msg: { content: 'ann: @Main?' } });
  });

  it('is not asked by who is not in it', async () => {
    const { im, prompts } = await acme();
    await im.connect('ann', { groups: ['crew'] });
    const outsider = await im.connect('eve');
    expect(await outsider.fails(to('crew', '@main hello', 'group'))).toMatchObject({ code: 4004 });
    await outsider.send(to('agent:main', 'end')).next({ source: 'agent:main' });
    expect(prompts().map((messages) => messages.at(-1)!.content)).toEqual(['end']);
  });
});

describe('a turn that another wire begins in the dialogue of a conversation', () => {
  const dialogueOf = async (tenant: TestTenant): Promise<string> => {
    const { body } = await tenant.get(`/api/copywriting/dialogue/list?manageId=${tenant.assistantId}`);
    expect(body.rows).toHaveLength(1);
    return (body.rows as { id: string }[])[0]!.id;
  };

  it('is told there, live and in its history, once, in the order it was said', async () => {
    const { im, tenant, prompts } = await acme();
    const bob = await im.connect('bob');
    const rich = await im.connect('bob', { client: 'tablet', rich: true });
    await bob.send(to('agent:main', 'from IM')).next({ type: 'single' });
    const id = await dialogueOf(tenant);
    const sse = await tenant.send({ id, speechUserDialogueMessage: { content: 'from the server' } });
    await sse.end();
    const said = await bob.next({ type: 'single' });
    expect(said).toMatchObject({ source: 'bob', target: 'agent:main', msg: { content: 'from the server' } });
    const answer = await bob.next({ type: 'single' });
    expect(answer).toMatchObject({
      source: 'agent:main',
      msg: { content: 'from the server', inReplyTo: expect.any(String) },
    });
    await rich.next({ type: 'stream', done: true });
    const third = await bob.send(to('agent:main', 'back on IM')).next({ type: 'single' });
    expect(third).toMatchObject({ seq: 6, msg: { content: 'back on IM' } });
    // The model was told all of it, each once.
    expect(
      prompts()
        .at(-1)!
        .filter(({ role }) => role === 'user')
        .map(({ content }) => content),
    ).toEqual(['from IM', 'from the server', 'back on IM']);
    const { body } = await im.get('/conversations?userId=bob');
    expect(summary(await im.history(body.data[0].id as string)).map(([, content]) => content)).toEqual([
      'from IM',
      'from IM',
      'from the server',
      'from the server',
      'back on IM',
      'back on IM',
    ]);
  });

  it('is told with what it has when it is stopped or refused twice by one key', async () => {
    const { script, asked, go } = paced();
    const { im, tenant } = await acme(script);
    const bob = await im.connect('bob');
    bob.send(to('agent:main', 'one'));
    await asked[0];
    go[0]!();
    await bob.next({ type: 'single' });
    const id = await dialogueOf(tenant);
    const headers = { 'idempotency-key': 'twice' };
    const body = { id, speechUserDialogueMessage: { content: 'two' } };
    const [first, again] = await Promise.all([
      tenant.send(body, { headers }),
      tenant.send(body, { headers }),
    ]);
    await asked[1];
    await first.has(2);
    expect((await tenant.get(`/api/copywriting/dialogue/sse/close/${id}`)).status).toBe(200);
    await Promise.all([first.end(), again.end()]);
    expect(await bob.next({ type: 'single' })).toMatchObject({ msg: { content: 'two' } });
    expect(await bob.next({ type: 'single' })).toMatchObject({
      msg: { content: 'answer 2 ', status: 'stopped' },
    });
    const rivals = new Im(app.url, rival.apiKey);
    expect((await rivals.get('/conversations?userId=bob')).body.data).toEqual([]);
  });
});
