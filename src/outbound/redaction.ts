/** Shorter ones are no secret, and replacing them would garble the text. */
const MIN_WHOLE = 4;
/** A part that is as long gives something away. */
const PART = 8;
/** Of a masked secret (`sk-…abcd`): what has to stand on one side of the mask alone, or on both. */
const MIN_MASKED = { alone: 4, both: 2 } as const;
const MASK = /[*•·…]+|\.{2,}|[xX]{4,}/g;
/** Longer beginnings and ends are parts. */
const MAX_SIDE = 64;
/** A text with more is no sentence about a key. */
const MAX_MASKS = 1_000;
const FILTER_BITS = 0xffff;

/** Something that must not come out. */
export interface Secret {
  readonly value: string;
  /** What stands in its place. */
  readonly mark: string;
  /**
   * A credential: its parts are taken out, too, from 8 characters on, and what is left of a masked one, also as base64,
   * hexadecimal, percent-encoded or escaped for JSON. Otherwise the whole alone.
   */
  readonly parts: boolean;
}

/** Takes secrets out of texts in which a service repeats what it was asked with. ASCII case does not matter. */
export class Redaction {
  private readonly wholes: readonly { readonly form: string; readonly mark: string }[];
  private readonly credentials: readonly { readonly form: string; readonly mark: string }[];
  private readonly parts = new Map<string, string>();
  /** Says of most places in a text, by three characters of it, that no part begins there. */
  private readonly filter = new Uint8Array(FILTER_BITS + 1);

  constructor(secrets: readonly Secret[]) {
    const forms = secrets
      .map(({ value, ...rest }) => ({ ...rest, form: lower(value.replace(/\s+/g, ' ').trim()) }))
      .filter(({ form }) => form.length >= MIN_WHOLE)
      .sort((a, b) => b.form.length - a.form.length);
    this.wholes = forms;
    this.credentials = forms.filter(({ parts }) => parts);
    for (const { value, mark, parts } of secrets) {
      if (!parts || value.length < PART) continue;
      for (const form of formsOf(value.trim()))
        for (let at = 0; at + PART <= form.length; at += 1) {
          this.parts.set(form.slice(at, at + PART), mark);
          this.filter[bucket(form, at)] = 1;
        }
    }
  }

  of(text: string): string {
    if (this.wholes.length === 0) return text;
    const low = lower(text);
    const spans = [...this.wholesIn(low), ...this.partsIn(low), ...this.masksIn(low)];
    if (spans.length === 0) return text;
    return replaced(text, spans);
  }

  private *wholesIn(text: string): Generator<Span> {
    for (const { form, mark } of this.wholes)
      for (let at = text.indexOf(form); at !== -1; at = text.indexOf(form, at + form.length))
        yield { from: at, to: at + form.length, mark };
  }

  private *partsIn(text: string): Generator<Span> {
    if (this.parts.size === 0) return;
    for (let at = 0; at + PART <= text.length; at += 1) {
      if (this.filter[bucket(text, at)] === 0) continue;
      const mark = this.parts.get(text.slice(at, at + PART));
      if (mark !== undefined) yield { from: at, to: at + PART, mark };
    }
  }

  /** `sk-…abcd`, `sk-ab****`, `****abcd`: a beginning or an end of a credential beside a mask; also of a text that was cut. */
  private *masksIn(text: string): Generator<Span> {
    if (this.credentials.length === 0) return;
    let masks = 0;
    for (const { 0: mask, index } of text.matchAll(MASK)) {
      if ((masks += 1) > MAX_MASKS) return;
      const end = index + mask.length;
      for (const { form, mark } of this.credentials) {
        const left = beginningBefore(text, index, form);
        const right = endAfter(text, end, form);
        const { alone, both } = MIN_MASKED;
        if (Math.max(left, right) < alone && Math.min(left, right) < both) continue;
        const sides = { left: left >= both ? left : 0, right: right >= both ? right : 0 };
        yield { from: index - sides.left, to: end + sides.right, mark };
      }
    }
  }
}

interface Span {
  readonly from: number;
  readonly to: number;
  readonly mark: string;
}

