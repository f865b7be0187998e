import { createHmac, timingSafeEqual } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { runInNewContext } from 'node:vm';
import { Quickstart } from '../../src/quickstart';
import { ask, bootApp, type TestApp } from '../support/app';
import { Device, Im, Receiver, type Frame } from '../support/im-rest';

/** The examples of docs/protocols: each page's are run in order, on a server fresh from its first start. */

interface Example {
  readonly title: string;
  readonly kind: 'request' | 'frames' | 'delivery' | 'verify';
  readonly text: string;
  readonly status: number;
  /** Name in later examples, to the path of the value in this answer. */
  readonly captures: readonly (readonly [name: string, path: string])[];
  readonly answer: string;
}

const FENCED = '```\\w+\\n([\\s\\S]*?)```';
const EXAMPLE = new RegExp(
  `<!-- example -->\\s*${FENCED}\\s*<!-- answer: (\\d{3})(.*?)-->\\s*${FENCED}|<!-- (frames|delivery|verify)(.*?)-->\\s*${FENCED}`,
  'g',
);
const MARK = /<!-- (example|frames|delivery|verify)/g;

function examplesOf(markdown: string): Example[] {
  return [...markdown.matchAll(EXAMPLE)].map(
    ([, request, status, answerCaptures, answer = '', kind, captures, other]) => ({
      title: `${(request ?? other!).split('\n', 1)[0]}${status ? ` answers ${status}` : ''}`,
      kind: (kind ?? 'request') as Example['kind'],
      text: request ?? other!,
      status: Number(status),
      captures: [...(answerCaptures ?? captures!).matchAll(/(\w+)=(\S+)/g)].map(
        ([, name, path]) => [name!, path!] as const,
      ),
      answer: answer.trim(),
    }),
  );
}

function fill(text: string, values: Record<string, string>): string {
  return text.replace(/\{(\w+)\}/g, (_, name: string) => {
    if (values[name] === undefined) throw new Error(`nothing is known as {${name}} yet`);
    return values[name];
  });
}

function parseRequest(filled: string) {
  const [head = '', ...body] = filled.split('\n\n');
  const [first = '', ...lines] = head.trim().split('\n');
  const [method = '', path = ''] = first.split(' ');
  const headers = Object.fromEntries(
    lines.map((line) => {
      const colon = line.indexOf(':');
      return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
    }),
  );
  return { method, path, headers, body: body.join('\n\n').trim() || undefined };
}

/** What differs from run to run is compared by its form: ids, times, secrets. */
const FORMS = [
  /^[1-9]\d{14,18}$/,
  /^[1-9]\d{14,18}:\d+$/,
  /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$/,
  /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/,
  /^pk_\d+_\w{38}$/,
  /^pk_\d+$/,
  /^\w{38}$/,
  /^eyJ[\w-]+\.[\w…-]+\.[\w…-]+$/,
  /^whsec_[\w+/=…]+$/,
  /^v1=[\da-f…]+$/,
  /^http:\/\/127\.0\.0\.1:\d+\/hook$/,
];
/** The server's clock, and a client's: never a count. */
const TIME_FROM = 1_000_000_000_000;

function shape(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(shape);
  if (typeof value === 'object' && value !== null) {
    return Object.fromEntries(
      Object.entries(value).map(([key, inner]) => [shape(key) as string, shape(inner)]),
    );
  }
  if (typeof value === 'number' && value > TIME_FROM) return 'a time';
  const form = typeof value === 'string' ? FORMS.findIndex((pattern) => pattern.test(value)) : -1;
  if (form < 0) return value;
  // The number of an event counts, its message's id does not.
  return form === 1 ? `event ${(value as string).split(':')[1]}` : `form ${form}`;
}

const ANY = Symbol('any number of events');

function eventsOf(text: string): unknown[] {
  return text
    .split('\n\n')
    .filter((block) => block.trim() !== '')
    .map((block) => {
      if (block.trim() === '…') return ANY;
      return {
        id: /^id: (.*)$/m.exec(block)?.[1],
        data: JSON.parse(/^data: (.*)$/m.exec(block)![1]!) as unknown,
      };
    });
}

/** The printed events are the answer's, at its beginning up to `…` and at its end after it. */
function expectEvents(actual: unknown[], printed: unknown[]): void {
  const gap = printed.indexOf(ANY);
  if (gap < 0) {
    expect(shape(actual)).toEqual(shape(printed));
    return;
  }
  const tail = printed.length - gap - 1;
  expect(actual.length).toBeGreaterThanOrEqual(gap + tail);
  expect(shape(actual.slice(0, gap))).toEqual(shape(printed.slice(0, gap)));
  expect(shape(actual.slice(actual.length - tail))).toEqual(shape(printed.slice(gap + 1)));
}

function valueAt(value: unknown, path: string): string {
  const found = path.split('.').reduce<unknown>((inner, key) => {
    if (Array.isArray(inner)) return inner.at(Number(key)) as unknown;
    return (inner as Record<string, unknown> | undefined)?.[key];
  }, value);
  if (typeof found !== 'string') throw new Error(`the answer has nothing at ${path}`);
  return found;
}

const PATIENCE_MS = 5_000;

/**
 * Devices and what they say and get, line by line: `1/pc connects`, `… with parley.im.v1`, `1/pc → {…}`, `2/pc ← {…}`,
 * `2/pc ← …` (any number of frames), `2/pc closes`, `2/pc is closed with 4401`.
 */
class Devices {
  private readonly open = new Map<string, { device: Device; taken: number; skipping: boolean }>();

