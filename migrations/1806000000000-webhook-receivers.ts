import type { MigrationInterface, QueryRunner } from 'typeorm';

/**
 * What is known of a webhook's receiver stands in its own row, so that all processes know the same: who failed several
 * times in a row is paused. `origin` is what several webhooks of a tenant may have in common. With the delivery's id in
 * it, the index alone says which of what is due is the oldest.
 */
export class WebhookReceivers1806000000000 implements MigrationInterface {
  name = 'WebhookReceivers1806000000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    // The owner is no superuser: what tenants have is hidden from it, too, unless it says who it is.
    await queryRunner.query(`select set_config('app.platform', 'on', true)`);
    await queryRunner.query(`
      alter table webhooks
        add column origin text not null default '',
        add column failures integer not null default 0,
        add column pauses integer not null default 0,
        add column paused_until timestamptz,
        add column last_error text,
        add column last_failure_at timestamptz;
      update webhooks set origin = lower(coalesce(substring(url from '^[^/?#]+://[^/?#]+'), url));
      create index webhook_deliveries_waiting on webhook_deliveries (webhook_id, next_at, id) where not dead;
      drop index webhook_deliveries_due;
    `);
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      create index webhook_deliveries_due on webhook_deliveries (webhook_id, next_at) where not dead;
      drop index webhook_deliveries_waiting;
      alter table webhooks drop column origin, drop column failures, drop column pauses, drop column paused_until,
        drop column last_error, drop column last_failure_at;
    `);
  }
}
