import type { MigrationInterface, QueryRunner } from 'typeorm';

const SETTINGS = 'autovacuum_vacuum_insert_threshold = 5000000, autovacuum_analyze_threshold = 1000000';

const ensurePartition = (settings: string): string => `
  create or replace function ensure_message_partition(of_month timestamptz) returns boolean
  language plpgsql security definer set search_path = public as $$
  declare
    first timestamptz := date_trunc('month', of_month, 'UTC');
    name text := 'messages_' || to_char(first at time zone 'UTC', 'YYYYMM');
  begin
    perform pg_advisory_xact_lock(7300418);
    if to_regclass(name) is not null then return false; end if;
    execute format('create table %I partition of messages for values from (%s) to (%s) ${settings}', name,
      message_id_at(first), message_id_at(date_trunc('month', first + interval '32 days', 'UTC')));
    execute format('create unique index on %I (conversation_id, seq)', name);
    execute format('create unique index on %I (conversation_id, dedupe) where dedupe is not null', name);
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('revoke all on %I from public, parley_app', name);
    return true;
  end $$`;

const onPartitions = (change: string): string => `
  do $$ declare name text; begin
    for name in select inhrelid::regclass::text from pg_inherits where inhparent = 'messages'::regclass loop
      execute format('alter table %s ${change}', name);
    end loop;
  end $$`;

/**
 * A month's messages are written once, and every query finds them by an index, by one plan: vacuuming what was merely
 * added serves nothing but freezing, and statistics change no plan. By default both are done anew with every tenth
 * and fifth that a month grows by, which on a server that has just begun is all the time. Rows that were deleted or
 * recalled are vacuumed as ever.
 */
export class VacuumMessagesLess1799000000000 implements MigrationInterface {
  name = 'VacuumMessagesLess1799000000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(ensurePartition(`with (${SETTINGS})`));
    await queryRunner.query(onPartitions(`set (${SETTINGS})`));
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(ensurePartition(''));
    await queryRunner.query(
      onPartitions('reset (autovacuum_vacuum_insert_threshold, autovacuum_analyze_threshold)'),
    );
  }
}
