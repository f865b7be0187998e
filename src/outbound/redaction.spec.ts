import { headerSecrets, Redaction, urlSecrets } from './redaction';
import { shownUrl } from './shown-url';

const KEY = 'sk-proj-A1b2/C3d4+E5f6"G7h8&J9k0';
const of = (text: string, secrets = [{ value: KEY, mark: '[key]', parts: true }]) =>
  new Redaction(secrets).of(text);
const base64 = (text: string) => Buffer.from(text).toString('base64');
const base64url = (text: string) => Buffer.from(text).toString('base64url');

describe('a credential', () => {
  it.each([
    ['whole', `key ${KEY} is wrong`, 'key [key] is wrong'],
    ['in capitals', `key ${KEY.toUpperCase()} is wrong`, 'key [key] is wrong'],
    ['twice', `${KEY} ${KEY}`, '[key] [key]'],
    ['its beginning', `key ${KEY.slice(0, 8)} is`, 'key [key] is'],
    ['its end', `key ${KEY.slice(-8)} is`, 'key [key] is'],
    ['its middle', `key ${KEY.slice(11, 23)} is`, 'key [key] is'],
    ['in two parts', `${KEY.slice(0, 16)}\n${KEY.slice(16)}`, '[key]\n[key]'],
    ['escaped for JSON', JSON.stringify({ k: KEY }), '{"k":"[key]"}'],
    ['percent-encoded', `?k=${encodeURIComponent(KEY)}&x`, '?k=[key]&x'],
    ['hexadecimal', `<${Buffer.from(KEY).toString('hex').toUpperCase()}>`, '<[key]>'],
    ['masked', 'key sk-p****J9k0 is', 'key [key] is'],
    ['masked with an ellipsis', 'key sk-…k0 is', 'key [key] is'],
    ['masked, its beginning alone', 'key sk-pr***** is', 'key [key] is'],
    ['masked, its end alone', 'key ...J9k0 is', 'key [key] is'],
    ['cut off at the end of the text', 'key sk-pr…', 'key [key]'],
  ])('%s', (_, text, expected) => expect(of(text)).toBe(expected));

  it('in base64, on its own and after any number of other bytes, in either alphabet', () => {
    for (const before of ['', 'a', 'user:', 'ab', 'Bearer ', 'x:'])
      for (const after of ['', '!', '!!'])
        for (const encode of [base64, base64url]) {
          const shown = of(`got ${encode(before + KEY + after)} there`);
          expect(shown).toMatch(/^got [\w=+/-]{0,12}\[key\][\w=+/-]{0,6} there$/);
          // What is left decodes to nothing of it.
          const left = shown.replace('[key]', ' ').split(/\s+/).slice(1, -1).join('');
          expect(Buffer.from(left, 'base64').toString('latin1')).not.toContain(KEY.slice(2, 6));
        }
  });

  it('is gone from a text of many parts as from one of few', () => {
    const parts = Array.from({ length: KEY.length - 7 }, (_, at) => KEY.slice(at, at + 8));
    expect(of(parts.join(' '))).toBe(parts.map(() => '[key]').join(' '));
  });

  it('leaves other words alone, and parts of seven characters', () => {
    const text = `The model "gpt-4o" was not found … see https://example.com/a1b2?x=1. ${KEY.slice(0, 7)} ****`;
    expect(of(text)).toBe(text);
    expect(of('')).toBe('');
  });
});

it('takes what is no credential out as a whole alone, and nothing that is too short', () => {
  const secrets = [
    { value: 'https://api.example.com/v1', mark: '[address]', parts: false },
    { value: 'api.example.com', mark: '[address]', parts: false },
    { value: 'abc', mark: '[key]', parts: true },
  ];
  expect(of('at https://api.example.com/v1/x, api.example.com; api.example.org abc', secrets)).toBe(
    'at [address]/x, [address]; api.example.org abc',
  );
});

it('keeps characters of any script where they are', () => {
  expect(of(`İstanbul ${KEY} İ中国`)).toBe('İstanbul [key] İ中国');
});

it.each([
  ['https://api.example.com/v1', 'https://api.example.com/v1'],
  ['https://api.example.com/v1?key=abc&v=2', 'https://api.example.com/v1?key=••••&v=••••'],
  ['https://api.example.com/v1?abc', 'https://api.example.com/v1?••••'],
  ['https://api.example.com/v1?a=b=c&&d', 'https://api.example.com/v1?a=••••&&••••'],
  ['https://me:secret@api.example.com:8/v1', 'https://••••@api.example.com:8/v1'],
  ['https://api.example.com/a@b?k=1@2#abc', 'https://api.example.com/a@b?k=••••#••••'],
])('shows %s as %s', (url, shown) => expect(shownUrl(url)).toBe(shown));

it('takes of headers those as credentials that look like it, and of an address its query', () => {
  const parts = (secrets: ReturnType<typeof headerSecrets>) =>
    secrets.filter((secret) => secret.parts).map(({ value }) => value);
  const headers = {
    authorization: 'Bearer abc.def',
    'x-title': 'my app of the year 2026!',
    'x-gateway': 'a1b2c3d4e5f6g7h8',
    'x-mode': 'application/json',
    'x-from': 'https://example.com/a1b2',
    'anthropic-version': '2023-06-01',
  };
  expect(parts(headerSecrets(headers, '[key]'))).toEqual(['Bearer', 'abc.def', 'a1b2c3d4e5f6g7h8']);
  expect(parts(urlSecrets('https://u:p%40ss@example.com/v1?key=abc%20d&v=2', '[key]'))).toEqual([
    'u',
    'u',
    'p%40ss',
    'p@ss',
    'abc d',
    '2',
  ]);
});
