import js from '@eslint/js';
import tseslint from 'typescript-eslint';

const ONLY_OUTBOUND = 'src/outbound makes connections to others, and guards them.';
const onlyOutbound = (name) => ({ name, message: ONLY_OUTBOUND });

export default tseslint.config(
  { ignores: ['dist/', 'node_modules/', '.parley/', 'coverage/'] },
  js.configs.recommended,
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.recommendedTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/no-unused-vars': [
        'error',
        { ignoreRestSiblings: true, argsIgnorePattern: '^_', varsIgnorePattern: '^_$' },
      ],
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/require-await': 'off',
      '@typescript-eslint/consistent-type-imports': 'off', // dependency injection needs the classes at run time
      '@typescript-eslint/only-throw-error': ['error', { allowThrowingUnknown: true }],
      'no-console': 'error',
    },
  },
  {
    files: ['src/**/*.ts'],
    ignores: ['src/config/**'],
    rules: {
      'no-restricted-properties': [
        'error',
        { object: 'process', property: 'env', message: 'src/config reads the environment.' },
      ],
    },
  },
  {
    files: ['src/**/*.ts'],
    // PostgreSQL is the operator's own, as the bucket is, which the AWS SDK connects to.
    ignores: ['src/outbound/**', 'src/database/**', '**/*.spec.ts'],
    rules: {
      'no-restricted-globals': ['error', ...['fetch', 'WebSocket', 'EventSource'].map(onlyOutbound)],
      '@typescript-eslint/no-restricted-imports': [
        'error',
        {
          paths: [
            ...['node:http', 'node:https', 'http', 'https'].map((name) => ({
              name,
              importNames: ['default', 'request', 'get', 'Agent', 'globalAgent', 'ClientRequest'],
              allowTypeImports: true,
              message: ONLY_OUTBOUND,
            })),
            ...['node:net', 'net'].map((name) => ({
              name,
              importNames: ['default', 'connect', 'createConnection', 'Socket'],
              allowTypeImports: true,
              message: ONLY_OUTBOUND,
            })),
            ...['node:tls', 'tls', 'node:http2', 'http2', 'node:dgram', 'dgram', 'undici', 'axios'].map(
              (name) => ({
                name,
                allowTypeImports: true,
                message: ONLY_OUTBOUND,
              }),
            ),
          ],
        },
      ],
    },
  },
  {
    files: ['test/**/*.ts', 'bench/**/*.ts', '**/*.spec.ts'],
    // Tests look into answers of many shapes; what they expect of them is their assertion.
    rules: {
      'no-console': 'off',
      '@typescript-eslint/unbound-method': 'off',
      '@typescript-eslint/no-explicit-any': 'off',
      '@typescript-eslint/no-unsafe-assignment': 'off',
      '@typescript-eslint/no-unsafe-member-access': 'off',
      '@typescript-eslint/no-unsafe-argument': 'off',
      '@typescript-eslint/no-unsafe-call': 'off',
      '@typescript-eslint/no-unsafe-return': 'off',
      '@typescript-eslint/restrict-template-expressions': 'off',
    },
  },
  {
    files: ['**/*.mjs', '**/*.js'],
    languageOptions: {
      globals: Object.fromEntries(
        [
          'process',
          'console',
          'require',
          'module',
          '__dirname',
          'setTimeout',
          'clearTimeout',
          'setInterval',
          'clearInterval',
          'setImmediate',
          'Buffer',
          'URL',
          'fetch',
          'TextDecoder',
          'performance',
          'AbortController',
          'AbortSignal',
        ].map((name) => [name, 'readonly']),
      ),
    },
  },
);
