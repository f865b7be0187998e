import { eventually } from '../support/app';
import { Im, type Frame } from '../support/im-rest';
import { Server } from '../support/server';
import { gate, Upstream } from '../support/upstream';

let upstream: Upstream;
beforeAll(async () => {
  upstream = await Upstream.start();
});
afterAll(() => upstream.close());

const provider = () => ({ OPENAI_BASE_URL: upstream.url, OPENAI_API_KEY: 'x', OPENAI_MODEL: 'contact' });
const imOf = ({ quickstart: { url, apiKey } }: Server): Im => new Im(url, apiKey);

it("killed in the middle of an assistant's answer: the conversation gets it once, as far as it came, and goes on", async () => {
  const said = gate();
  upstream.on('contact', async (exchange) => {
    if (exchange.attempt === 1) {
      await exchange.pieces('this ', 'much ', 'was said');
      said.open();
      return;
    }
    await exchange.piece('and on');
    await exchange.done();
  });
  let server = await Server.start(provider());
  try {
    const bob = await imOf(server).connect('bob', { rich: true });
    const { id, conversationId } = await bob
      .send({ type: 'single', target: 'agent:main', msg: { msgId: 1, content: 'tell me' } })
      .next({ type: 'sent' });
    await said.opened;
    await bob.next(
      () =>
        bob
          .of('stream')
          .map(({ content }) => content as string)
          .join('') === 'this much was said',
    );
    // Promised is a checkpoint every 2 s; what was said before it is kept.
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    await server.end('SIGKILL');

    server = await Server.start(provider(), server.dataDir);
    const im = imOf(server);
    const answers = async (): Promise<Frame[]> => (await im.history(conversationId as string)).slice(1);
    const [answer] = await eventually(async () => {
      const found = await answers();
      return found.length > 0 && found;
    }, 20_000);
    expect(answer).toMatchObject({
      source: 'agent:main',
      target: 'bob',
      seq: 2,
      msg: { content: 'this much was said', status: 'interrupted', inReplyTo: id as string },
    });

    const back = await im.connect('bob', { rich: true });
    expect(await back.next({ source: 'agent:main' })).toMatchObject({ id: answer!.id as string, seq: 2 });
    back.send({ type: 'single', target: 'agent:main', msg: { msgId: 2, content: 'go on' } });
    expect(await back.next({ source: 'agent:main' })).toMatchObject({ seq: 4, msg: { content: 'and on' } });
    expect((await answers()).map(({ source }) => source as string)).toEqual([
      'agent:main',
      'bob',
      'agent:main',
    ]);
    expect(upstream.seen('contact')).toHaveLength(2);
    expect(upstream.seen('contact')[1]!.body.messages.slice(1)).toEqual([
      { role: 'user', content: 'tell me' },
      { role: 'assistant', content: 'this much was said' },
      { role: 'user', content: 'go on' },
    ]);
  } finally {
    await server.remove();
  }
}, 90_000);
