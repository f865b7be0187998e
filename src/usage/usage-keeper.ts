import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { Periodic } from '../common';
import { Database, NODE_LEASE_MS, NodeRegistry, platformScope, type Statement } from '../database';

const SWEEP_MS = 5_000;
const PRUNE_MS = 600_000;
const BATCH = 1_000;
/** Longer than any request lasts: what a living process has kept so long it could not settle. */
const FORGOTTEN = `interval '6 hours'`;

/** Ends, as interrupted, the requests of dead processes, and clears away counts of periods that are over. */
@Injectable()
export class UsageKeeper implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(UsageKeeper.name);
  private readonly works: Periodic[] = [];

  constructor(
    private readonly database: Database,
    private readonly nodes: NodeRegistry,
  ) {}

  onApplicationBootstrap(): void {
    const failed = ({ message }: Error): void =>
      this.logger.warn(`open requests and quotas not tended, will be tried again: ${message}`);
    this.works.push(new Periodic(SWEEP_MS, () => this.sweep(), failed));
    this.works.push(new Periodic(PRUNE_MS, () => this.prune(), failed));
  }

  async beforeApplicationShutdown(): Promise<void> {
    await Promise.all(this.works.map((work) => work.stop()));
  }

  /** What was asked for was asked for: the request and its prompt stay counted, what was answered is not known. */
  async sweep(): Promise<void> {
    if (!this.nodes.mayJudge) return;
    for (let ended = BATCH; ended === BATCH;) {
      ended = await this.database.one(platformScope(), interruptOrphans);
      if (ended > 0)
        this.logger.warn(`${ended} requests were interrupted: the process that made them is gone`);
    }
  }

  async prune(): Promise<void> {
    while ((await this.database.one(platformScope(), pruneCounters)) === BATCH);
  }
}

const interruptOrphans: Statement<number> = {
  name: 'open-requests-interrupt',
  text: `with orphans as (
      select r.*, round(r.prompt_tokens * r.input_price / 1000000, 6) as credits from open_requests r
      where r.begun_at < now() - ${FORGOTTEN} or not exists (
        select 1 from nodes n where n.incarnation = r.incarnation
          and n.heartbeat_at > now() - interval '${NODE_LEASE_MS} milliseconds')
      order by r.begun_at limit ${BATCH} for update skip locked),
    gone as (
      delete from open_requests r using orphans o where r.tenant_id = o.tenant_id and r.id = o.id),
    recorded as (
      insert into usage_ledger (message_id, tenant_id, key_id, user_id, assistant_id, model_service_id, attempts,
        prompt_tokens, completion_tokens, total_tokens, estimated, credits, outcome, first_piece_ms, latency_ms,
        wire, model, input_price, output_price)
      select id, tenant_id, key_id, user_id, assistant_id, model_service_id, 1, prompt_tokens, 0, prompt_tokens, true,
        credits, 'interrupted', null, least(2147483647, 1000 * extract(epoch from now() - begun_at)), wire, model, input_price, output_price
      from orphans on conflict (message_id) do nothing),
    released as (
      delete from usage_reservations r using orphans o where r.tenant_id = o.tenant_id and r.id = o.id
      returning r.*, o.prompt_tokens - r.tokens as more_tokens, o.credits - r.credits as more_credits),
    sums as (
      select r.tenant_id, w.scope, w.scope_id, w.period, w.starts_at, sum(r.more_tokens) as tokens, sum(r.more_credits) as credits
      from released r cross join lateral unnest(r.scopes, r.scope_ids, r.periods, r.starts)
        as w(scope, scope_id, period, starts_at)
      group by 1, 2, 3, 4, 5),
    -- In the order in which requests reserve them: nobody waits for each other.
    locked as (
      select c.tenant_id, c.scope, c.scope_id, c.period, c.starts_at, s.tokens, s.credits
      from sums s join usage_counters c on c.tenant_id = s.tenant_id and c.scope = s.scope and c.scope_id = s.scope_id
        and c.period = s.period and c.starts_at = s.starts_at
      order by c.tenant_id, array_position('{tenant,key,user,key-user}'::text[], c.scope), c.scope_id,
        array_position('{minute,day,month}'::text[], c.period), c.starts_at for update of c),
    given as (
      update usage_counters c set tokens = c.tokens + s.tokens, credits = c.credits + s.credits from locked s
      where c.tenant_id = s.tenant_id and c.scope = s.scope and c.scope_id = s.scope_id and c.period = s.period
        and c.starts_at = s.starts_at)
    select count(*) as n from orphans`,
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
