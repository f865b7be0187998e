/** The examples of a page of docs/, and what of an answer counts. */

export const KINDS = ['request', 'curl', 'script', 'frames', 'channel', 'delivery', 'verify'] as const;

export interface Example {
  readonly title: string;
  readonly kind: (typeof KINDS)[number];
  readonly text: string;
  readonly status: number;
  /** The answer is this one when what was begun before has ended. */
  readonly inTheEnd: boolean;
  /** Name in later examples, to the path of the value in this answer. */
  readonly captures: readonly (readonly [name: string, path: string])[];
  /** What is answered or printed. */
  readonly answer: string;
}

const FENCED = '```\\w+\\n([\\s\\S]*?)```';
const EXAMPLE = new RegExp(
  `<!-- (example|curl)( in the end)? -->\\s*${FENCED}\\s*<!-- answer: (\\d{3})(.*?)-->\\s*${FENCED}` +
    `|<!-- (script) -->\\s*${FENCED}\\s*<!-- prints -->\\s*${FENCED}` +
    `|<!-- (frames|channel|delivery|verify)(.*?)-->\\s*${FENCED}`,
  'g',
);
/** One that the pattern misses would never be run. */
const MARK = /<!-- (example|curl|script|frames|channel|delivery|verify)/g;

/** Throws when one is written so that it would not be run. */
export function examplesOf(markdown: string): Example[] {
  const examples = [...markdown.matchAll(EXAMPLE)].map(
    ([
      ,
      asked,
      end,
      request,
      status,
      answerCaptures,
      answer,
      script,
      code,
      output,
      other,
      captures,
      text,
    ]) => ({
      title: `${(request ?? code ?? text!).trim().split('\n', 1)[0]}${status ? ` answers ${status}` : ''}`,
      kind: (asked === 'example' ? 'request' : (asked ?? script ?? other)) as Example['kind'],
      text: request ?? code ?? text!,
      status: Number(status),
      inTheEnd: end !== undefined,
      captures: [...(answerCaptures ?? captures ?? '').matchAll(/(\w+)=(\S+)/g)].map(
        ([, name, path]) => [name!, path!] as const,
      ),
      answer: (answer ?? output ?? '').trim(),
    }),
  );
  const marks = [...markdown.matchAll(MARK)].length;
  if (examples.length !== marks)
    throw new Error(`${marks} examples are marked, ${examples.length} are understood`);
  return examples;
}

export function fill(text: string, values: Readonly<Record<string, string>>): string {
  return text.replace(/\{(\w+)\}/g, (_, name: string) => {
    if (values[name] === undefined) throw new Error(`nothing is known as {${name}} yet`);
    return values[name];
  });
}

export interface ParsedRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: Record<string, string>;
  readonly body: string | undefined;
}

export function parseRequest(filled: string): ParsedRequest {
  const [head = '', ...body] = filled.split('\n\n');
  const [first = '', ...lines] = head.trim().split('\n');
  const [method = '', path = ''] = first.split(' ');
  // Bodies of forms are written with the line ends that they need.
  const form = /multipart\/form-data/i.test(head);
  const text = body.join('\n\n').trim();
  return {
    method,
    path,
    headers: headersOf(lines),
    body: text === '' ? undefined : form ? `${text.replaceAll('\n', '\r\n')}\r\n` : text,
  };
}

/** `curl URL -H '…' -d '…'`, with `"$NAME"` out of `env`. */
export function parseCurl(text: string, env: Readonly<Record<string, string>>): ParsedRequest {
  const line = text.replace(/\\\n/g, ' ').trim();
  const all = (option: string): string[] =>
    [...line.matchAll(new RegExp(` -${option} (?:'([^']*)'|"([^"]*)")`, 'g'))].map(([, literal, open]) =>
      (literal ?? open!).replace(/\$(\w+)/g, (whole, name: string) =>
        literal === undefined ? (env[name] ?? whole) : whole,
      ),
    );
  const [, path] = /https?:\/\/[^/\s]+(\/\S*)/.exec(line) ?? [];
  if (!line.startsWith('curl ') || path === undefined) throw new Error(`is no curl of ours: ${line}`);
  const [body] = all('d');
  return { method: body === undefined ? 'GET' : 'POST', path, headers: headersOf(all('H')), body };
}

function headersOf(lines: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    lines.map((line) => {
      const colon = line.indexOf(':');
      return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
    }),
  );
}

/** What differs from run to run is compared by its form: ids, times, secrets. */
const FORMS = [
  /^[1-9]\d{14,18}$/,
  /^[1-9]\d{14,18}:(\w+)$/,
  /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$/,
  /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/,
  /^pk_\d+_\w{38}$/,
  /^pk_\d+$/,
  /^\w{38}$/,
  /^eyJ[\w-]+\.[\w…-]+\.[\w…-]+$/,
  /^whsec_[\w+/=…]+$/,
  /^v1=[\da-f…]+$/,
  /^http:\/\/127\.0\.0\.1:\d+\/hook$/,
  /^chatcmpl-[1-9]\d{14,18}$/,
  /^connection-[1-9]\d{14,18}$/,
  /^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/,
  /^iVBORw0KGgo[\w+/=…]+$/,
  /^http:\/\/(localhost|127\.0\.0\.1):\d+\/api\/copywriting\/image\/\d+\/[\da-f]{64}\?expires=\d+&signature=[\w-]{43}$/,
];
/** The server's clock, and a client's: never a count. */
const TIME_FROM = 1_000_000_000_000;
const SECONDS_FROM = 1_000_000_000;

export function shape(value: unknown, name?: string): unknown {
  if (Array.isArray(value)) return value.map((one) => shape(one));
  if (typeof value === 'object' && value !== null) {
    return Object.fromEntries(
      Object.entries(value).map(([key, inner]) => [shape(key) as string, shape(inner, key)]),
    );
  }
  if (typeof value === 'number' && value > (name === 'created' ? SECONDS_FROM : TIME_FROM)) return 'a time';
  const form = typeof value === 'string' ? FORMS.findIndex((pattern) => pattern.test(value)) : -1;
  if (form < 0) return value;
  // The number of an event counts, its message's id does not.
  return form === 1 ? `event ${(value as string).split(':')[1]}` : `form ${form}`;
}

const ANY = Symbol('any number of events');

export function eventsOf(text: string): unknown[] {
  return text
    .split('\n\n')
    .filter((block) => block.trim() !== '')
    .map((block) => {
      if (block.trim() === '…') return ANY;
      const data = /^data: (.*)$/m.exec(block)![1]!;
      return {
        id: /^id: (.*)$/m.exec(block)?.[1],
        data: data === '[DONE]' ? data : (JSON.parse(data) as unknown),
      };
    });
}

/** The printed events are the answer's, at its beginning up to `…` and at its end after it. */
export function expectEvents(actual: unknown[], printed: unknown[]): void {
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

export function valueAt(value: unknown, path: string): string {
  const found = path.split('.').reduce<unknown>((inner, key) => {
    if (Array.isArray(inner)) return inner.at(Number(key)) as unknown;
    return (inner as Record<string, unknown> | undefined)?.[key];
  }, value);
  if (typeof found !== 'string') throw new Error(`the answer has nothing at ${path}`);
  return found;
}
