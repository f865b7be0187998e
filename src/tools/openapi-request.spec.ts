import fc from 'fast-check';
import { operationsOf } from './openapi-document';
import { requestOf } from './openapi-request';

const string = { type: 'string' };
const [operation] = operationsOf({
  openapi: '3.1.0',
  paths: {
    '/files/{a}{b}/{c}': {
      get: {
        operationId: 'x',
        parameters: [
          ...['a', 'b', 'c'].map((name) => ({ name, in: 'path', schema: string })),
          { name: 'many', in: 'query', explode: false, schema: {} },
          { name: 'piped', in: 'query', style: 'pipeDelimited', schema: {} },
          { name: 'deep', in: 'query', style: 'deepObject', schema: {} },
          { name: 'json', in: 'query', content: { 'application/json': { schema: {} } } },
          { name: 'X-A', in: 'header', schema: string },
        ],
      },
    },
  },
});
const paths = { a: 'a', b: 'b', c: 'c' };
const urlOf = (args: Record<string, unknown>) =>
  requestOf('https://s.example/v1/', operation!, { ...paths, ...args }).url;

it('writes arguments as their styles say', () => {
  expect(urlOf({})).toBe('https://s.example/v1/files/ab/c');
  expect(urlOf({ many: ['x', 'y'] })).toMatch(/\?many=x%2Cy$/);
  expect(urlOf({ piped: [1, true] })).toMatch(/\?piped=1%7Ctrue$/);
  expect(urlOf({ deep: { a: 1, 'b&': 'c=d' } })).toMatch(/\?deep%5Ba%5D=1&deep%5Bb%26%5D=c%3Dd$/);
  expect(urlOf({ json: { a: [null] } })).toMatch(/\?json=%7B%22a%22%3A%5Bnull%5D%7D$/);
});

it('refuses steps made of dots, also when two arguments make one', () => {
  for (const args of [{ c: '..' }, { c: '.' }, { a: '.', b: '.' }]) {
    expect(() => urlOf(args)).toThrow('must not be');
  }
  expect(() => urlOf({ a: '', b: '' })).toThrow('"a" must not be empty');
});

it('keeps whatever it is given within its place', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary', minLength: 1 }), (text) => {
      fc.pre(text !== '.' && text !== '..');
      const url = new URL(urlOf({ c: text, many: text }));
      expect(url.origin).toBe('https://s.example');
      expect(url.pathname.split('/')).toHaveLength(5);
      expect(decodeURIComponent(url.pathname.split('/')[4]!)).toBe(text.toWellFormed());
      expect([...url.searchParams]).toEqual([['many', text.toWellFormed()]]);
    }),
  );
});

it('names the argument that does not fit', () => {
  expect(() => requestOf('https://s.example', operation!, { a: 'a', b: 'b' })).toThrow('"c" is missing');
  expect(() => urlOf({ d: 1 })).toThrow('it has no argument "d"; it takes: a, b, c, many');
  expect(() => urlOf({ 'X-A': 'a\nb' })).toThrow('"X-A" can not be sent as a header');
});
