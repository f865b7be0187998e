import { Injectable, Logger, type BeforeApplicationShutdown } from '@nestjs/common';
import {
  AddressRanges,
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
import { parseApiKey, secretMatches } from './api-key';
import { ApiKeysRepository, type StoredKey } from './api-keys.repository';
import { RootKey } from './root-key';
import { TenantsRepository } from './tenants.repository';

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

  /** Whether what was made with this key is still good. */
  async keyStands(id: ApiKeyId): Promise<boolean> {
    const stored = await this.keys.get(id, () => this.repository.find(id));
    return stored !== null && !stored.revoked && stored.expiresAt > Date.now();
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
    let stored = await this.keys.get(parts.id, find);
    // A secret that does not fit may be newer than what is cached: the key was rotated a moment ago.
    if (stored && !secretMatches(parts.secret, stored.secretHash)) {
      stored = await this.keys.get(parts.id, find, MISMATCH_FRESH_MS);
    }
    if (!stored || !secretMatches(parts.secret, stored.secretHash)) throw new AppError('UNAUTHENTICATED');
    const now = Date.now();
    if (stored.revoked || stored.expiresAt <= now) throw new AppError('UNAUTHENTICATED');
    if (!addressAllowed(address, stored.allowedAddresses)) throw new AppError('UNAUTHENTICATED');
    if (tenant !== undefined && tenant !== stored.tenantId) throw new AppError('TENANT_NOT_PERMITTED');
    if (!stored.tenantActive) throw new AppError('TENANT_SUSPENDED');
    this.used.set(parts.id, { tenantId: stored.tenantId, at: now });
    return {
      tenantId: stored.tenantId,
      keyId: parts.id,
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

/** True when no list is set, or one of its addresses or CIDR ranges holds the peer's. */
export function addressAllowed(address: string, allowed: readonly string[]): boolean {
  if (allowed.length === 0) return true;
  return new AddressRanges(allowed).has(address);
}
