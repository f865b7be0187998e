import { Injectable, Logger, type BeforeApplicationShutdown } from '@nestjs/common';
import {
  AppError,
  asId,
  FreshCache,
  SCOPES,
  type ApiKeyId,
  type Principal,
  type Scope,
  type TenantId,
} from '../common';
import { Database, platformScope, type Statement } from '../database';
import { addressAllowed } from './allowed-addresses';
import { parseApiKey, secretMatches } from './api-key';
import { ApiKeysRepository, type StoredKey } from './api-keys.repository';
import { refusalOf, tokenGrant } from './grant';
import { RootKey } from './root-key';
import { TenantsRepository } from './tenants.repository';
import type { UserToken } from './user-tokens';

/** What a caller sends, on whatever wire. */
export interface Credentials {
  /** The bare key or `Bearer <key>`. */
  readonly apiKey: string | undefined;
  readonly tenantId?: string | undefined;
  readonly userId?: string | undefined;
  /** The peer's IP address, for keys that are bound to some. */
  readonly address: string;
}

const MAX_USER_ID_CHARS = 128;
const LAST_USED_FLUSH_MS = 10_000;
/** So that guessing at one key's secret costs twenty look-ups a second, however many guess. */
const MISMATCH_FRESH_MS = 50;
const MAX_CACHED_KEYS = 10_000;
const ALL_SCOPES: ReadonlySet<Scope> = new Set(SCOPES);
/** No tenant has it: with the root key and no tenant named, nothing tenant-owned is found. */
export const NO_TENANT = '0' as TenantId;

/** Turns credentials into a Principal. The HTTP guard and every WebSocket handshake ask the same one. */
@Injectable()
export class Authenticator implements BeforeApplicationShutdown {
  private readonly logger = new Logger(Authenticator.name);
  private readonly keys = new FreshCache<StoredKey | null>(MAX_CACHED_KEYS);
  private readonly tenants = new FreshCache<{ active: boolean } | null>(MAX_CACHED_KEYS);
  private readonly used = new Map<ApiKeyId, { tenantId: TenantId; at: number }>();
  private readonly timer = setInterval(() => void this.flushLastUsed(), LAST_USED_FLUSH_MS).unref();

  constructor(
    private readonly repository: ApiKeysRepository,
    private readonly database: Database,
    private readonly rootKey: RootKey,
    private readonly tenantsRepository: TenantsRepository,
  ) {}

  /** Throws UNAUTHENTICATED, TENANT_NOT_PERMITTED, TENANT_SUSPENDED; BAD_INPUT for a user id that is too long. */
  async authenticate(credentials: Credentials): Promise<Principal> {
    const key = credentials.apiKey?.replace(/^Bearer\s+/i, '').trim();
    if (!key) throw new AppError('UNAUTHENTICATED');
    const userId = credentials.userId || undefined;
    if (userId && (userId.length > MAX_USER_ID_CHARS || userId.includes('\0'))) {
      throw new AppError('BAD_INPUT', {
        message: `user-id: must be at most ${MAX_USER_ID_CHARS} characters`,
        errors: [{ field: 'user-id', message: `must be at most ${MAX_USER_ID_CHARS} characters` }],
      });
    }
    const tenant = credentials.tenantId || undefined;
    return this.rootKey.matches(key)
      ? this.platformPrincipal(tenant, userId)
      : this.tenantPrincipal(key, tenant, userId, credentials.address);
  }

  /** Whether the key that a token was asked for with would still be given it; that its tenant is active is not asked. */
  async tokenStands(token: UserToken): Promise<boolean> {
    const grant = tokenGrant(token);
    if (!grant) return true;
    const { keyId } = grant;
    const stored = await this.keys.get(keyId, () => this.repository.find(keyId));
    return refusalOf(grant, stored) === null;
  }

