import type { MigrationInterface, QueryRunner } from 'typeorm';

const OF_TENANTS = `tenant_id = any((select string_to_array(current_setting('app.tenants', true), ',')::bigint[])::bigint[])`;
const TABLES = [
  'conversations',
  'conversation_members',
  'conversation_dialogues',
  'conversation_senders',
  'messages',
  'devices',
  'device_marks',
] as const;

/**
 * Row-level security of the messages' tables as a condition that no index answers. As one, PostgreSQL 18 reaches
 * everything of a tenant through any index that holds the tenant's id (a skip scan), and while a table is small, or its
 * statistics are old, a batch of messages read all of its tenant's conversations to find its own few. Every statement
 * names the tenant itself, with the ids it is looking for: those are what indexes are for.
 */
export class TenantLast1797000000000 implements MigrationInterface {
  name = 'TenantLast1797000000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    await this.alter(queryRunner, `(${OF_TENANTS}) is true`);
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await this.alter(queryRunner, OF_TENANTS);
  }

  private async alter(queryRunner: QueryRunner, condition: string): Promise<void> {
    for (const table of TABLES) {
      await queryRunner.query(
        `alter policy scope on ${table} using (${condition}) with check (${condition})`,
      );
    }
  }
}
