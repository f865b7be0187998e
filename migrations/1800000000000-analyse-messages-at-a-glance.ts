import type { MigrationInterface, QueryRunner } from 'typeorm';
import { ensuringPartitions, onPartitions } from './message-partitions';

const THRESHOLDS = 'autovacuum_vacuum_insert_threshold = 5000000, autovacuum_analyze_threshold = 1000000';
const DELAY = 'autovacuum_vacuum_cost_delay = 10';

/** Of every column of table `name`; −1 is the default. ANALYZE reads 300 rows times the largest of them. */
const setStatistics = (target: number): string => `
    declare attribute text; begin
      for attribute in select attname from pg_attribute
        where attrelid = name::regclass and attnum > 0 and not attisdropped
      loop
        execute format('alter table %I alter column %I set statistics ${target}', name, attribute);
      end loop;
    end;`;

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
    await queryRunner.query(ensuringPartitions(`with (${THRESHOLDS}, ${DELAY})`, setStatistics(1)));
    await queryRunner.query(
      onPartitions(`execute format('alter table %I set (${DELAY})', name); ${setStatistics(1)}`),
    );
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(ensuringPartitions(`with (${THRESHOLDS})`));
    const reset = `execute format('alter table %I reset (autovacuum_vacuum_cost_delay)', name);`;
    await queryRunner.query(onPartitions(`${reset} ${setStatistics(-1)}`));
  }
}