  constructor(private readonly im: Im) {}

  /** Resolves to the frame that came, where the line is about one. */
  async play(line: string): Promise<Frame | undefined> {
    const [, name = '', user = '', client = '', what = ''] = /^((\S+)\/(\S+)) +(.+)$/.exec(line) ?? [];
    if (what.startsWith('connects')) {
      await this.connect(name, user, client, what.endsWith('parley.im.v1'));
      return;
    }
    const one = this.open.get(name);
    if (!one) throw new Error(`${line}: is not connected`);
    if (what === 'closes' || what.startsWith('is closed with ')) {
      if (what === 'closes') await one.device.close();
      else expect(await one.device.closed()).toBe(Number(what.split(' ').at(-1)));
      this.nothingMore(name);
      this.open.delete(name);
    } else if (what.startsWith('→ '))
      one.device.send({ source: undefined, ...(JSON.parse(what.slice(2)) as Frame) });
    else if (what === '← …') one.skipping = true;
    else if (what.startsWith('← ')) return this.receive(name, JSON.parse(what.slice(2)) as Frame);
    else throw new Error(`what does this line mean: ${line}`);
  }

  nothingMore(...names: string[]): void {
    for (const name of names.length > 0 ? names : this.open.keys()) {
      const { device, taken, skipping } = this.open.get(name)!;
      if (!skipping) expect(device.frames.slice(taken)).toEqual([]);
    }
  }

  private async connect(name: string, user: string, client: string, rich: boolean): Promise<void> {
    const device = rich
      ? new Device(this.im.url, user, await this.im.token(user, { client }), true)
      : await this.im.connect(user, { client });
    this.open.set(name, { device, taken: 0, skipping: false });
  }

  private async receive(name: string, printed: Frame): Promise<Frame> {
    const one = this.open.get(name)!;
    for (;;) {
      const frame = await within(
        one.device.next(() => true),
        `${name} gets ${JSON.stringify(printed)}`,
      );
      one.taken += 1;
      // How much of a reply comes at a time differs: what is printed is the beginning.
      if (frame.type === 'stream' && typeof printed.content === 'string')
        frame.content = (frame.content as string).slice(0, printed.content.length);
      if (one.skipping && !isDeepStrictEqual(shape(frame), shape(printed))) continue;
      one.skipping = false;
      expect(shape(frame)).toEqual(shape(printed));
      return frame;
    }
  }
}

async function within<T>(promise: Promise<T>, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`did not happen: ${what}`)), PATIENCE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** One page's examples, with what earlier ones have brought. */
class Page {
  readonly devices: Devices;
  private deliveries = 0;

  constructor(
    private readonly url: string,
    private readonly values: Record<string, string>,
    private readonly receiver: Receiver,
  ) {
    this.devices = new Devices(new Im(url, values.apiKey!));
  }

  async run({ kind, text, status, captures, answer }: Example): Promise<void> {
    const from =
      kind === 'request'
        ? await this.request(fill(text, this.values), status, answer)
        : kind === 'frames'
          ? await this.frames(text)
          : kind === 'delivery'
            ? await this.delivery(text)
            : this.verify(text);
    for (const [as, at] of captures) this.values[as] = valueAt(from, at);
  }

  private async request(text: string, status: number, answer: string): Promise<unknown> {
    const { method, path, headers, body } = parseRequest(text);
    const got = await ask(this.url, method, path, body, headers);
    try {
      expect(got.status).toBe(status);
      const stream = got.headers['content-type']?.startsWith('text/event-stream') === true;
      const value: unknown = stream ? eventsOf(got.text) : got.body;
      if (stream) expectEvents(value as unknown[], eventsOf(answer));
      else if (answer !== '…') expect(shape(value)).toEqual(shape(JSON.parse(answer)));
      return stream ? (value as { data: unknown }[]).map(({ data }) => data) : value;
    } catch (error) {
      throw new Error(`${(error as Error).message}\n${got.text.slice(0, 2_000)}`, { cause: error });
    }
  }

  private async frames(text: string): Promise<Frame[]> {
    const came: Frame[] = [];
    for (const line of text.trim().split('\n')) {
      const frame = await this.devices.play(fill(line, this.values)).catch((error: unknown) => {
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

describe.each(['assistant-platform.md', 'admin.md', 'im.md'])('the examples of docs/protocols/%s', (name) => {
  let app: TestApp;
  let dataDir: string;
  let examples: Example[];
  let page: Page;

  beforeAll(async () => {
    const markdown = await readFile(join(__dirname, '../../docs/protocols', name), 'utf8');
    examples = examplesOf(markdown);
    // One that the pattern misses would never be run.
    expect(examples).toHaveLength([...markdown.matchAll(MARK)].length);
    expect(examples.length).toBeGreaterThan(5);
    dataDir = await mkdtemp(join(tmpdir(), 'parley-docs-'));
    app = await bootApp({ PARLEY_DATA_DIR: dataDir });
    const quickstart = await app.app.nest.get(Quickstart).prepare(app.url, app.rootKey);
    const receiver = await Receiver.start();
    page = new Page(app.url, { ...quickstart, receiver: receiver.url }, receiver);
  });
  afterAll(async () => {
    await app.close();
    await rm(dataDir, { recursive: true, force: true });
  });

  it('answer as printed', async () => {
    for (const example of examples) {
      await page.run(example).catch((error: unknown) => {
        throw new Error(`${example.title}: ${(error as Error).message}`, { cause: error });
      });
    }
    page.devices.nothingMore();
  });
});
