import type { MigrationInterface, QueryRunner } from 'typeorm';

const OF_TENANTS = `tenant_id = any((select string_to_array(current_setting('app.tenants', true), ',')::bigint[])::bigint[])`;
const PLATFORM = `current_setting('app.platform', true) = 'on'`;

/** Usage by the day beside that by the hour: a month of a busy installation is tens of thousands of days' sums, and a million of hours'. */
export class CreateUsageByDay1795900000000 implements MigrationInterface {
  name = 'CreateUsageByDay1795900000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    // The owner is no superuser: what tenants have is hidden from it, too, unless it says who it is.
    await queryRunner.query(`select set_config('app.platform', 'on', true)`);
    for (const whose of ['', 'user_']) {
      const [hours, days] = [`usage_${whose}hours`, `usage_${whose}days`];
      await queryRunner.query(`
        create table ${days} (like ${hours} including all);
        alter table ${days} rename column hour to day;
        drop index ${days}_tenant_id_hour_idx;
        create index ${days}_of_tenant on ${days} (tenant_id, day);
        create index ${days}_by_day on ${days} (day);
        create index ${hours}_by_hour on ${hours} (hour);
        alter table ${days} enable row level security;
        alter table ${days} force row level security;
        create policy scope on ${days} using (${OF_TENANTS} or ${PLATFORM}) with check (${OF_TENANTS} or ${PLATFORM});
      `);
    }
    // Days before it are there; of what came since, the hours alone. A report of any tenant asks for it.
    await queryRunner.query(`
      alter table usage_roll_up add column days_until timestamptz not null default '2000-01-01T00:00:00Z';
      create policy readable on usage_roll_up for select using (true);
    `);
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      drop policy readable on usage_roll_up;
      alter table usage_roll_up drop column days_until;
      drop index usage_hours_by_hour, usage_user_hours_by_hour;
      drop table usage_days, usage_user_days;
    `);
  }
}
