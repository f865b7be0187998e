import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { Periodic } from '../common';
import { Database, NODE_LEASE_MS, NodeRegistry, platformScope, type Statement } from '../database';

const RELEASE_MS = 5_000;
const PRUNE_MS = 600_000;
const BATCH = 1_000;
/** Longer than any request lasts: what a living process has kept so long it could not settle. */
const FORGOTTEN = `interval '6 hours'`;

/** Gives back what dead processes had reserved, and clears away counts of periods that are over. */
@Injectable()
export class QuotaKeeper implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(QuotaKeeper.name);
  private readonly works: Periodic[] = [];

  constructor(
    private readonly database: Database,
    private readonly nodes: NodeRegistry,
  ) {}

  onApplicationBootstrap(): void {
    const failed = ({ message }: Error): void =>
      this.logger.warn(`quotas not tended, will be tried again: ${message}`);
    this.works.push(new Periodic(RELEASE_MS, () => this.release(), failed));
    this.works.push(new Periodic(PRUNE_MS, () => this.prune(), failed));
  }

  async beforeApplicationShutdown(): Promise<void> {
    await Promise.all(this.works.map((work) => work.stop()));
  }

  /** What a dead process had asked for was asked for: its requests stay counted, its tokens are unknown and given back. */
  async release(): Promise<void> {
    if (!this.nodes.mayJudge) return;
    while ((await this.database.one(platformScope(), releaseOrphans)) === BATCH);
  }

  async prune(): Promise<void> {
    while ((await this.database.one(platformScope(), pruneCounters)) === BATCH);
  }
}

const releaseOrphans: Statement<number> = {
  name: 'quota-release',
  text: `with orphans as (
      select r.tenant_id, r.id from usage_reservations r
      where r.incarnation is not null and (r.reserved_at < now() - ${FORGOTTEN} or not exists (
        select 1 from nodes n where n.incarnation = r.incarnation
          and n.heartbeat_at > now() - interval '${NODE_LEASE_MS} milliseconds'))
      order by r.id limit ${BATCH} for update skip locked),
    released as (
      delete from usage_reservations r using orphans o where r.tenant_id = o.tenant_id and r.id = o.id returning r.*),
    given as (
      insert into usage_counters as c (tenant_id, scope, scope_id, period, starts_at, requests, tokens, credits)
      select r.tenant_id, w.scope, w.scope_id, w.period, w.starts_at, 0, -sum(r.tokens), -sum(r.credits)
      from released r cross join lateral unnest(r.scopes, r.scope_ids, r.periods, r.starts)
        as w(scope, scope_id, period, starts_at)
      group by 1, 2, 3, 4, 5
      order by 1, array_position('{tenant,key,user,key-user}'::text[], w.scope), 3, array_position('{minute,day,month}'::text[], w.period), 5
      on conflict (tenant_id, scope, scope_id, period, starts_at) do update
        set tokens = c.tokens + excluded.tokens, credits = c.credits + excluded.credits)
    select count(*) as n from released`,
  values: [],
  map: ([row]) => Number(row!.n),
};

const pruneCounters: Statement<number> = {
  name: 'quota-prune',
  text: `delete from usage_counters where ctid in (
           select ctid from usage_counters
           where (period = 'minute' and starts_at < now() - interval '1 hour')
             or (period = 'day' and starts_at < now() - interval '3 days')
             or (period = 'month' and starts_at < now() - interval '63 days')
           limit ${BATCH}) returning 1`,
  values: [],
  map: (rows) => rows.length,
};
