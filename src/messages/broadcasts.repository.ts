import { Injectable } from '@nestjs/common';
import { AppError, IdGenerator, type BroadcastId, type TenantId } from '../common';
import {
  Database,
  idArray,
  NODE_LEASE_MS,
  NodeRegistry,
  platformScope,
  tenantScope,
  textArray,
  type Row,
  type Statement,
} from '../database';

/** Recipients that are worked on, and noted as done, together. */
export const BROADCAST_PAGE = 100;

export interface BroadcastInput {
  readonly sender: string;
  readonly msgId: string | null;
  /** What makes it the same request when it is sent again. */
  readonly requestKey: string;
  /** Of all that it asks for. */
  readonly requestHash: string;
  /** JSON text of the frame, its `target` null. */
  readonly frame: string;
  /** JSON texts of ids, each user once; null: everybody who ever connected. */
  readonly targets: readonly string[] | null;
}

export interface Broadcast {
  readonly id: BroadcastId;
  readonly sender: string;
  readonly msgId: string | null;
  readonly status: 'running' | 'finished' | 'cancelled';
  readonly everybody: boolean;
  /** Null: not known before its end. */
  readonly recipients: number | null;
  readonly stored: number;
  readonly repeated: number;
  readonly failed: number;
  readonly createdAt: Date;
  readonly endedAt: Date | null;
}

/** One that this process works on, and where it is. */
export interface BroadcastJob {
  readonly id: BroadcastId;
  readonly tenantId: TenantId;
  readonly sender: string;
  readonly frame: string;
  readonly everybody: boolean;
  readonly pagesDone: number;
  readonly afterUser: string;
}

/** Whom it did not reach; `code` is one of the wire's error frames. */
export interface BroadcastFailure {
  readonly userId: string;
  readonly code: number;
  readonly reason: string;
}

/** What came of a page. */
export interface BroadcastProgress {
  readonly stored: number;
  readonly repeated: number;
  readonly failures: readonly BroadcastFailure[];
  /** The last user of the page, of a broadcast to everybody. */
  readonly afterUser: string;
  /** There is no page after it. */
  readonly last: boolean;
}

/**
 * Broadcasts as jobs: what is accepted is stored, and any process works on it, one broadcast a tenant at a time, the
 * oldest first. How far one is moves with its counts and failures in one transaction.
 */
@Injectable()
export class BroadcastsRepository {
  constructor(
    private readonly database: Database,
    private readonly ids: IdGenerator,
    private readonly nodes: NodeRegistry,
  ) {}

