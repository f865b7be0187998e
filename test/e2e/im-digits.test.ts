import { ask, bootApp, eventually, type Answer, type TestApp, type TestTenant } from '../support/app';
import { Im, type Frame } from '../support/im-rest';

/** Numbers that a double does not hold, on every path. A body is written as text: `JSON.stringify` would round it. */

let app: TestApp;
let acme: TestTenant;
let im: Im;
let rival: Im;

beforeAll(async () => {
  app = await bootApp();
  const tenants = await Promise.all([app.tenant(), app.tenant()]);
  acme = tenants[0];
  [im, rival] = tenants.map(({ apiKey }) => new Im(app.url, apiKey)) as [Im, Im];
});
afterAll(() => app.close());

const BIG = '9007199254740993';
const ROUNDED = '9007199254740992';

const call = (method: string, path: string, body?: string): Promise<Answer> =>
  ask(app.url, method, `/api/v1/im${path}`, body, { 'x-api-key': acme.apiKey });
const post = (path: string, body: string): Promise<Answer> => call('POST', path, body);

describe('what is said', () => {
  it('keeps every digit over REST, and is the same message over the socket', async () => {
    const msg = `{"msgId":"m-1","order":${BIG},"price":1.10,"zero":-0,"nested":[{"n":1e400}]}`;
    const extra = `[${BIG},0.1000000000000000055511151231257827]`;
    const sent = await post(
      '/messages',
      `{"type":"single","source":"dig","target":"ger","msg":${msg},"extra":${extra}}`,
    );
    expect([sent.status, sent.body.repeated]).toEqual([200, false]);
    const { text } = await call('GET', `/conversations/${sent.body.conversationId}/messages`);
    expect(text).toContain(`"msg":${msg},"extra":${extra}`);

    const device = await im.connect('dig', { rich: true });
    device.sendText(`{"type":"single","source":"dig","target":"ger","msg":${msg},"extra":${extra}}`);
    expect(await device.next({ type: 'sent' })).toMatchObject({ msgId: 'm-1', id: sent.body.id, seq: 1 });
    device.sendText(
      `{"type":"single","source":"dig","target":"ger","msg":${msg.replace(BIG, ROUNDED)},"extra":${extra}}`,
    );
    expect(await device.next({ type: 'error' })).toMatchObject({ code: 4006 });
    const other = await post(
      '/messages',
      `{"type":"single","source":"dig","target":"ger","msg":${msg.replace('1.10', '1.1')},"extra":${extra}}`,
    );
    expect(other.status).toBe(409);
  });

  it('keeps them in a broadcast', async () => {
    const msg = `{"msgId":"b-1","order":${BIG}}`;
    const { status, body } = await post('/broadcasts', `{"users":["br-1",${BIG}],"msg":${msg}}`);
    expect(status).toBe(202);
    await eventually(async () => (await im.get(`/broadcasts/${body.id}`)).body.status === 'finished');
    const alone = await post('/messages', `{"type":"single","target":"br-1","msg":${msg}}`);
    expect([alone.status, alone.body.repeated]).toEqual([200, true]);
    // By a number or by its digits, it is one user.
    const toNumber = await post('/messages', `{"type":"single","target":"${BIG}","msg":${msg}}`);
    expect(toNumber.body.repeated).toBe(true);
    const { text } = await call('GET', `/conversations/${toNumber.body.conversationId}/messages`);
    expect(text).toContain(`"target":${BIG}`);
    expect(text).toContain(`"msg":${msg}`);
  });

  it('is measured with its digits', async () => {
    const long = `0.${'1'.repeat(66_000)}`;
    for (const part of [`"msg":{"n":${long}}`, `"msg":{},"extra":${long}`]) {
      const answer = await post('/messages', `{"type":"single","target":"ger",${part}}`);
      expect(answer).toMatchObject({ status: 400, body: { code: 'BAD_INPUT' } });
    }
  });
});

describe("a group's attributes", () => {
  it('keep every digit, also where something else is changed', async () => {
    const made = await post('/groups', `{"groupId":"digits","attributes":{"ship":${BIG},"rate":0.10}}`);
    expect([made.status, made.text]).toEqual([201, expect.stringContaining(`{"rate":0.10,"ship":${BIG}}`)]);
    await call('PATCH', '/groups/digits', '{"name":"renamed"}');
    expect((await call('GET', '/groups/digits')).text).toContain(`"ship":${BIG}`);
    const changed = await call('PATCH', '/groups/digits', `{"attributes":{"ship":-${BIG}}}`);
    expect(changed.text).toContain(`"ship":-${BIG}`);
    expect((await call('GET', '/groups?limit=200')).text).toContain(`"ship":-${BIG}`);
    expect((await rival.get('/groups/digits')).status).toBe(404);
  });

  it.each(['1e309', '1e-400', '-1e999'])('with %s are refused by name', async (number) => {
    const answer = await post('/groups', `{"groupId":"digits-${number}","attributes":{"n":${number}}}`);
    expect(answer).toMatchObject({ status: 400, body: { code: 'BAD_INPUT' } });
    expect(answer.body.error).toMatch(/^attributes: .*string/);
    expect((await call('GET', `/groups/digits-${number}`)).status).toBe(404);
  });
});

