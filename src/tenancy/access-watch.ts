import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { AppError, Periodic, type ApiKeyId, type TenantId } from '../common';
import { Config } from '../config';
import { Database, platformScope, tenantScope, type Statement } from '../database';
import { ApiKeysRepository, type StoredKey } from './api-keys.repository';
import { refusalOf, type Grant } from './grant';
import type { UserToken } from './user-tokens';

/** Access that ended, or may have, while what rests on it is open. */
export type LostAccess =
  | {
      readonly kind: 'revoked';
      readonly tenantId: TenantId;
      readonly userId: string;
      readonly client: string | null;
      readonly at: number;
    }
  | { readonly kind: 'suspended'; readonly tenantId: TenantId }
  | {
      /** Keys that were changed or have expired: each grant of theirs is to be looked at. */
      readonly kind: 'keys';
      readonly ids: ReadonlySet<ApiKeyId>;
      /** Why it does not stand any more; null: it does, or is not of these keys. */
      refusalOf(grant: Grant | null): AppError | null;
    };

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

/** What is known of a key that something open rests on; `key` null: there is none of that id. */
interface Known {
  readonly key: StoredKey | null;
  /** When this process learnt it, epoch ms. */
  readonly at: number;
}

interface Held {
  readonly grant: Grant;
  readonly lost: (error: AppError) => void;
}

/** Promised is "within a second". */
const POLL_MS = 400;
/** Committed later than its time says, by a slow transaction or another node's clock. */
const OVERLAP_MS = 5_000;
/** Who was let in by what was remembered of a key a moment before its change may come after the change was told. */
const TELL_AGAIN_MS = 2_000;

/**
 * Revocations of user tokens, and who lost access in any other way. Every node reads what is new a few times a
 * second, so no message between them is needed, and a handshake asks memory alone. What ends by the clock (a key, the
 * overlap of a rotation) ends also while the database is away.
 */
@Injectable()
export class AccessWatch implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(AccessWatch.name);
  private readonly revoked = new Map<string, number>();
  private readonly watchers: { watched: () => Watched; lost: (access: LostAccess) => void }[] = [];
  private readonly held = new Set<Held>();
  private readonly known = new Map<ApiKeyId, Known>();
  private newest = 0;
  /** Of the last answer, by the database's clock. */
  private askedAt = 0;
  private timer: NodeJS.Timeout | undefined;
  private polling: Periodic | undefined;

  constructor(
    private readonly database: Database,
    private readonly config: Config,
    private readonly keys: ApiKeysRepository,
  ) {}

  async onApplicationBootstrap(): Promise<void> {
    this.watch(
      () => ({ tenants: this.grants('tenantId'), keys: this.grants('keyId') }),
      (access) => this.letGo(access),
    );
    // The database is away: what is known stands, and the next poll catches up.
    const failed = ({ message }: Error): void => this.logger.debug(`access not looked at: ${message}`);
    this.polling = new Periodic(POLL_MS, () => this.poll(), failed);
    this.timer = setInterval(() => this.lookAtTheClock(), POLL_MS).unref();
    await this.polling.run();
  }

  async beforeApplicationShutdown(): Promise<void> {
    clearInterval(this.timer);
    await this.polling?.stop();
  }

  watch(watched: () => Watched, lost: (access: LostAccess) => void): void {
    this.watchers.push({ watched, lost });
  }

  /** For an answer that takes its time: calls back once when what it rests on ends. Returns what ends the watch. */
  hold(grant: Grant | null, lost: (error: AppError) => void): () => void {
    if (!grant) return () => undefined;
    const held = { grant, lost };
    this.held.add(held);
    return () => this.held.delete(held);
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
    const keys = new Set(sets.flatMap((set) => [...set.keys]));
    for (const id of this.known.keys()) if (!keys.has(id)) this.known.delete(id);
    const unknown = [...keys].filter((id) => !this.known.has(id));
    const [fresh, suspended, changed] = await this.database.run(platformScope(), [
      revocationsSince(Math.max(since, oldest)),
      suspendedAmong([...new Set(sets.flatMap(({ tenants }) => [...tenants]))]),
      this.keys.changed(unknown, [...this.known.keys()], this.askedAt - OVERLAP_MS),
    ]);
    this.askedAt = changed.at;
    for (const revocation of fresh) this.apply(revocation);
    for (const tenantId of suspended) this.tell({ kind: 'suspended', tenantId });
    this.learn(unknown, changed.keys);
    for (const [key, at] of this.revoked) if (at < oldest) this.revoked.delete(key);
  }

  private learn(unknown: readonly ApiKeyId[], found: ReadonlyMap<ApiKeyId, StoredKey>): void {
    const now = Date.now();
    const told = new Set<ApiKeyId>(unknown.filter((id) => !found.has(id)));
    for (const id of told) this.known.set(id, { key: null, at: now });
    for (const [id, key] of found) {
      const before = this.known.get(id);
      if (before?.key?.updatedAt !== key.updatedAt) this.known.set(id, { key, at: now });
      // The same row comes again for a while, and a revoked one always.
      else if (!key.revoked && now - before.at > TELL_AGAIN_MS) continue;
      told.add(id);
    }
    this.tellKeys(told);
  }

  /** Keys that have expired, and secrets whose overlap is over. */
  private lookAtTheClock(): void {
    const now = Date.now();
    const over = new Set<ApiKeyId>();
    for (const [id, { key }] of this.known) {
      if (!key) continue;
      const overlapOver = key.previousUntil <= now && key.previousUntil > now - TELL_AGAIN_MS;
      if (key.expiresAt <= now || overlapOver) over.add(id);
    }
    this.tellKeys(over);
  }

  private tellKeys(ids: ReadonlySet<ApiKeyId>): void {
    if (ids.size === 0) return;
    const now = Date.now();
    this.tell({
      kind: 'keys',
      ids,
      refusalOf: (grant) =>
        grant && ids.has(grant.keyId)
          ? refusalOf(grant, this.known.get(grant.keyId)?.key ?? null, now)
          : null,
    });
  }

  private letGo(access: LostAccess): void {
    if (access.kind === 'revoked') return;
    for (const one of this.held) {
      const error =
        access.kind === 'keys'
          ? access.refusalOf(one.grant)
          : one.grant.tenantId === access.tenantId
            ? new AppError('TENANT_SUSPENDED')
            : null;
      if (!error) continue;
      this.held.delete(one);
      one.lost(error);
    }
  }

  private grants<K extends 'tenantId' | 'keyId'>(field: K): Set<Grant[K]> {
    return new Set([...this.held].map(({ grant }) => grant[field]));
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
