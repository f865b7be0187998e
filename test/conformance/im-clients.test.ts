import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';
import { bootApp, eventually, type TestApp, type TestTenant } from '../support/app';
import { ImClient, userToken, type Frame } from '../support/im-client';

/*
 * Clients of others, each written the way the IM product's published sample is: the plain dialect over whatever
 * WebSocket the platform brings, a frame sent as JSON text once the socket is open, each message parsed on receipt.
 */

const CHROMIUM = '/usr/bin/chromium';
const PYTHON = '/usr/bin/python3';

/** Of the browser: the page's address ends in `#<the socket's>`. */
const PAGE = `<!doctype html><meta charset="utf-8"><title>chat</title><script>
  window.received = [];
  const socket = new WebSocket(decodeURIComponent(location.hash.slice(1)));
  socket.onopen = () => { window.state = 'open'; };
  socket.onclose = (event) => { window.state = 'closed with ' + event.code; };
  socket.onmessage = (res) => { window.received.push(JSON.parse(res.data)); };
  window.say = (data) => socket.send(JSON.stringify(data));
</script>`;

/** Of Debian's python3-websocket. What it is to say comes line by line; what it receives it writes line by line. */
const PYTHON_CLIENT = `
import json, sys, threading, websocket

def say(ws):
    for line in sys.stdin:
        ws.send(json.dumps(json.loads(line)))
    ws.close()

def on_open(ws):
    print('"open"', flush=True)
    threading.Thread(target=say, args=(ws,), daemon=True).start()

def on_message(ws, message):
    print(json.dumps(json.loads(message)), flush=True)

def on_error(ws, error):
    print(error, file=sys.stderr, flush=True)

websocket.WebSocketApp(sys.argv[1], on_open=on_open, on_message=on_message, on_error=on_error).run_forever()
`;

/** Of Node's own WebSocket. */
const NODE_CLIENT = `
import { createInterface } from 'node:readline';
const socket = new WebSocket(process.argv[1]);
socket.onopen = () => {
  console.log('"open"');
  createInterface({ input: process.stdin })
    .on('line', (line) => socket.send(JSON.stringify(JSON.parse(line))))
    .on('close', () => socket.close());
};
socket.onmessage = (res) => console.log(JSON.stringify(JSON.parse(res.data)));
socket.onerror = (event) => console.error(event.message ?? 'error');
socket.onclose = () => process.exit();
`;

interface Client {
  say(frame: Frame): Promise<void>;
  received(): Promise<Frame[]>;
  stop(): Promise<void>;
}

async function otherProcess(name: string, needs: string, command: string, args: string[]): Promise<Client> {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'] });
  const lines: unknown[] = [];
  let errors = '';
  createInterface({ input: child.stdout }).on('line', (line) => lines.push(JSON.parse(line)));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (errors += text));
  // Whoever writes to one that has ended learns of it by what it never receives.
  child.stdin.on('error', () => undefined);
  const ended = new Promise<void>((resolve) => {
    child.once('close', () => resolve());
    child.once('error', (error) => {
      errors += error.message;
      resolve();
    });
  });
  const broken = ended.then(() => {
    throw new Error(`${name} did not connect (it needs ${needs}): ${errors}`);
  });
  await Promise.race([eventually(async () => lines[0] === 'open'), broken]);
  broken.catch(() => undefined);
  return {
    say: async (frame) => void child.stdin.write(`${JSON.stringify(frame)}\n`),
    received: async () => lines.slice(1) as Frame[],
    stop: async () => {
      child.stdin.end();
      const timer = setTimeout(() => child.kill('SIGKILL'), 5_000);
      await ended;
      clearTimeout(timer);
    },
  };
}