  /**
   * The same request again is the same broadcast. IDEMPOTENCY_MISMATCH: its key was used with another one;
   * RATE_LIMITED: `mostRunning` of the tenant are under way.
   */
  accept(
    tenantId: TenantId,
    input: BroadcastInput,
    mostRunning: number,
    retryAfterSeconds: number,
  ): Promise<Broadcast> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const rows = (sql: string, values: unknown[]) => tx.query<Row[]>(sql, values);
      // One request of a tenant at a time: else two of them would count one too few, or make the same one twice.
      await rows(`select pg_advisory_xact_lock(hashtextextended('broadcasts', $1))`, [tenantId]);
      const [known] = await rows(
        `select ${COLUMNS}, request_hash from broadcasts where tenant_id = $1 and request_key = $2`,
        [tenantId, input.requestKey],
      );
      if (known && known.request_hash !== input.requestHash) throw new AppError('IDEMPOTENCY_MISMATCH');
      if (known) return toBroadcast(known);
      const [running] = await rows(
        `select count(*)::int as n from broadcasts where tenant_id = $1 and status = 'running'`,
        [tenantId],
      );
      if ((running!.n as number) >= mostRunning)
        throw new AppError('RATE_LIMITED', {
          message: `${mostRunning} broadcasts of this tenant are under way already; wait for one to end.`,
          retryAfterSeconds,
        });
      const { sender, msgId, requestKey, requestHash, frame, targets } = input;
      const id = this.ids.next<BroadcastId>();
      const [made] = await rows(
        `insert into broadcasts (id, tenant_id, sender, msg_id, request_key, request_hash, frame, everybody, recipients)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning ${COLUMNS}`,
        [
          id,
          tenantId,
          sender,
          msgId,
          requestKey,
          requestHash,
          frame,
          targets === null,
          targets?.length ?? null,
        ],
      );
      if (targets)
        await rows(
          `insert into broadcast_pages (broadcast_id, page, tenant_id, targets)
           select $1, (ord - 1) / ${BROADCAST_PAGE}, $2, array_agg(target order by ord)
           from unnest($3::text[]) with ordinality as i(target, ord) group by 2`,
          [id, tenantId, textArray(targets)],
        );
      return toBroadcast(made!);
    });
  }

  find(tenantId: TenantId, id: BroadcastId): Promise<Broadcast | null> {
    return this.database.one(tenantScope(tenantId), {
      name: 'broadcast-find',
      text: `select ${COLUMNS} from broadcasts where tenant_id = $1 and id = $2`,
      values: [tenantId, id],
      map: ([row]) => (row ? toBroadcast(row) : null),
    });
  }

  /** The newest first; `before` is exclusive, null: from the newest. */
  list(tenantId: TenantId, before: string | null, limit: number): Promise<Broadcast[]> {
    return this.database.one(tenantScope(tenantId), {
      name: 'broadcast-list',
      text: `select ${COLUMNS} from broadcasts
             where tenant_id = $1 and id < coalesce($2::bigint, ${MAX_BIGINT}) order by id desc limit $3`,
      values: [tenantId, before, limit],
      map: (rows) => rows.map(toBroadcast),
    });
  }

  /** By user id. */
  failures(tenantId: TenantId, id: BroadcastId, after: string, limit: number): Promise<BroadcastFailure[]> {
    return this.database.one(tenantScope(tenantId), {
      name: 'broadcast-failures',
      text: `select user_id, code, reason from broadcast_failures
             where tenant_id = $1 and broadcast_id = $2 and user_id > $3 order by user_id limit $4`,
      values: [tenantId, id, after, limit],
      map: (rows) =>
        rows.map((row) => ({
          userId: row.user_id as string,
          code: row.code as number,
          reason: row.reason as string,
        })),
    });
  }

  /** Who has it stays as they are; whoever works on it stops within a page. False: it had ended, or is not there. */
  cancel(tenantId: TenantId, id: BroadcastId): Promise<boolean> {
    return this.database.one(tenantScope(tenantId), {
      name: 'broadcast-cancel',
      text: `with ended as (
          update broadcasts set status = 'cancelled', ended_at = now(), frame = null, incarnation = null
          where tenant_id = $1 and id = $2 and status = 'running' returning id),
        gone as (delete from broadcast_pages p using ended where p.broadcast_id = ended.id and p.tenant_id = $1)
        select id from ended`,
      values: [tenantId, id],
      map: (rows) => rows.length > 0,
    });
  }

  /** The oldest of each tenant that nobody works on, of tenants that may. */
  claim(limit: number): Promise<BroadcastJob[]> {
    return this.database.one(platformScope(), claim(this.nodes.incarnation, limit));
  }

  /** Of a broadcast to users who are named: those of its next page, as JSON texts of their ids. */
  page({ tenantId, id, pagesDone }: BroadcastJob): Promise<{ targets: string[]; last: boolean }> {
    return this.database.one(tenantScope(tenantId), {
      name: 'broadcast-page',
      text: `select page, targets from broadcast_pages
             where tenant_id = $1 and broadcast_id = $2 and page >= $3 order by page limit 2`,
      values: [tenantId, id, pagesDone],
      map: ([row, next]) => ({ targets: (row?.targets as string[] | undefined) ?? [], last: !next }),
    });
  }

  /** False: it was cancelled, or another process has taken it over. Then nothing was noted. */
  advance(job: BroadcastJob, progress: BroadcastProgress): Promise<boolean> {
    return this.database.one(tenantScope(job.tenantId), advance(job, progress, this.nodes.incarnation));
  }

  /** To be taken up again after `delayMs`, by whoever is there. */
  async release({ tenantId, id }: BroadcastJob, delayMs: number): Promise<void> {
    await this.database.one(tenantScope(tenantId), {
      name: 'broadcast-release',
      text: `update broadcasts set incarnation = null, next_at = now() + make_interval(secs => $4 / 1000.0)
             where tenant_id = $1 and id = $2 and incarnation = $3`,
      values: [tenantId, id, this.nodes.incarnation.toString(), delayMs],
      map: () => undefined,
    });
  }

  /** Forgets what ended before; at most `limit` of them, and how many it were. */
  prune(before: Date, limit: number): Promise<number> {
    return this.database.one(platformScope(), {
      name: 'broadcast-prune',
      text: `with gone as (delete from broadcasts where id in (
               select id from broadcasts where ended_at < $1 order by ended_at limit $2) returning 1)
             select count(*)::int as n from gone`,
      values: [before, limit],
      map: ([row]) => row!.n as number,
    });
  }
}

