import { operationsOf, serverOf } from './openapi-document';

const document = (more: Record<string, unknown>, operation: Record<string, unknown> = {}) => ({
  openapi: '3.0.3',
  paths: { '/x': { post: { operationId: 'x', ...operation } } },
  ...more,
});
const json = (schema: unknown) => ({ required: true, content: { 'application/json': { schema } } });
const bodyOf = (schemas: Record<string, unknown>, name = 'A') => {
  const [operation] = operationsOf(
    document({ components: { schemas } }, { requestBody: json({ $ref: `#/components/schemas/${name}` }) }),
  );
  return (operation!.parameters.properties as Record<string, unknown>).body;
};

it('takes operations with an id, of those the allowed ones', () => {
  const paths = {
    '/a': { get: { operationId: 'a', summary: 'A', description: 'A' }, post: {}, 'x-more': {} },
    '/b': { parameters: [], delete: { operationId: 'b', description: 'B' } },
  };
  expect(operationsOf({ openapi: '3.1.0', paths })).toMatchObject([
    { name: 'a', method: 'GET', path: '/a', description: 'A' },
    { name: 'b', method: 'DELETE', path: '/b', description: 'B' },
  ]);
  expect(operationsOf({ openapi: '3.1.0', paths }, ['b']).map(({ name }) => name)).toEqual(['b']);
});

it('writes references out, and ends where a schema contains itself', () => {
  expect(
    bodyOf({
      A: {
        type: 'object',
        properties: {
          children: { type: 'array', items: { $ref: '#/components/schemas/A' } },
          xml: { type: 'string' },
        },
        example: {},
        'x-note': 1,
      },
    }),
  ).toEqual({
    type: 'object',
    properties: { children: { type: 'array', items: {} }, xml: { type: 'string' } },
  });
});

it('ends a chain of references that is too long, and refuses what grows out of hand', () => {
  const chain = Object.fromEntries(
    Array.from({ length: 20 }, (_, index) => [
      `S${index}`,
      { type: 'object', properties: { next: { $ref: `#/components/schemas/S${index + 1}` } } },
    ]),
  );
  expect(JSON.stringify(bodyOf(chain, 'S0')).match(/next/g)).toHaveLength(8);
  const bomb = Object.fromEntries(
    Array.from({ length: 9 }, (_, index) => [
      `S${index}`,
      { allOf: Array.from({ length: 30 }, () => ({ $ref: `#/components/schemas/S${index + 1}` })) },
    ]),
  );
  expect(() => bodyOf({ ...bomb, S9: {} }, 'S0')).toThrow('too large');
});

it('says in JSON schema what OpenAPI 3.0 says otherwise', () => {
  expect(
    bodyOf({
      A: { type: 'integer', nullable: true, minimum: 1, exclusiveMinimum: true, maximum: 3, enum: [2] },
    }),
  ).toEqual({ type: ['integer', 'null'], exclusiveMinimum: 1, maximum: 3, enum: [2, null] });
});

it('keeps names apart and leaves out what is no argument', () => {
  const schema = { type: 'string' };
  const [operation] = operationsOf(
    document(
      {},
      {
        parameters: [
          { name: 'id', in: 'query', schema },
          { name: 'id', in: 'header', schema, required: true },
          { name: 'body', in: 'query', schema },
          { name: 'filter[a]', in: 'query', schema },
          { name: 'Cookie', in: 'header', schema },
          { name: 'X-Forwarded-For', in: 'header', schema },
          { name: 'session', in: 'cookie', schema, required: true },
        ],
        requestBody: json({ type: 'object' }),
      },
    ),
  );
  expect(Object.keys(operation!.parameters.properties as object)).toEqual([
    'id',
    'header_id',
    'query_body',
    'filter_a_',
    'body',
  ]);
  expect(operation!.required).toEqual(['header_id', 'body']);
});

it.each<[Record<string, unknown>, Record<string, unknown>, string]>([
  [{ paths: { x: {} } }, {}, 'must start with "/"'],
  [{ paths: { '/{a}': { get: { operationId: 'a' } } } }, {}, "its path's {a} is not among its parameters"],
  [{ paths: { '/a': { get: { operationId: 'x' }, put: { operationId: 'x' } } } }, {}, 'is used twice'],
  [{}, { requestBody: { required: true, content: { 'text/xml': {} } } }, 'takes no JSON'],
  [{}, { requestBody: json({ $ref: 'https://elsewhere.example/#/A' }) }, 'outside the document'],
  [{}, { requestBody: json({ $ref: '#/components/__proto__' }) }, 'which is not there'],
  [{}, { requestBody: json({ properties: { a: 1 } }) }, 'a schema must be an object'],
])('refuses %#', (more, operation, message) => {
  expect(() => operationsOf(document(more, operation))).toThrow(message);
});

it('finds the first server', () => {
  expect(serverOf({})).toBeUndefined();
  expect(
    serverOf({ servers: [{ url: 'https://{a}.example/{b}', variables: { a: { default: 'x' } } }] }),
  ).toBe('https://x.example/{b}');
});
