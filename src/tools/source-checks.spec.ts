import { checkedSources } from './source-checks';

const mcp = { type: 'mcp', name: 'docs', url: 'https://docs.example/mcp' };
const spec = {
  openapi: '3.1.0',
  servers: [{ url: 'https://shop.example' }],
  paths: { '/x': { get: { operationId: 'x' } } },
};
const openapi = { type: 'openapi', name: 'shop', spec };

it('takes well-formed sources as they are', () => {
  const sources = [
    { ...mcp, headers: { Authorization: 'Bearer x' }, allow: ['a'] },
    { ...openapi, baseUrl: 'http://shop.example/v1', allow: ['x'] },
  ];
  expect(checkedSources(sources)).toEqual(sources);
  expect(checkedSources([])).toEqual([]);
});

it.each<[unknown, string]>([
  [{}, 'tools: must be an array'],
  [Array(17).fill(mcp), 'tools: must hold at most 16 sources'],
  [[null], 'tools.0: must be an object'],
  [[{ ...mcp, type: 'soap' }], 'tools.0.type: must be "mcp" or "openapi"'],
  [[{ ...mcp, spec: {} }], 'tools.0.spec: is not a known field'],
  [[{ ...mcp, name: 'a b' }], 'tools.0.name: must be 1 to 32 letters, digits, "_" and "-"'],
  [[mcp, mcp], 'tools.1.name: is also the name of tools.0'],
  [[{ ...mcp, url: 'docs' }], 'tools.0.url: must be a URL'],
  [[{ ...mcp, url: 'file:///etc/passwd' }], 'tools.0.url: must be an http or https URL'],
  [[{ ...mcp, url: 'https://a:b@c.example' }], 'tools.0.url: must not hold credentials; use headers'],
  [
    [
      {
        ...mcp,
        headers: Object.fromEntries(['a', 'b', 'c', 'd'].map((name) => [name, 'x'.repeat(4_096)])),
      },
    ],
    'tools.0.headers: must be at most 16384 characters as JSON',
  ],
  [[{ ...mcp, headers: true }], 'tools.0.headers: must be an object of texts'],
  [[{ ...mcp, headers: { Host: 'x' } }], 'tools.0.headers.Host: is not a header that may be set'],
  [[{ ...mcp, headers: { a: '1', A: '2' } }], 'tools.0.headers: must name each header once'],
  [
    [{ ...mcp, headers: { a: 'b\r\nc' } }],
    "tools.0.headers.a: must be a header's value: at most 4096 characters of Latin-1",
  ],
  [[{ ...mcp, allow: [] }], 'tools.0.allow: must be an array of 1 to 64 names'],
  [[{ ...mcp, allow: [''] }], 'tools.0.allow.0: must be 1 to 128 characters'],
  [[{ ...mcp, headers: { a: '\0' } }], 'tools: must hold neither NUL nor lone surrogates'],
  [[{ ...openapi, spec: { '\ud800': 1 } }], 'tools: must hold neither NUL nor lone surrogates'],
  [[{ ...openapi, spec: [] }], 'tools.0.spec: must be an OpenAPI document as an object'],
  [
    [{ ...openapi, spec: { x: 'x'.repeat(200_000) } }],
    'tools.0.spec: must be at most 200000 characters as JSON',
  ],
  [[{ ...openapi, spec: { ...spec, servers: [] } }], 'tools.0.spec.servers: its first one must be a URL'],
  [[{ ...openapi, baseUrl: 'https://a.example/?b' }], 'tools.0.baseUrl: must have no query'],
  [[{ ...openapi, spec: { ...spec, openapi: '2.0' } }], 'tools.0.spec.openapi: must be 3.0.x or 3.1.x'],
  [
    [{ ...openapi, spec: { ...spec, paths: {} } }],
    'tools.0.spec.paths: has no operation with an operationId',
  ],
  [[{ ...openapi, allow: ['x', 'y'] }], 'tools.0.allow.1: is not the operationId of an operation'],
])('refuses %#', (value, message) => {
  expect(() => checkedSources(value)).toThrow(message);
});

it('refuses what is nested without end', () => {
  let deep: unknown = 1;
  for (let level = 0; level < 100_000; level += 1) deep = [deep];
  expect(() => checkedSources([{ ...openapi, spec: { ...spec, 'x-deep': deep } }])).toThrow(
    'nested too deeply',
  );
});