const MAX_BIGINT = '9223372036854775807';
const COLUMNS =
  'id, sender, msg_id, status, everybody, recipients, stored, repeated, failed, created_at, ended_at';

const claim = (incarnation: bigint, limit: number): Statement<BroadcastJob[]> => ({
  name: 'broadcast-claim',
  text: `with due as (
      select b.id from broadcasts b join tenants t on t.id = b.tenant_id
      where b.status = 'running' and b.next_at <= now() and t.status = 'active'
        and (b.incarnation is null or not exists (
          select 1 from nodes n where n.incarnation = b.incarnation
            and n.heartbeat_at > now() - interval '${NODE_LEASE_MS} milliseconds'))
        and not exists (select 1 from broadcasts e
          where e.tenant_id = b.tenant_id and e.status = 'running' and e.id < b.id)
      order by b.id limit $2 for update of b skip locked)
    update broadcasts b set incarnation = $1 from due where b.id = due.id
    returning b.id, b.tenant_id, b.sender, b.frame, b.everybody, b.pages_done, b.after_user`,
  values: [incarnation.toString(), limit],
  map: (rows) =>
    rows.map((row) => ({
      id: row.id as BroadcastId,
      tenantId: row.tenant_id as TenantId,
      sender: row.sender as string,
      frame: row.frame as string,
      everybody: row.everybody as boolean,
      pagesDone: row.pages_done as number,
      afterUser: row.after_user as string,
    })),
});

const advance = (
  { tenantId, id, pagesDone }: BroadcastJob,
  { stored, repeated, failures, afterUser, last }: BroadcastProgress,
  incarnation: bigint,
): Statement<boolean> => ({
  name: 'broadcast-advance',
  text: `with moved as (
      update broadcasts set stored = stored + $5, repeated = repeated + $6, failed = failed + $7,
        pages_done = pages_done + 1, after_user = $8,
        recipients = case when everybody and $9 then stored + repeated + failed + $5 + $6 + $7 else recipients end,
        status = case when $9 then 'finished' else status end,
        ended_at = case when $9 then now() end,
        incarnation = case when $9 then null else incarnation end,
        frame = case when $9 then null else frame end
      where tenant_id = $1 and id = $2 and status = 'running' and incarnation = $3 and pages_done = $4
      returning id),
    told as (
      insert into broadcast_failures (broadcast_id, tenant_id, user_id, code, reason)
      select moved.id, $1, f.user_id, f.code, f.reason
      from moved, unnest($10::text[], $11::int[], $12::text[]) as f(user_id, code, reason)
      on conflict do nothing),
    gone as (
      delete from broadcast_pages p using moved where p.tenant_id = $1 and p.broadcast_id = moved.id and p.page = $4)
    select id from moved`,
  values: [
    tenantId,
    id,
    incarnation.toString(),
    pagesDone,
    stored,
    repeated,
    failures.length,
    afterUser,
    last,
    textArray(failures.map(({ userId }) => userId)),
    idArray(failures.map(({ code }) => code)),
    textArray(failures.map(({ reason }) => reason)),
  ],
  map: (rows) => rows.length > 0,
});

function toBroadcast(row: Row): Broadcast {
  return {
    id: row.id as BroadcastId,
    sender: row.sender as string,
    msgId: row.msg_id as string | null,
    status: row.status as Broadcast['status'],
    everybody: row.everybody as boolean,
    recipients: row.recipients as number | null,
    stored: row.stored as number,
    repeated: row.repeated as number,
    failed: row.failed as number,
    createdAt: row.created_at as Date,
    endedAt: row.ended_at as Date | null,
  };
}
