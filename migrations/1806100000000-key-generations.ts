import type { MigrationInterface, QueryRunner } from 'typeorm';

/**
 * Which secret of a key something was begun with: each rotation is a generation, and the one before may go on for a
 * while. `tokens_from`: user tokens that were asked for earlier are refused.
 */
export class KeyGenerations1806100000000 implements MigrationInterface {
  name = 'KeyGenerations1806100000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      alter table api_keys
        add column generation integer not null default 1,
        add column previous_hash text,
        add column previous_until timestamptz,
        add column tokens_from timestamptz;
    `);
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      alter table api_keys drop column generation, drop column previous_hash, drop column previous_until,
        drop column tokens_from;
    `);
  }
}
