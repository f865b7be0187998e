import type { MigrationInterface, QueryRunner } from 'typeorm';

const OF_TENANTS = `tenant_id = any((select string_to_array(current_setting('app.tenants', true), ',')::bigint[])::bigint[])`;
const PLATFORM = `current_setting('app.platform', true) = 'on'`;
const ARGUMENTS = 'bigint, bigint, bigint, numeric, text[], text[], text[], bigint[], bigint[], numeric[]';

/** As it is from here on, and, with a holder, as it was before. */
const reserveUsage = ({
  holder,
  column,
  value,
}: Record<
  'holder' | 'column' | 'value',
  string
>): string => `create function reserve_usage(of_tenant bigint, reservation bigint,${holder} more_tokens bigint,
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
        insert into usage_reservations (tenant_id, id,${column} tokens, credits, scopes, scope_ids, periods, starts)
          values (of_tenant, reservation,${value} more_tokens, more_credits, of_scopes, of_ids, of_periods, begins);
      end $$;`;

/** Requests whose process alone knows of them are written down while they last: if it dies, they have their ledger row. */
export class CreateOpenRequests1795700000000 implements MigrationInterface {
  name = 'CreateOpenRequests1795700000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    // The owner is no superuser: what tenants have is hidden from it, too, unless it says who it is.
    await queryRunner.query(`select set_config('app.platform', 'on', true)`);
    await queryRunner.query(`
      create table open_requests (
        tenant_id bigint not null,
        id bigint not null,
        incarnation bigint not null,
        key_id bigint,
        user_id text not null,
        assistant_id bigint,
        model_service_id bigint not null,
        model text not null,
        input_price numeric(20, 8) not null,
        output_price numeric(20, 8) not null,
        wire text not null,
        prompt_tokens integer not null,
        begun_at timestamptz not null default now(),
        primary key (tenant_id, id)
      );
      create index open_requests_by_age on open_requests (begun_at);
    `);
    for (const statement of [
      'alter table open_requests enable row level security',
      'alter table open_requests force row level security',
      `create policy scope on open_requests using (${OF_TENANTS} or ${PLATFORM}) with check (${OF_TENANTS} or ${PLATFORM})`,
    ])
      await queryRunner.query(statement);
    // A reservation is released by whoever ends its request, so it need not know whose it is any more.
    await queryRunner.query(`
      drop function reserve_usage(bigint, ${ARGUMENTS});
      ${reserveUsage({ holder: '', column: '', value: '' })}
      revoke all on function reserve_usage from public;
      grant execute on function reserve_usage to parley_app;
      delete from usage_reservations where incarnation is not null;
      alter table usage_reservations drop column incarnation;
    `);
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      alter table usage_reservations add column incarnation bigint;
      create index usage_reservations_leased on usage_reservations (id) where incarnation is not null;
      drop function reserve_usage(${ARGUMENTS});
      ${reserveUsage({ holder: ' holder bigint,', column: ' incarnation,', value: ' holder,' })}
      revoke all on function reserve_usage from public;
      grant execute on function reserve_usage to parley_app;
      drop table open_requests;
    `);
  }
}
