// Imports go down, never sideways, and only through a module's index.ts (docs/architecture.md, "Storeys").
const storeys = {
  0: ['common', 'config', 'database', 'realtime', 'observability', 'outbound', 'fairness'],
  1: ['messages', 'assistants', 'blobs', 'model-services', 'tenancy', 'tools', 'usage', 'webhooks'],
  2: ['replies', 'generations', 'retention'],
  3: ['dialogue-assistant', 'agent-channel', 'im', 'openai', 'admin'],
};
const folders = (...names) => `^src/(${names.flat().join('|')})/`;
const above = (storey) =>
  Object.entries(storeys)
    .filter(([n]) => Number(n) > storey)
    .flatMap(([, names]) => names);

/** @type {import('dependency-cruiser').IConfiguration} */
module.exports = {
  forbidden: [
    ...Object.entries(storeys)
      .filter(([storey]) => Number(storey) < 3)
      .map(([storey, names]) => ({
        name: `storey-${storey}-imports-down`,
        severity: 'error',
        from: { path: folders(names) },
        to: { path: folders(above(Number(storey))) },
      })),
    ...[1, 2, 3].map((storey) => ({
      name: `storey-${storey}-never-sideways`,
      severity: 'error',
      from: { path: `^src/(${storeys[storey].join('|')})/` },
      to: { path: folders(storeys[storey]), pathNot: '^src/$1/' },
    })),
    {
      name: 'only-through-index',
      comment:
        'common/http and database/embedded-postgres are entrances of their own: most modules need neither',
      severity: 'error',
      from: { path: '^src/([^/]+)/' },
      to: {
        path: '^src/[^/]+/.+',
        pathNot: ['^src/$1/', '^src/[^/]+/index\\.ts$', '^src/common/http/index\\.ts$'],
      },
    },
    {
      name: 'only-through-index-from-the-top',
      severity: 'error',
      from: { path: '^src/[^/]+\\.ts$' },
      to: {
        path: '^src/[^/]+/.+',
        pathNot: [
          '^src/[^/]+/index\\.ts$',
          '^src/common/http/index\\.ts$',
          '^src/database/embedded-postgres\\.ts$',
        ],
      },
    },
    {
      name: 'entities-stay-with-their-repository',
      severity: 'error',
      from: { pathNot: '(repository|entity|index)\\.ts$' },
      to: { path: '\\.entity\\.ts$' },
    },
    {
      name: 'one-way-out',
      comment:
        'connections to others are made by src/outbound, which guards them; the MCP client is given its fetch, the bucket is the operator’s own',
      severity: 'error',
      from: {
        path: '^src/',
        pathNot: '^src/(outbound/|blobs/s3-blob-store\\.ts$|tools/(mcp-source|tool-failure)\\.ts$)',
      },
      to: { path: '(^|/)node_modules/(undici|axios|@aws-sdk|@smithy|@modelcontextprotocol)/' },
    },
    {
      name: 'no-cycles',
      severity: 'error',
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ['type-only'] } },
    },
    {
      name: 'no-tests-in-source',
      severity: 'error',
      from: { path: '^src/', pathNot: '\\.spec\\.ts$' },
      to: { path: '^(test|bench)/' },
    },
  ],
  options: {
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    doNotFollow: { path: 'node_modules' },
    exclude: { path: '\\.spec\\.ts$' },
  },
};
