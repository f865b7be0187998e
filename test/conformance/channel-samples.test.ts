import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createServer, type Server as HttpServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { chromium, type Browser } from 'playwright-core';
import { ask, eventually, makeTenant, type TestTenant } from '../support/app';
import type { Frame } from '../support/channel';
import { ended, Server } from '../support/server';

/*
 * The samples that are published for the agent channel, word for word but for the port, against a server as `npm start`
 * starts it: no key, no token.
 */

const CHROMIUM = '/usr/bin/chromium';
const PYTHON = '/usr/bin/python3';
const ANSWER = "This is Parley's built-in demo model (no provider is configured). You said: 你好";

let server: Server;
let rival: TestTenant;

beforeAll(async () => {
  server = await Server.start();
  rival = await makeTenant(server.quickstart.url, server.quickstart.rootKey);
}, 60_000);
afterAll(() => server.remove());

async function sample(name: string): Promise<string> {
  const text = await readFile(join(__dirname, 'samples', name), 'utf8');
  expect(text).toContain('ws://localhost:9527/api/v1/ws');
  return text.replace(':9527', `:${new URL(server.quickstart.url).port}`);
}

/** Runs until the reply's last frame has been printed; what it printed. The samples themselves never end. */
async function printed(command: string, args: string[], last: RegExp): Promise<string> {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  child.on('error', (error) => (output += error.message));
  try {
    await eventually(async () => {
      if (child.exitCode !== null) throw new Error(`${command} ended: ${output}`);
      return last.test(output);
    });
    return output;
  } finally {
    await ended(child, 'SIGKILL');
  }
}

/** Texts, as JavaScript and Python print them. */
const contents = (output: string): string =>
  [...output.matchAll(/content'?: (?:'([^']*)'|"([^"]*)")/g)].map(([, one, other]) => one ?? other).join('');

const dialogues = async (get: TestTenant['get']): Promise<Frame[]> =>
  (await get('/api/copywriting/dialogue/list?pageSize=100')).body.rows as Frame[];
const ofTheDemo: TestTenant['get'] = (path) =>
  ask(server.quickstart.url, 'GET', path, undefined, { 'x-api-key': server.quickstart.apiKey });

it('the JavaScript one in Node, with its own WebSocket', async () => {
  const text = await sample('agent-channel.js.txt');
  const output = await printed(process.execPath, ['-e', text], /done: true/);
  expect(output).toMatch(/^WebSocket connected\nReceived: \{\s+type: 'stream',\s+agentId: 'main',/);
  expect(contents(output)).toBe(ANSWER);
  expect(output).not.toMatch(/error/i);
});

it("the Python one, with Debian's websocket-client", async () => {
  // Needs Debian's package python3-websocket.
  const output = await printed(PYTHON, ['-u', '-c', await sample('agent-channel.py')], /'done': True/);
  expect(output).toMatch(/^Connected\nReceived: \{'type': 'stream', 'agentId': 'main', 'content': /);
  expect(contents(output)).toBe(ANSWER);
  expect(output).not.toContain('Error');
});

describe('the JavaScript one in Chromium', () => {
  let pages: HttpServer;
  let browser: Browser;

  beforeAll(async () => {
    if (!existsSync(CHROMIUM)) throw new Error(`the page needs ${CHROMIUM} (Debian's package chromium)`);
    const page = `<!doctype html><meta charset="utf-8"><script>${await sample('agent-channel.js.txt')}</script>`;
    pages = createServer((_, response) => response.writeHead(200, { 'content-type': 'text/html' }).end(page));
    await new Promise<void>((resolve) => pages.listen(0, '127.0.0.1', resolve));
    browser = await chromium.launch({
      executablePath: CHROMIUM,
      args: ['--no-sandbox', '--host-resolver-rules=MAP evil.example 127.0.0.1'],
    });
  }, 60_000);
  afterAll(async () => {
    await browser.close();
    pages.closeAllConnections();
    await new Promise((resolve) => pages.close(resolve));
  });

  /** What the page at this host has logged, when a line that fits is among it. */
  async function logged(
    host: string,
    last: (line: string, frame: Frame) => boolean,
  ): Promise<[string, Frame?][]> {
    const page = await browser.newPage();
    await page.addInitScript('window.logged = []; console.log = (...args) => void logged.push(args);');
    await page.goto(`http://${host}:${(pages.address() as AddressInfo).port}/`);
    const lines = await eventually(async () => {
      const all = await page.evaluate<[string, Frame?][]>('logged');
      return all.some(([line, frame]) => last(line, frame ?? {})) && all;
    });
    await page.close();
    return lines;
  }

  it.each(['localhost', '127.0.0.1'])('works on a page of %s', async (host) => {
    const lines = await logged(host, (_, { done }) => done === true);
    const frames = lines.filter(([line]) => line === 'Received:').map(([, frame]) => frame!);
    expect(lines[0]).toEqual(['WebSocket connected']);
    expect(frames.map(({ content }) => content as string).join('')).toBe(ANSWER);
    expect(frames.at(-1)).toMatchObject({ type: 'stream', agentId: 'main', content: '', done: true });
  });

  it('is refused on a page from elsewhere', async () => {
    const before = await dialogues(ofTheDemo);
    const lines = await logged('evil.example', (line) => line === 'WebSocket disconnected');
    expect(lines.map(([line]) => line)).not.toContain('WebSocket connected');
    expect(lines.map(([line]) => line)).not.toContain('Received:');
    expect(await dialogues(ofTheDemo)).toEqual(before);
  });
});

it('and all of it was said in the demo tenant alone, by its user `demo`', async () => {
  const text = await sample('agent-channel.js.txt');
  await printed(process.execPath, ['-e', text], /done: true/);
  const [newest] = await dialogues(ofTheDemo);
  expect(newest).toMatchObject({ name: '你好', userId: 'demo' });
  expect(await dialogues(rival.get)).toEqual([]);
});
