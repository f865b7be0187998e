import type { MigrationInterface, QueryRunner } from 'typeorm';

const THRESHOLDS = 'autovacuum_vacuum_insert_threshold = 5000000, autovacuum_analyze_threshold = 1000000';
const DELAY = 'autovacuum_vacuum_cost_delay = 10';
const COLUMNS = (table: string): string =>
  `select attname from pg_attribute where attrelid = ${table} and attnum > 0 and not attisdropped`;

const ensurePartition = (settings: string, more: string): string => `
  create or replace function ensure_message_partition(of_month timestamptz) returns boolean
  language plpgsql security definer set search_path = public as $$
  declare
    first timestamptz := date_trunc('month', of_month, 'UTC');
    name text := 'messages_' || to_char(first at time zone 'UTC', 'YYYYMM');
    attribute text;
  begin
    perform pg_advisory_xact_lock(7300418);
    if to_regclass(name) is not null then return false; end if;
    execute format('create table %I partition of messages for values from (%s) to (%s) with (${settings})', name,
      message_id_at(first), message_id_at(date_trunc('month', first + interval '32 days', 'UTC')));
    execute format('create unique index on %I (conversation_id, seq)', name);
    execute format('create unique index on %I (conversation_id, dedupe) where dedupe is not null', name);
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('revoke all on %I from public, parley_app', name);
    ${more}
    return true;
  end $$`;

const onPartitions = (change: string, statistics: string): string => `
  do $$ declare name text; attribute text; begin
    for name in select inhrelid::regclass::text from pg_inherits where inhparent = 'messages'::regclass loop
      execute format('alter table %s ${change}', name);
      for attribute in ${COLUMNS('name::regclass')} loop
        execute format('alter table %s alter column %I set statistics ${statistics}', name, attribute);
      end loop;
    end loop;
  end $$`;

/**
 * While ANALYZE looks at a table, no old version of any row of the database can be cleared away: the rows of busy
 * conversations, rewritten with every batch, grow chains of thousands, and Postgres works twice as much for a message.
 * Of a large month it looked at 30,000 pages, for 20 seconds and more where it is slowed down. Statistics of messages
 * change no plan: a hundredth of the pages will do. What is slowed down is the vacuuming of a month, and no longer
 * everything (the embedded server's setting is gone).
 */
export class AnalyseMessagesAtAGlance1800000000000 implements MigrationInterface {
  name = 'AnalyseMessagesAtAGlance1800000000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    const sampleLittle = `for attribute in ${COLUMNS('name::regclass')} loop
      execute format('alter table %I alter column %I set statistics 1', name, attribute);
    end loop;`;
    await queryRunner.query(ensurePartition(`${THRESHOLDS}, ${DELAY}`, sampleLittle));
    await queryRunner.query(onPartitions(`set (${DELAY})`, '1'));
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(ensurePartition(THRESHOLDS, ''));
    await queryRunner.query(onPartitions('reset (autovacuum_vacuum_cost_delay)', 'default'));
  }
}