  /** The limits of a caller's tenant and of its key, as they stand in memory since it was let in. */
  async limitsOf({ tenantId, keyId }: Principal): Promise<Record<'tenant' | 'key', StoredKey['limits']>> {
    const stored = keyId && (await this.keys.get(keyId, () => this.repository.find(keyId)));
    if (stored) return { tenant: stored.tenantLimits, key: stored.limits };
    return { tenant: (await this.tenantsRepository.settings(tenantId))?.limits ?? {}, key: {} };
  }

  /** After a change of a key made here: this node knows it at once, the others within a second. */
  forget(keyId: ApiKeyId): void {
    this.keys.delete(keyId);
  }

  private async tenantPrincipal(
    key: string,
    tenant: string | undefined,
    userId: string | undefined,
    address: string,
  ): Promise<Principal> {
    const parts = parseApiKey(key);
    if (!parts) throw new AppError('UNAUTHENTICATED');
    const find = (): Promise<StoredKey | null> => this.repository.find(parts.id);
    const now = Date.now();
    let stored = await this.keys.get(parts.id, find);
    let generation = stored && generationOf(parts.secret, stored, now);
    // A secret that does not fit may be newer than what is cached: the key was rotated a moment ago.
    if (stored && generation === null) {
      stored = await this.keys.get(parts.id, find, MISMATCH_FRESH_MS);
      generation = stored && generationOf(parts.secret, stored, now);
    }
    if (!stored || generation === null) throw new AppError('UNAUTHENTICATED');
    if (stored.revoked || stored.expiresAt <= now) throw new AppError('UNAUTHENTICATED');
    if (!addressAllowed(address, stored.allowedAddresses)) throw new AppError('UNAUTHENTICATED');
    if (tenant !== undefined && tenant !== stored.tenantId) throw new AppError('TENANT_NOT_PERMITTED');
    if (!stored.tenantActive) throw new AppError('TENANT_SUSPENDED');
    this.used.set(parts.id, { tenantId: stored.tenantId, at: now });
    return {
      tenantId: stored.tenantId,
      keyId: parts.id,
      keyGeneration: generation,
      keyName: stored.name,
      scopes: stored.scopes,
      userId: userId ?? parts.id,
      endUser: false,
      allowedOrigins: stored.allowedOrigins,
    };
  }

  private async platformPrincipal(tenant: string | undefined, userId = 'root'): Promise<Principal> {
    let tenantId = NO_TENANT;
    if (tenant !== undefined) {
      const id = asId<TenantId>(tenant);
      const found =
        id && (await this.tenants.get(id, () => this.database.one(platformScope(), tenantStatus(id))));
      if (!found) throw new AppError('TENANT_NOT_PERMITTED');
      tenantId = id;
    }
    return {
      tenantId,
      keyId: null,
      keyGeneration: 0,
      keyName: 'root',
      scopes: ALL_SCOPES,
      userId,
      endUser: false,
      allowedOrigins: [],
    };
  }

  /** Lazily: a busy key costs one update in ten seconds. A lost flush loses a time stamp, nothing else. */
  private async flushLastUsed(): Promise<void> {
    if (this.used.size === 0) return;
    const uses = new Map(this.used);
    this.used.clear();
    try {
      await this.repository.markUsed(uses);
    } catch (error) {
      this.logger.warn(`last use of ${uses.size} keys not stored: ${(error as Error).message}`);
    }
  }

  async beforeApplicationShutdown(): Promise<void> {
    clearInterval(this.timer);
    await this.flushLastUsed();
  }
}

const tenantStatus = (id: TenantId): Statement<{ active: boolean } | null> => ({
  name: 'tenant-status',
  text: `select status = 'active' as active from tenants where id = $1`,
  values: [id],
  map: ([row]) => (row ? { active: row.active as boolean } : null),
});

/** Which of the key's secrets this is; null: none that works. */
function generationOf(secret: string, key: StoredKey, now: number): number | null {
  if (secretMatches(secret, key.secretHash)) return key.generation;
  const previous = key.previousUntil > now && key.previousHash;
  return previous && secretMatches(secret, previous) ? key.generation - 1 : null;
}
