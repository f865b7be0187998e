import { Injectable } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { AppError, TokenBucket, type Principal } from '../common';
import { Config } from '../config';
import { limitsOf, TenantsRepository, UserTokens } from '../tenancy';
import { tenantOf } from '../replies';

const CLIENT = 'channel';
const DEFAULT_SECONDS = 900;
const MINUTE_MS = 60_000;
const MAX_KEYS = 100_000;

/** Makes short-lived tokens that open the agent channel and nothing else, at most so many a minute for a key. */
@Injectable()
export class ChannelTokens {
  private readonly buckets = new LRUCache<string, TokenBucket>({ max: MAX_KEYS });

  constructor(
    private readonly config: Config,
    private readonly tokens: UserTokens,
    private readonly tenants: TenantsRepository,
  ) {}

  /** `expiresAt` in epoch ms. Throws BAD_INPUT (the root key names no tenant), TENANT_SUSPENDED, RATE_LIMITED. */
  async issue(
    principal: Principal,
    userId: string,
    seconds = DEFAULT_SECONDS,
  ): Promise<{ token: string; expiresAt: number }> {
    const tenantId = tenantOf(principal);
    const { keyId, keyGeneration: generation } = principal;
    const settings = await this.tenants.settings(tenantId);
    if (!settings?.active) throw new AppError('TENANT_SUSPENDED');
    this.limit(keyId ?? tenantId, limitsOf(this.config, settings).tokensPerMinute);
    // Revocations are remembered for as long as the installation's tokens live.
    const lifetime = Math.min(seconds, this.config.env.IM_TOKEN_TTL_SECONDS);
    const issuedAt = Date.now();
    const expiresAt = (Math.floor(issuedAt / 1_000) + lifetime) * 1_000;
    const claims = { tenantId, userId, client: CLIENT, keyId, generation, issuedAt, expiresAt };
    return { token: await this.tokens.sign(claims, 'channel'), expiresAt };
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