/** Spans that overlap or touch become one; the longest names it. */
function replaced(text: string, spans: readonly Span[]): string {
  const merged: { from: number; to: number; mark: string; longest: number }[] = [];
  for (const { from, to, mark } of [...spans].sort((a, b) => a.from - b.from || b.to - a.to)) {
    const last = merged.at(-1);
    if (!last || from > last.to || (from === last.to && mark !== last.mark)) {
      merged.push({ from, to, mark, longest: to - from });
      continue;
    }
    last.to = Math.max(last.to, to);
    if (to - from > last.longest) Object.assign(last, { mark, longest: to - from });
  }
  let result = '';
  let at = 0;
  for (const { from, to, mark } of merged) {
    result += text.slice(at, from) + mark;
    at = to;
  }
  return result + text.slice(at);
}

/** How many of the last characters before `end` are a beginning of `secret`. */
function beginningBefore(text: string, end: number, secret: string): number {
  for (let length = Math.min(secret.length - 1, end, MAX_SIDE); length > 0; length -= 1)
    if (text[end - length] === secret[0] && text.startsWith(secret.slice(0, length), end - length))
      return length;
  return 0;
}

/** How many of the first characters from `start` on are an end of `secret`. */
function endAfter(text: string, start: number, secret: string): number {
  for (let length = Math.min(secret.length - 1, text.length - start, MAX_SIDE); length > 0; length -= 1)
    if (text.startsWith(secret.slice(-length), start)) return length;
  return 0;
}

/** A credential as it may be written, in lower case. */
function formsOf(value: string): Set<string> {
  const bytes = Buffer.from(value, 'utf8');
  const forms = new Set([value, JSON.stringify(value).slice(1, -1), bytes.toString('hex')]);
  if (value.isWellFormed()) forms.add(encodeURIComponent(value));
  // In base64 it looks otherwise after one or two more bytes, as after `user:`; the first and the last digit then hold
  // bits of what is beside it.
  for (const before of [0, 1, 2]) {
    const encoded = Buffer.concat([Buffer.alloc(before), bytes]).toString('base64url');
    const whole = (before + bytes.length) % 3 === 0;
    const inner = encoded.slice(before === 0 ? 0 : before + 1, whole ? undefined : -1);
    forms.add(inner).add(inner.replaceAll('-', '+').replaceAll('_', '/'));
  }
  return new Set([...forms].map(lower));
}

/** Each letter in its place: of İ alone there are more in lower case. */
function lower(text: string): string {
  const low = text.toLowerCase();
  return low.length === text.length ? low : text.replace(/[^İ]+/g, (rest) => rest.toLowerCase());
}

const bucket = (text: string, at: number): number =>
  (text.charCodeAt(at) * 961 + text.charCodeAt(at + 3) * 31 + text.charCodeAt(at + PART - 1)) & FILTER_BITS;

/** Of these the values are words that everybody knows. */
const OPEN_HEADER = /^(accept|user-agent|content-type|referer|http-referer|x-title)/i;
const TELLING_NAME = /auth|key|token|secret|cookie|passw|credential|session|sign/i;
const MIN_CREDENTIAL = 16;

/** What stands in configured headers: each value and each of its words, those that look like one as credentials. */
export function headerSecrets(headers: Readonly<Record<string, string>>, mark: string): Secret[] {
  return Object.entries(headers).flatMap(([name, value]) => {
    const open = OPEN_HEADER.test(name);
    const looks = (word: string): boolean =>
      TELLING_NAME.test(name) || (word.length >= MIN_CREDENTIAL && /\d/.test(word) && !URL.canParse(word));
    const words = value.split(/\s+/);
    return [
      { value, mark, parts: false },
      ...words.map((word) => ({ value: word, mark, parts: !open && looks(word) })),
    ];
  });
}

/** What an address may hold of a credential: a user's password, the values of its query. */
export function urlSecrets(url: string, mark: string): Secret[] {
  if (!URL.canParse(url)) return [];
  const { username, password, searchParams } = new URL(url);
  const values = [username, password].flatMap((text) => [text, decoded(text)]);
  return [...values, ...searchParams.values()].map((value) => ({ value, mark, parts: true }));
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
