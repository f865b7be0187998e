import type { MigrationInterface, QueryRunner } from 'typeorm';
import { ensuringPartitions, onPartitions } from './message-partitions';

const SETTINGS = 'autovacuum_vacuum_insert_threshold = 5000000, autovacuum_analyze_threshold = 1000000';

/**
 * A month's messages are written once, and every query finds them by an index, by one plan: vacuuming what was merely
 * added serves nothing but freezing, and statistics change no plan. By default both are done anew with every tenth
 * and fifth that a month grows by, which on a server that has just begun is all the time. Rows that were deleted or
 * recalled are vacuumed as ever.
 */
export class VacuumMessagesLess1799000000000 implements MigrationInterface {
  name = 'VacuumMessagesLess1799000000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(ensuringPartitions(`with (${SETTINGS})`));
    await queryRunner.query(onPartitions(`execute format('alter table %I set (${SETTINGS})', name);`));
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(ensuringPartitions(''));
    const names = 'autovacuum_vacuum_insert_threshold, autovacuum_analyze_threshold';
    await queryRunner.query(onPartitions(`execute format('alter table %I reset (${names})', name);`));
  }
}