async function browserPage(socketUrl: string): Promise<Client> {
  if (!existsSync(CHROMIUM)) throw new Error(`the page needs ${CHROMIUM} (Debian's package chromium)`);
  const server = createServer((_, response) =>
    response.writeHead(200, { 'content-type': 'text/html' }).end(PAGE),
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox'] });
  const stop = async (): Promise<void> => {
    await browser.close();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  };
  try {
    const page = await browser.newPage();
    const { port } = server.address() as AddressInfo;
    await page.goto(`http://127.0.0.1:${port}/#${encodeURIComponent(socketUrl)}`);
    await page.waitForFunction('window.state');
    const state = await page.evaluate('window.state');
    if (state !== 'open') throw new Error(`the page did not connect: ${String(state)}`);
    return {
      say: async (frame) => void (await page.evaluate(`say(${JSON.stringify(frame)})`)),
      received: () => page.evaluate('received'),
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

const USERS = [1, 2, 3] as const;
const NAMES = ['the page in Chromium', "Python's websocket-client", "Node's WebSocket"] as const;

let app: TestApp;
let acme: TestTenant;
const clients: Client[] = [];
const rivals: ImClient[] = [];

const socketUrl = (token: string): string => `${app.url.replace('http', 'ws')}/chat?token=${token}`;

beforeAll(async () => {
  app = await bootApp();
  const tenants = await Promise.all([app.tenant(), app.tenant()]);
  [acme] = tenants;
  const rival = tenants[1];
  // A rival's users of the same ids, in a group of the same id.
  for (const user of USERS) {
    const token = await userToken(app.url, rival.apiKey, user, { groups: ['team'] });
    rivals.push(new ImClient({ url: app.url, token, user, rich: false }));
  }
  // One after another, so that everybody's joining has a known number.
  const urls: string[] = [];
  for (const user of USERS)
    urls.push(socketUrl(await userToken(app.url, acme.apiKey, user, { groups: ['team'] })));
  const [page, python, node] = urls as [string, string, string];
  clients.push(await browserPage(page));
  clients.push(
    await otherProcess(NAMES[1], `${PYTHON} with python3-websocket`, PYTHON, ['-c', PYTHON_CLIENT, python]),
  );
  clients.push(
    await otherProcess(NAMES[2], 'Node 22 or later', process.execPath, [
      '--input-type=module',
      '-e',
      NODE_CLIENT,
      node,
    ]),
  );
}, 60_000);
afterAll(async () => {
  await Promise.all([...clients.map((client) => client.stop()), ...rivals.map((client) => client.stop())]);
  await app.close();
});

/** What is expected, in any order: frames of different conversations may overtake each other. */
const sorted = (frames: readonly Frame[]): string[] => frames.map((frame) => JSON.stringify(frame)).sort();

/** Without the server's id, which must be there and no number: JavaScript's are too short for it. */
function withoutId(frame: Frame): Frame {
  const { id, ...rest } = frame;
  expect(id).toMatch(/^[1-9]\d{10,18}$/);
  return rest;
}

/** Everything that each has received since it was last asked, when that is as much as is expected. */
const taken = [0, 0, 0];
async function next(index: number, count: number): Promise<Frame[]> {
  const from = taken[index]!;
  const all = await eventually(async () => {
    const received = await clients[index]!.received();
    return received.length >= from + count && received;
  });
  taken[index] = all.length;
  return all.slice(from);
}

it('each finds the members of its group joined, itself included, and nothing else', async () => {
  for (const [index, user] of USERS.entries()) {
    const joins = USERS.slice(index).map((source) => ({ type: 'join', source, target: 'team', seq: source }));
    const frames = await next(index, joins.length);
    expect([NAMES[user - 1], frames.map(withoutId)]).toEqual([NAMES[user - 1], joins]);
  }
});

it('each sends to each: what arrives is exactly what was sent, and id and seq', async () => {
  // The sample's frame word for word, and one of everything that JSON has.
  const plain = (source: unknown, target: unknown): Frame => ({
    type: 'single',
    source,
    target,
    msg: { msgId: 1, timestamp: '1611065986' },
  });
  const rich = (source: unknown, target: unknown): Frame => ({
    type: 'single',
    source: String(source),
    target,
    msgType: 'map',
    msg: {
      msgId: `m-${String(source)}`,
      timestamp: 1_611_065_986_123,
      content: 'héllo "你好" 😀 \\ \n\t </script>',
      place: { lat: 52.5163, lon: -13.377701, tags: [null, true, false, [], {}, 0, ''] },
    },
    extra: ['any', { json: 1.5 }],
  });
  const expected: Frame[][] = [[], [], []];
  for (const [index, source] of USERS.entries()) {
    for (const target of USERS.filter((user) => user !== source)) {
      for (const make of [plain, rich]) {
        const frame = make(source, target);
        expected[target - 1]!.push(frame);
        await clients[index]!.say(frame);
      }
    }
  }
  const ids = new Set<string>();
  for (const [index, wanted] of expected.entries()) {
    const frames = await next(index, wanted.length);
    const stripped = frames.map((frame) => {
      const { seq, ...rest } = withoutId(frame);
      expect(Number.isSafeInteger(seq)).toBe(true);
      ids.add(frame.id as string);
      return rest;
    });
    expect([NAMES[index], ...sorted(stripped)]).toEqual([NAMES[index], ...sorted(wanted)]);
    // In each conversation two of one's own and two of the other's: the other's in the order they were sent.
    for (const peer of USERS.filter((user) => user !== index + 1)) {
      const seqs = frames
        .filter(({ source }) => String(source) === String(peer))
        .map(({ seq }) => seq as number);
      expect(seqs).toEqual(seqs.toSorted((a, b) => a - b));
      expect(seqs.every((seq) => seq >= 1 && seq <= 4)).toBe(true);
    }
  }
  expect(ids.size).toBe(12);
});

it('a group of the three: all the others receive each message, in one order', async () => {
  for (const [index, source] of USERS.entries()) {
    for (const msgId of [10, 11])
      await clients[index]!.say({
        type: 'group',
        source,
        target: 'team',
        msg: { msgId, timestamp: '1611065987', content: `${NAMES[index]} ${msgId}` },
      });
  }
  const seen = new Map<number, string>();
  for (const [index, user] of USERS.entries()) {
    const frames = await next(index, 4);
    expect(frames).toHaveLength(4);
    const others = USERS.filter((other) => other !== user);
    expect(
      sorted(frames.map(({ source, msg }) => ({ source, msgId: (msg as Frame).msgId as unknown }))),
    ).toEqual(sorted(others.flatMap((source) => [10, 11].map((msgId) => ({ source, msgId })))));
    const seqs = frames.map(({ seq }) => seq as number);
    expect(seqs).toEqual(seqs.toSorted((a, b) => a - b));
    for (const frame of frames) {
      const { seq, ...rest } = withoutId(frame);
      expect(rest).toEqual({
        type: 'group',
        source: frame.source,
        target: 'team',
        msg: {
          msgId: frame.msg.msgId,
          timestamp: '1611065987',
          content: `${NAMES[frame.source - 1]} ${frame.msg.msgId}`,
        },
      });
      expect(seen.get(seq as number) ?? frame.id).toBe(frame.id);
      seen.set(seq as number, frame.id as string);
    }
  }
  // After the three entries of the joinings.
  expect([...seen.keys()].sort((a, b) => a - b)).toEqual([4, 5, 6, 7, 8, 9]);
});

it('tells the rest when one leaves, and what is wrong the sender alone', async () => {
  await clients[2]!.say({ type: 'leave', source: 3, target: 'team' });
  for (const index of [0, 1]) {
    const frames = await next(index, 1);
    expect(frames.map(withoutId)).toEqual([{ type: 'leave', source: 3, target: 'team', seq: 10 }]);
  }
  await clients[2]!.say({
    type: 'group',
    source: 3,
    target: 'team',
    msg: { msgId: 12, content: 'still here?' },
  });
  await clients[1]!.say({ type: 'single', source: 1, target: 3, msg: { msgId: 13 } });
  await clients[0]!.say({ type: 'single', source: 1, msg: { msgId: 14 } });
  expect(await next(2, 1)).toMatchObject([{ type: 'error', code: 4004, msgId: 12 }]);
  expect(await next(1, 1)).toMatchObject([{ type: 'error', code: 4003, msgId: 13 }]);
  expect(await next(0, 1)).toMatchObject([
    { type: 'error', code: 4000, msgId: 14, message: expect.stringContaining('target') as string },
  ]);
});

it("a rival's users of the same ids, in a group of the same id, have received nothing of it", async () => {
  const [one, two, three] = rivals as [ImClient, ImClient, ImClient];
  // A last message each, behind which nothing is on its way any more.
  one.say('single', 2, 'end');
  two.say('single', 3, 'end');
  three.say('single', 1, 'end');
  for (const [index, rival] of rivals.entries()) {
    const user = index + 1;
    await rival.waitFor(({ frames }) => frames.some(({ type }) => type === 'single'));
    expect(rival.frames.filter(({ type }) => type !== 'join')).toMatchObject([
      { type: 'single', source: user === 1 ? 3 : user - 1, target: user, msg: { content: 'end' }, seq: 1 },
    ]);
    expect(rival.frames.filter(({ type }) => type === 'join')).toHaveLength(4 - user);
  }
  // And nobody of acme's got anything more.
  for (const [index, client] of clients.entries())
    expect(await client.received()).toHaveLength(taken[index]!);
});
