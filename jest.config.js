// Three rings (docs/architecture.md, "Tests"): unit beside the code, integration on real Postgres, e2e over real sockets.
const swc = JSON.parse(require('node:fs').readFileSync(__dirname + '/.swcrc', 'utf8'));
const ring = (name, testMatch, extra = {}) => ({
  displayName: name,
  testMatch,
  testEnvironment: 'node',
  rootDir: __dirname,
  moduleFileExtensions: ['ts', 'js', 'mjs', 'json'],
  transform: { '^.+\\.ts$': ['@swc/jest', { ...swc, sourceMaps: 'inline' }] },
  ...extra,
});
const withPostgres = {
  globalSetup: '<rootDir>/test/support/global-setup.ts',
  globalTeardown: '<rootDir>/test/support/global-teardown.ts',
};
module.exports = {
  testTimeout: 30_000,
  projects: [
    ring('unit', ['<rootDir>/src/**/*.spec.ts', '<rootDir>/scripts/**/*.spec.ts']),
    ring(
      'integration',
      ['<rootDir>/test/integration/**/*.test.ts', '<rootDir>/test/contracts/**/*.test.ts'],
      withPostgres,
    ),
    ring('e2e', ['<rootDir>/test/e2e/**/*.test.ts', '<rootDir>/test/conformance/**/*.test.ts'], withPostgres),
    ring('fuzz', ['<rootDir>/test/fuzz/**/*.test.ts'], withPostgres),
    ring('faults', ['<rootDir>/test/faults/**/*.test.ts'], withPostgres),
  ],
};
