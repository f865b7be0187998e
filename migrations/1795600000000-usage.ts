import type { MigrationInterface, QueryRunner } from 'typeorm';

const OF_TENANTS = `tenant_id = any((select string_to_array(current_setting('app.tenants', true), ',')::bigint[])::bigint[])`;
const PLATFORM = `current_setting('app.platform', true) = 'on'`;

/** Nodes release, prune and add up for every tenant. */
const TENANT_OR_PLATFORM_TABLES = [
  'usage_counters',
  'usage_reservations',
  'usage_hours',
  'usage_user_hours',
] as const;

/** What a usage table adds up, and what by. */
const SUMS = `
  requests bigint not null,
  attempts bigint not null,
  prompt_tokens bigint not null,
  completion_tokens bigint not null,
  total_tokens bigint not null,
  credits numeric(24, 6) not null,
  estimated bigint not null`;
const GROUP = `
  tenant_id bigint not null,
  hour timestamptz not null,
  key_id bigint,
  assistant_id bigint,
  model_service_id bigint not null,
  model text not null,
  wire text not null`;

/** Prices with dates, quotas, and usage by the hour. */
export class CreateUsage1795600000000 implements MigrationInterface {
  name = 'CreateUsage1795600000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    // The owner is no superuser: what tenants have is hidden from it, too, unless it says who it is.
    await queryRunner.query(`select set_config('app.platform', 'on', true)`);
    // No two indexes begin alike: a statement planned on an empty table must have but one that fits.
    // `txid` says what has been written since the hours were last added up (src/usage/roll-up.ts).
    await queryRunner.query(`
      alter table usage_ledger
        add column wire text not null default 'dialogue',
        add column model text not null default '',
        add column input_price numeric(20, 8) not null default 0,
        add column output_price numeric(20, 8) not null default 0,
        add column txid xid8 not null default pg_current_xact_id();
      create index usage_ledger_written on usage_ledger (txid);
      create index usage_ledger_of_user on usage_ledger (user_id, tenant_id);
      alter table replies_in_progress add column wire text not null default 'dialogue';

      create table model_prices (
        model_service_id bigint not null references model_services (id) on delete cascade,
        effective_from timestamptz not null,
        tenant_id bigint,
        input_price numeric(20, 8) not null,
        output_price numeric(20, 8) not null,
        created_at timestamptz not null default now(),
        primary key (model_service_id, effective_from)
      );
      insert into model_prices (model_service_id, effective_from, tenant_id, input_price, output_price)
        select id, created_at, tenant_id, input_price, output_price from model_services;

      create table usage_counters (
        tenant_id bigint not null,
        scope text not null,
        scope_id text collate "C" not null,
        period text not null,
        starts_at timestamptz not null,
        requests bigint not null,
        tokens bigint not null,
        credits numeric(24, 6) not null,
        primary key (tenant_id, scope, scope_id, period, starts_at)
      ) with (fillfactor = 50);
      create index usage_counters_age on usage_counters (period, starts_at);
      create table usage_reservations (
        tenant_id bigint not null,
        id bigint not null,
        incarnation bigint,
        tokens bigint not null,
        credits numeric(24, 6) not null,
        scopes text[] not null,
        scope_ids text[] not null,
        periods text[] not null,
        starts timestamptz[] not null,
        reserved_at timestamptz not null default now(),
        primary key (tenant_id, id)
      );
      create index usage_reservations_leased on usage_reservations (id) where incarnation is not null;

      create table usage_hours (${GROUP}, ${SUMS});
      create index usage_hours_of_tenant on usage_hours (tenant_id, hour);
      create table usage_user_hours (${GROUP}, user_id text not null, ${SUMS});
      create index usage_user_hours_of_tenant on usage_user_hours (tenant_id, hour);
      create index usage_user_hours_of_user on usage_user_hours (user_id, tenant_id);
      create table usage_roll_up (
        single boolean primary key default true check (single),
        watermark xid8 not null,
        rolled_at timestamptz not null default now()
      );
      insert into usage_roll_up (watermark) values ('0');
    `);
    // Adds, then looks: whoever is over takes it all back by failing, with whatever else its transaction wrote.
    await queryRunner.query(`
      create function reserve_usage(of_tenant bigint, reservation bigint, holder bigint, more_tokens bigint,
        more_credits numeric, of_scopes text[], of_ids text[], of_periods text[], max_requests bigint[],
        max_tokens bigint[], max_credits numeric[]) returns void
      language plpgsql set search_path = public as $$
      declare
        begins timestamptz[];
        over jsonb;
      begin
        select array_agg(date_trunc(p.period, now(), 'UTC') order by p.n) into begins
          from unnest(of_periods) with ordinality as p(period, n);
        insert into usage_counters as c (tenant_id, scope, scope_id, period, starts_at, requests, tokens, credits)
          select of_tenant, w.scope, w.scope_id, w.period, w.starts_at, 1, more_tokens, more_credits
          from unnest(of_scopes, of_ids, of_periods, begins) as w(scope, scope_id, period, starts_at)
          on conflict (tenant_id, scope, scope_id, period, starts_at) do update
            set requests = c.requests + 1, tokens = c.tokens + excluded.tokens, credits = c.credits + excluded.credits;
        select jsonb_agg(jsonb_build_object('scope', w.scope, 'period', w.period, 'metric', m.metric, 'max', m.max,
            'wanted', m.wanted, 'used', m.total - m.wanted))
          into over
          from unnest(of_scopes, of_ids, of_periods, begins, max_requests, max_tokens, max_credits)
            as w(scope, scope_id, period, starts_at, max_requests, max_tokens, max_credits)
          join usage_counters c on c.tenant_id = of_tenant and c.scope = w.scope and c.scope_id = w.scope_id
            and c.period = w.period and c.starts_at = w.starts_at
          cross join lateral (values ('requests', w.max_requests::numeric, 1::numeric, c.requests::numeric),
            ('tokens', w.max_tokens, more_tokens, c.tokens), ('credits', w.max_credits, more_credits, c.credits))
            as m(metric, max, wanted, total)
          where m.total > m.max;
        if over is not null then
          raise exception using errcode = 'PLQ01', message = 'out of quota',
            detail = jsonb_build_object('over', over, 'now', now())::text;
        end if;
        insert into usage_reservations (tenant_id, id, incarnation, tokens, credits, scopes, scope_ids, periods, starts)
          values (of_tenant, reservation, holder, more_tokens, more_credits, of_scopes, of_ids, of_periods, begins);
      end $$;
      revoke all on function reserve_usage from public;
      grant execute on function reserve_usage to parley_app;
    `);
    const secure = async (table: string, using: string): Promise<void> => {
      await queryRunner.query(`alter table ${table} enable row level security`);
      await queryRunner.query(`alter table ${table} force row level security`);
      await queryRunner.query(`create policy scope on ${table} using (${using}) with check (${using})`);
    };
    for (const table of TENANT_OR_PLATFORM_TABLES) await secure(table, `${OF_TENANTS} or ${PLATFORM}`);
    // As the services they are of: without a tenant they are shared by the platform.
    await secure('model_prices', `${OF_TENANTS} or ${PLATFORM}`);
    await queryRunner.query('create policy shared on model_prices for select using (tenant_id is null)');
    await secure('usage_roll_up', PLATFORM);
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      drop function reserve_usage;
      drop table usage_roll_up, usage_user_hours, usage_hours, usage_reservations, usage_counters, model_prices;
      alter table replies_in_progress drop column wire;
      drop index usage_ledger_of_user, usage_ledger_written;
      alter table usage_ledger drop column wire, drop column model, drop column input_price, drop column output_price,
        drop column txid;
    `);
  }
}
