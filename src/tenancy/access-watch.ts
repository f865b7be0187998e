import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { Periodic, type ApiKeyId, type TenantId } from '../common';
import { Config } from '../config';
import { Database, platformScope, tenantScope, type Statement } from '../database';
import type { UserToken } from './user-tokens';

/** Access that ended while connections of it may be open. */
export type LostAccess =
  | {
      readonly kind: 'revoked';
      readonly tenantId: TenantId;
      readonly userId: string;
      readonly client: string | null;
      readonly at: number;
    }
  | { readonly kind: 'suspended'; readonly tenantId: TenantId }
  | { readonly kind: 'key'; readonly keyId: ApiKeyId };

/** Whose access somebody holds open here. */
export interface Watched {
  readonly tenants: Iterable<TenantId>;
  readonly keys: Iterable<ApiKeyId>;
}

interface Revocation {
  readonly tenantId: TenantId;
  readonly userId: string;
  /** Empty: every device. */
  readonly client: string;
  readonly at: number;
}

/** Promised is "within a second". */
const POLL_MS = 400;
/** Committed later than its time says, by a slow transaction or another node's clock. */
const OVERLAP_MS = 5_000;

/**
 * Revocations of user tokens, and who lost access in any other way. Every node reads what is new a few times a
 * second, so no message between them is needed, and a handshake asks memory alone.
 */
@Injectable()
export class AccessWatch implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(AccessWatch.name);
  private readonly revoked = new Map<string, number>();
  private readonly watchers: { watched: () => Watched; lost: (access: LostAccess) => void }[] = [];
  private newest = 0;
  private polling: Periodic | undefined;

  constructor(
    private readonly database: Database,
    private readonly config: Config,
  ) {}

  async onApplicationBootstrap(): Promise<void> {
    // The database is away: what is known stands, and the next poll catches up.
    const failed = ({ message }: Error): void => this.logger.debug(`access not looked at: ${message}`);
    this.polling = new Periodic(POLL_MS, () => this.poll(), failed);
    await this.polling.run();
  }

  async beforeApplicationShutdown(): Promise<void> {
    await this.polling?.stop();
  }

  watch(watched: () => Watched, lost: (access: LostAccess) => void): void {
    this.watchers.push({ watched, lost });
  }

  /** True when the token was issued before a revocation of its user or its device. */
  isRevoked({ tenantId, userId, client, issuedAt }: UserToken): boolean {
    return (
      issuedAt <= (this.revoked.get(revocationKey(tenantId, userId, '')) ?? -1) ||
      issuedAt <= (this.revoked.get(revocationKey(tenantId, userId, client)) ?? -1)
    );
  }

  /** Every token of the user, or of one device, that was issued until now. */
  async revoke(tenantId: TenantId, userId: string, client: string | null): Promise<void> {
    const revocation: Revocation = { tenantId, userId, client: client ?? '', at: Date.now() };
    await this.database.one(tenantScope(tenantId), storeRevocation(revocation));
    this.apply(revocation);
  }

  private async poll(): Promise<void> {
    const since = this.newest === 0 ? 0 : this.newest - OVERLAP_MS;
    const oldest = Date.now() - this.config.env.IM_TOKEN_TTL_SECONDS * 1_000 - OVERLAP_MS;
    const sets = this.watchers.map(({ watched }) => watched());
    const [fresh, suspended, keys] = await this.database.run(platformScope(), [
      revocationsSince(Math.max(since, oldest)),
      suspendedAmong([...new Set(sets.flatMap(({ tenants }) => [...tenants]))]),
      deadAmong([...new Set(sets.flatMap(({ keys }) => [...keys]))]),
    ]);
    for (const revocation of fresh) this.apply(revocation);
    for (const tenantId of suspended) this.tell({ kind: 'suspended', tenantId });
    for (const keyId of keys) this.tell({ kind: 'key', keyId });
    for (const [key, at] of this.revoked) if (at < oldest) this.revoked.delete(key);
  }

  private apply({ tenantId, userId, client, at }: Revocation): void {
    this.newest = Math.max(this.newest, at);
    const key = revocationKey(tenantId, userId, client);
    if ((this.revoked.get(key) ?? -1) >= at) return;
    this.revoked.set(key, at);
    this.tell({ kind: 'revoked', tenantId, userId, client: client || null, at });
  }

  private tell(access: LostAccess): void {
    for (const { lost } of this.watchers) lost(access);
  }
}

function revocationKey(tenantId: TenantId, userId: string, client: string): string {
  return JSON.stringify([tenantId, userId, client]);
}

const storeRevocation = ({ tenantId, userId, client, at }: Revocation): Statement<void> => ({
  name: 'revocation-store',
  text: `insert into im_revocations as r (tenant_id, user_id, client, revoked_at) values ($1, $2, $3, $4)
         on conflict (tenant_id, user_id, client) do update set revoked_at = greatest(r.revoked_at, excluded.revoked_at)`,
  values: [tenantId, userId, client, new Date(at)],
  map: () => undefined,
});

const revocationsSince = (since: number): Statement<Revocation[]> => ({
  name: 'revocation-since',
  text: 'select tenant_id, user_id, client, revoked_at from im_revocations where revoked_at > $1',
  values: [new Date(since)],
  map: (rows) =>
    rows.map((row) => ({
      tenantId: row.tenant_id as TenantId,
      userId: row.user_id as string,
      client: row.client as string,
      at: (row.revoked_at as Date).getTime(),
    })),
});

const suspendedAmong = (ids: readonly TenantId[]): Statement<TenantId[]> => ({
  name: 'tenant-suspended',
  text: `select id from tenants where id = any($1::bigint[]) and status <> 'active'`,
  values: [ids],
  map: (rows) => rows.map((row) => row.id as TenantId),
});

const deadAmong = (ids: readonly ApiKeyId[]): Statement<ApiKeyId[]> => ({
  name: 'api-key-dead',
  text: 'select id from api_keys where id = any($1::bigint[]) and (revoked_at is not null or expires_at <= now())',
  values: [ids],
  map: (rows) => rows.map((row) => row.id as ApiKeyId),
});
