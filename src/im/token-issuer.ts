import { Injectable } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { AppError, TokenBucket, type Principal } from '../common';
import { Config } from '../config';
import { ConversationsRepository } from '../messages';
import { limitsOf, NO_TENANT, TenantsRepository, UserTokens } from '../tenancy';
import { idText } from './frames';
import { Messenger } from './messenger';

export interface TokenInput {
  readonly userId: string | number;
  readonly client: string;
  readonly groupId?: readonly string[];
}

const MINUTE_MS = 60_000;
const MAX_KEYS = 100_000;

/** Makes tokens, at most so many a minute for a key, and sees that the user is in the groups it names. */
@Injectable()
export class TokenIssuer {
  private readonly buckets = new LRUCache<string, TokenBucket>({ max: MAX_KEYS });

  constructor(
    private readonly config: Config,
    private readonly tokens: UserTokens,
    private readonly tenants: TenantsRepository,
    private readonly conversations: ConversationsRepository,
    private readonly messenger: Messenger,
  ) {}

  /** Throws FORBIDDEN, RATE_LIMITED, CONFLICT (a group is full). */
  async issue(
    { tenantId, keyId, keyGeneration: generation, scopes }: Principal,
    { userId, client, groupId = [] }: TokenInput,
  ): Promise<{ token: string; expiresAt: number }> {
    if (!scopes.has('im') && !scopes.has('platform')) throw new AppError('FORBIDDEN');
    if (tenantId === NO_TENANT) {
      throw new AppError('BAD_INPUT', { message: 'tenant-id: is needed with the root key' });
    }
    const settings = await this.tenants.settings(tenantId);
    if (!settings?.active) throw new AppError('TENANT_SUSPENDED');
    this.limit(keyId ?? tenantId, limitsOf(this.config, settings).tokensPerMinute);
    const user = idText(userId);
    const sender = { tenantId, userId: user, client: '', origin: '', server: true };
    const joined = await this.conversations.groupsOf(tenantId, user, groupId);
    for (const group of new Set(groupId)) {
      if (joined.has(group)) continue;
      await this.messenger.changeMembership(sender, { type: 'join', source: userId, target: group });
    }
    // A token of this very moment must be newer than a revocation of the moment before.
    const issuedAt = Date.now();
    const expiresAt = (Math.floor(issuedAt / 1_000) + this.config.env.IM_TOKEN_TTL_SECONDS) * 1_000;
    const claims = { tenantId, userId: user, client, keyId, generation, issuedAt, expiresAt };
    const token = await this.tokens.sign(claims);
    return { token, expiresAt };
  }

  private limit(key: string, perMinute: number): void {
    const now = Date.now();
    const bucket = this.buckets.get(key) ?? new TokenBucket(perMinute, now);
    this.buckets.set(key, bucket);
    if (bucket.take(now, perMinute, perMinute / 60)) return;
    const retryAfterSeconds = Math.ceil(Math.min(MINUTE_MS, bucket.waitMs(perMinute / 60)) / 1_000);
    throw new AppError('RATE_LIMITED', { retryAfterSeconds });
  }
}
