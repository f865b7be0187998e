import { createHmac, timingSafeEqual } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runInNewContext } from 'node:vm';
import { Quickstart } from '../../src/quickstart';
import { ask, bootApp, eventually, type TestApp } from '../support/app';
import { Channels, Devices, runScript, within } from '../support/doc-clients';
import {
  eventsOf,
  examplesOf,
  expectEvents,
  fill,
  parseCurl,
  parseRequest,
  shape,
  valueAt,
  type Example,
  type ParsedRequest,
} from '../support/doc-examples';
import { Im, Receiver, type Frame } from '../support/im-rest';

/** The examples of docs/protocols and of README.md: each page's are run in order, on a server fresh from its first start. */

/** Where the pages say that the server is. */
const PRINTED_HOST = /\b(localhost|127\.0\.0\.1):9527\b/g;

/** One page's examples, with what earlier ones have brought. */
class Page {
  readonly devices: Devices;
  readonly channels: Channels;
  private deliveries = 0;

  constructor(
    private readonly url: string,
    private readonly values: Record<string, string>,
    private readonly receiver: Receiver,
  ) {
    this.devices = new Devices(new Im(url, values.apiKey!));
    this.channels = new Channels(url);
  }

  async run(example: Example): Promise<void> {
    const from = await this.play(example);
    for (const [as, at] of example.captures) this.values[as] = valueAt(from, at);
  }

  nothingMore(): void {
    this.devices.nothingMore();
    this.channels.nothingMore();
  }

  async close(): Promise<void> {
    await Promise.all([this.devices.closeAll(), this.channels.closeAll()]);
  }

  private play({ kind, text, status, answer, inTheEnd }: Example): unknown {
    switch (kind) {
      case 'request': {
        const asked = parseRequest(fill(text, this.values));
        return inTheEnd ? this.inTheEnd(asked, status, answer) : this.request(asked, status, answer);
      }
      case 'curl':
        return this.request(parseCurl(text, this.env), status, answer);
      case 'script':
        return this.script(text, answer);
      case 'frames':
        return this.frames(this.devices, text);
      case 'channel':
        return this.frames(this.channels, text);
      case 'delivery':
        return this.delivery(text);
      case 'verify':
        return this.verify(text);
    }
  }

  private get env() {
    return { PARLEY_API_KEY: this.values.apiKey!, OPENAI_API_KEY: '', OPENAI_BASE_URL: '' };
  }

  private async script(text: string, printed: string): Promise<void> {
    const code = text.replace(PRINTED_HOST, this.url.replace('http://', ''));
    expect(await runScript(code, this.env)).toBe(printed);
  }

  private async request(asked: ParsedRequest, status: number, answer: string): Promise<unknown> {
    const { method, path, headers, body } = asked;
    const got = await ask(this.url, method, path, body, headers);
    try {
      expect(got.status).toBe(status);
      const stream = got.headers['content-type']?.startsWith('text/event-stream') === true;
      const value: unknown = stream ? eventsOf(got.text) : got.body;
      if (stream) expectEvents(value as unknown[], eventsOf(answer));
      else if (value === undefined) expect(got.text.trim()).toBe(answer);
      else if (answer !== '…') expect(shape(value)).toEqual(shape(JSON.parse(answer)));
      return stream ? (value as { data: unknown }[]).map(({ data }) => data) : value;
    } catch (error) {
      throw new Error(`${(error as Error).message}\n${got.text.slice(0, 2_000)}`, { cause: error });
    }
  }

  /** Asked again until the answer is the printed one. */
  private async inTheEnd(asked: ParsedRequest, status: number, answer: string): Promise<unknown> {
    let last: unknown;
    const found = await eventually(async () => {
      try {
        return { value: await this.request(asked, status, answer) };
      } catch (error) {
        last = error;
        return null;
      }
    }).catch(() => {
      throw last;
    });
    return found.value;
  }

  private async frames(clients: Devices | Channels, text: string): Promise<Frame[]> {
    const came: Frame[] = [];
    for (const line of text.trim().split('\n')) {
      const frame = await clients.play(fill(line, this.values)).catch((error: unknown) => {
        throw new Error(`${line}: ${(error as Error).message}`, { cause: error });
      });
      if (frame) came.push(frame);
    }
    return came;
  }

  /** The next one that the page's server was sent. */
  private async delivery(text: string): Promise<unknown> {
    this.deliveries += 1;
    const came = (await within(this.receiver.has(this.deliveries), 'a delivery'))[this.deliveries - 1]!;
    const { headers, body } = parseRequest(text);
    const printed = Object.keys(headers).map((name) => [name, came.headers[name]] as const);
    const clockless = ({ 'parley-timestamp': time, ...rest }: Record<string, unknown>) => {
      expect(time).toMatch(/^\d{10}$/);
      return rest;
    };
    expect(shape(clockless(Object.fromEntries(printed)))).toEqual(shape(clockless(headers)));
    expect(shape(came.body)).toEqual(shape(JSON.parse(body!)));
    return came.body;
  }

  /** The page's own function, on what has been delivered. */
  private verify(text: string): void {
    const code = text.replace(/^import .*$/gm, '');
    const isFromParley = runInNewContext(`${code}; isFromParley`, {
      createHmac,
      timingSafeEqual,
      Buffer,
    }) as (secret: string, headers: unknown, body: string) => boolean;
    const { headers, text: body } = this.receiver.received.at(-1)!;
    expect(isFromParley(this.values.webhookSecret!, headers, body)).toBe(true);
    expect(isFromParley(this.values.webhookSecret!, headers, `${body} `)).toBe(false);
    expect(isFromParley(this.values.webhookSecret!, { ...headers, 'parley-timestamp': '1' }, body)).toBe(
      false,
    );
  }
}

describe.each([
  ['README.md', 2],
  ['docs/protocols/assistant-platform.md', 5],
  ['docs/protocols/admin.md', 5],
  ['docs/protocols/im.md', 5],
  ['docs/protocols/agent-channel.md', 5],
  ['docs/protocols/openai.md', 5],
])('the examples of %s', (name, atLeast) => {
  let app: TestApp;
  let dataDir: string;
  let examples: Example[];
  let page: Page | undefined;

  beforeAll(async () => {
    examples = examplesOf(await readFile(join(__dirname, '../..', name), 'utf8'));
    expect(examples.length).toBeGreaterThanOrEqual(atLeast);
    dataDir = await mkdtemp(join(tmpdir(), 'parley-docs-'));
    app = await bootApp({ PARLEY_DATA_DIR: dataDir });
    const quickstart = await app.app.nest.get(Quickstart).prepare(app.url, app.rootKey);
    const receiver = await Receiver.start();
    page = new Page(app.url, { ...quickstart, receiver: receiver.url }, receiver);
  });
  afterAll(async () => {
    await page?.close();
    await app.close();
    await rm(dataDir, { recursive: true, force: true });
  });

  it('answer as printed', async () => {
    for (const example of examples) {
      await page!.run(example).catch((error: unknown) => {
        throw new Error(`${example.title}: ${(error as Error).message}`, { cause: error });
      });
    }
    page!.nothingMore();
  }, 120_000);
});
