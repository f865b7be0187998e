import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Quickstart } from '../../src/quickstart';
import { ask, bootApp, type TestApp } from '../support/app';

/** The examples of docs/protocols: each page's are run in order, on a server fresh from its first start. */

interface Example {
  readonly title: string;
  readonly request: string;
  readonly status: number;
  /** Name in later requests, to the path of the value in this answer. */
  readonly captures: readonly (readonly [name: string, path: string])[];
  readonly answer: string;
}

const FENCED = '```\\w+\\n([\\s\\S]*?)```';
const EXAMPLE = new RegExp(
  `<!-- example -->\\s*${FENCED}\\s*<!-- answer: (\\d{3})(.*?)-->\\s*${FENCED}`,
  'g',
);

function examplesOf(markdown: string): Example[] {
  return [...markdown.matchAll(EXAMPLE)].map(([, request = '', status, captures = '', answer = '']) => ({
    title: `${request.split('\n', 1)[0]} answers ${status}`,
    request,
    status: Number(status),
    captures: [...captures.matchAll(/(\w+)=(\S+)/g)].map(([, name, path]) => [name!, path!] as const),
    answer: answer.trim(),
  }));
}

function parseRequest(text: string, values: Record<string, string>) {
  const filled = text.replace(/\{(\w+)\}/g, (_, name: string) => {
    if (values[name] === undefined) throw new Error(`nothing is known as {${name}} yet`);
    return values[name];
  });
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
];

function shape(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(shape);
  if (typeof value === 'object' && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, shape(inner)]));
  }
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

describe.each(['assistant-platform.md', 'admin.md'])('the examples of docs/protocols/%s', (name) => {
  const values: Record<string, string> = {};
  let app: TestApp;
  let dataDir: string;
  let examples: Example[];

  beforeAll(async () => {
    const page = await readFile(join(__dirname, '../../docs/protocols', name), 'utf8');
    examples = examplesOf(page);
    // One that the pattern misses would never be run.
    expect(examples).toHaveLength(page.split('<!-- example -->').length - 1);
    expect(examples.length).toBeGreaterThan(5);
    dataDir = await mkdtemp(join(tmpdir(), 'parley-docs-'));
    app = await bootApp({ PARLEY_DATA_DIR: dataDir });
    Object.assign(values, await app.app.nest.get(Quickstart).prepare(app.url, app.rootKey));
  });
  afterAll(async () => {
    await app.close();
    await rm(dataDir, { recursive: true, force: true });
  });

  it('answer as printed', async () => {
    for (const { title, request, status, captures, answer } of examples) {
      const { method, path, headers, body } = parseRequest(request, values);
      const got = await ask(app.url, method, path, body, headers);
      try {
        expect(got.status).toBe(status);
        const stream = got.headers['content-type']?.startsWith('text/event-stream') === true;
        const value: unknown = stream ? eventsOf(got.text) : got.body;
        if (stream) expectEvents(value as unknown[], eventsOf(answer));
        else if (answer !== '…') expect(shape(value)).toEqual(shape(JSON.parse(answer)));
        const from = stream ? (value as { data: unknown }[]).map(({ data }) => data) : value;
        for (const [as, at] of captures) values[as] = valueAt(from, at);
      } catch (error) {
        throw new Error(`${title}: ${(error as Error).message}\n${got.text.slice(0, 2_000)}`, {
          cause: error,
        });
      }
    }
  });
});