describe('an id', () => {
  it('is the same as 5, 5.0, 50e-1 and "5": over REST, in frames and in tokens', async () => {
    const to = async (source: string, target: string) =>
      (await post('/messages', `{"type":"single","source":${source},"target":${target},"msg":{}}`)).body
        .conversationId as string;
    const first = await to('5', '6');
    for (const [source, target] of [
      ['5.0', '"6"'],
      ['"5"', '6.0'],
      ['50e-1', '6'],
    ] as const)
      expect([source, await to(source, target)]).toEqual([source, first]);

    const tokens: Frame[] = [];
    for (const id of ['5', '5.0', '"5"'])
      tokens.push(
        (await post('/tokens', `{"userId":${id},"client":"c${tokens.length}"}`)).body.data as Frame,
      );
    const devices = await Promise.all(
      tokens.map(({ token }) => im.connect(5, { token: token as string, rich: true })),
    );
    const sources = ['5', '5.0', '"5"'];
    for (const [index, device] of devices.entries()) {
      device.sendText(
        `{"type":"single","source":${sources[index]},"target":6.0,"msg":{"msgId":"d${index}"}}`,
      );
      expect(await device.next({ type: 'sent' })).toMatchObject({ conversationId: first });
    }
    const members = await post('/groups', `{"groupId":"five","owner":5,"members":[5.0,"5",6,6.0]}`);
    expect(members.body).toMatchObject({ memberCount: 2 });
    const added = await post('/groups/five/members', `{"users":[5.0,7.0,"7"]}`);
    expect(added.body).toEqual({ added: 1, memberCount: 3 });
  });

  it('has every digit', async () => {
    const { body } = await post('/tokens', `{"userId":${BIG}}`);
    const device = await im.connect(BIG, { token: body.data.token as string, rich: true });
    device.sendText(`{"type":"single","source":${BIG},"target":"x","msg":{"msgId":1}}`);
    await device.next({ type: 'sent' });
    device.sendText(`{"type":"single","source":${ROUNDED},"target":"x","msg":{"msgId":2}}`);
    expect(await device.next({ type: 'error' })).toMatchObject({ code: 4003 });
    const made = await post('/groups', `{"groupId":"bigs","owner":${BIG},"members":[${ROUNDED}]}`);
    expect(made.body.memberCount).toBe(2);
  });

  it.each(['5.5', `${BIG}.5`, '1e-400', '1e128', '1e400', 'true'])(
    'that is %s is refused by name',
    async (id) => {
      const named = async (path: string, body: string, field: string) => {
        const answer = await post(path, body);
        expect([path, answer.status]).toEqual([path, 400]);
        expect(answer.body.error).toMatch(new RegExp(`^${field}\\b`));
      };
      await named('/tokens', `{"userId":${id}}`, 'userId');
      await named('/messages', `{"type":"single","source":${id},"target":"x","msg":{}}`, 'source');
      await named('/messages', `{"type":"single","target":${id},"msg":{}}`, 'target');
      await named('/broadcasts', `{"users":["x",${id}],"msg":{}}`, 'users');
      await named('/groups', `{"groupId":"bad","owner":${id}}`, 'owner');
      await named('/groups', `{"groupId":"bad","members":[${id}]}`, 'members');
      await named('/groups/five/members', `{"users":[${id}]}`, 'users');
      expect((await call('GET', '/groups/bad')).status).toBe(404);
      const device = await im.connect('odd', { rich: true });
      for (const frame of [
        `{"type":"single","source":"odd","target":${id},"msg":{"msgId":1}}`,
        `{"type":"join","source":"odd","target":${id}}`,
        `{"type":"typing","target":${id},"kind":"single"}`,
        `{"type":"watch","users":["a",${id}]}`,
      ]) {
        device.sendText(frame);
        expect(await device.next({ type: 'error' })).toMatchObject({ code: 4000 });
      }
      await device.close();
    },
  );
});
