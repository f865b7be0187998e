import { Logger } from '@nestjs/common';
import type { ApiKeyId, AppError, Scope, TenantId } from '../common';
import type { Config } from '../config';
import type { Database } from '../database';
import { AccessWatch } from './access-watch';
import type { ApiKeysRepository, StoredKey } from './api-keys.repository';
import { refusalOf, type Grant } from './grant';

const NOW = Date.UTC(2026, 10, 21);
const KEY: StoredKey = {
  tenantId: '7' as TenantId,
  name: 'k',
  secretHash: '',
  generation: 3,
  previousHash: null,
  previousUntil: 0,
  tokensFrom: 0,
  scopes: new Set<Scope>(['dialogue', 'im']),
  expiresAt: Infinity,
  allowedAddresses: [],
  revoked: false,
  tenantActive: true,
  allowedOrigins: [],
  limits: {},
  tenantLimits: {},
  updatedAt: NOW,
};
const GRANT: Grant = {
  tenantId: '7' as TenantId,
  keyId: '8' as ApiKeyId,
  generation: 3,
  scopes: ['dialogue', 'models'],
  address: '203.0.113.7',
  issuedAt: 0,
};
const TOKEN: Grant = { ...GRANT, scopes: ['im'], address: null, issuedAt: NOW - 1_000 };

it.each<[string, Partial<Grant>, Partial<StoredKey> | null, string | null]>([
  ['stands', {}, {}, null],
  ['of no key', {}, null, 'UNAUTHENTICATED'],
  ['of a revoked one', {}, { revoked: true }, 'UNAUTHENTICATED'],
  ['of one that expires now', {}, { expiresAt: NOW }, 'UNAUTHENTICATED'],
  ['of one that expires later', {}, { expiresAt: NOW + 1 }, null],
  ['of the secret before', { generation: 2 }, {}, 'UNAUTHENTICATED'],
  ['of the secret before, in its overlap', { generation: 2 }, { previousUntil: NOW + 1 }, null],
  ['of the secret before, at its end', { generation: 2 }, { previousUntil: NOW }, 'UNAUTHENTICATED'],
  ['of one earlier still', { generation: 1 }, { previousUntil: NOW + 1 }, 'UNAUTHENTICATED'],
  ['of a secret newer than is known', { generation: 4 }, {}, null],
  ['whose scopes are gone', {}, { scopes: new Set(['im']) }, 'FORBIDDEN'],
  ['one of whose scopes is left', {}, { scopes: new Set(['models']) }, null],
  ['from an address that is allowed', {}, { allowedAddresses: ['203.0.113.0/24'] }, null],
  ['from one that is not', {}, { allowedAddresses: ['203.0.113.8'] }, 'UNAUTHENTICATED'],
  ['a token, wherever it is used', TOKEN, { allowedAddresses: ['203.0.113.8'] }, null],
  ['a token of before', TOKEN, { tokensFrom: NOW }, 'UNAUTHENTICATED'],
  ['a token of after', TOKEN, { tokensFrom: NOW - 1_000 }, null],
])('a grant that %s', (_, grant, key, code) => {
  const refusal = refusalOf({ ...GRANT, ...grant }, key && { ...KEY, ...key }, NOW);
  expect(refusal?.code ?? null).toBe(code);
});

describe('while the database is away', () => {
  beforeAll(() => Logger.overrideLogger(false));
  beforeEach(() => void jest.useFakeTimers({ now: NOW }));
  afterEach(() => void jest.useRealTimers());

  const watching = async (key: Partial<StoredKey>, grant: Partial<Grant>) => {
    const keys = { changed: () => null } as unknown as ApiKeysRepository;
    let away = false;
    const found = { keys: new Map([[GRANT.keyId, { ...KEY, ...key }]]), at: NOW };
    const database = {
      run: () => (away ? Promise.reject(new Error('away')) : Promise.resolve([[], [], found])),
    } as unknown as Database;
    const config = { env: { IM_TOKEN_TTL_SECONDS: 60 } } as Config;
    const access = new AccessWatch(database, config, keys);
    const lost: AppError[] = [];
    access.hold({ ...GRANT, ...grant }, (error) => lost.push(error));
    await access.onApplicationBootstrap();
    away = true;
    return { access, lost };
  };

  it.each([
    ['a key ends when it expires', { expiresAt: NOW + 5_000 }, {}],
    ['a secret ends with its overlap', { previousUntil: NOW + 5_000 }, { generation: 2 }],
  ])('%s', async (_, key, grant) => {
    const { access, lost } = await watching(key, grant);
    await jest.advanceTimersByTimeAsync(4_900);
    expect(lost).toEqual([]);
    await jest.advanceTimersByTimeAsync(500);
    expect(lost.map(({ code }) => code)).toEqual(['UNAUTHENTICATED']);
    // Once.
    await jest.advanceTimersByTimeAsync(5_000);
    expect(lost).toHaveLength(1);
    await access.beforeApplicationShutdown();
  });
});
