import type { MigrationInterface, QueryRunner } from 'typeorm';

/** The audit log held providers' addresses with their queries, in which some have a credential. */
export class MaskProviderAddresses1807000000000 implements MigrationInterface {
  name = 'MaskProviderAddresses1807000000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    // The owner is bound by row-level security, too.
    await queryRunner.query(`select set_config('app.platform', 'on', true)`);
    for (const column of ['before', 'after'])
      await queryRunner.query(`
        update audit_log set ${column} = jsonb_set(${column}, '{baseUrl}',
          to_jsonb(regexp_replace(${column}->>'baseUrl', '[?#].*$', '?••••')))
        where resource = 'model-provider' and ${column}->>'baseUrl' ~ '[?#]'`);
  }

  /** What was masked is gone. */
  async down(): Promise<void> {}
}
