import { getConstructionPlans } from 'pg-boss';
import type { MigrationInterface, QueryRunner } from 'typeorm';

const OF_TENANTS = `tenant_id = any((select string_to_array(current_setting('app.tenants', true), ',')::bigint[])::bigint[])`;
const PLATFORM = `current_setting('app.platform', true) = 'on'`;

const TENANT_TABLES = ['generation_apps', 'generation_records', 'blobs'] as const;

/** Generation apps, what they made, the files of it, and the queue of long jobs. */
export class CreateGenerations1795500000000 implements MigrationInterface {
  name = 'CreateGenerations1795500000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      create table generation_apps (
        id bigint primary key,
        tenant_id bigint not null references tenants (id) on delete cascade,
        type smallint not null check (type in (0, 1)),
        name text not null,
        description text not null default '',
        prompt_template text not null,
        variables jsonb not null default '[]',
        model_service_id bigint not null,
        parameters jsonb not null default '{}',
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now()
      );
      create index generation_apps_of_tenant on generation_apps (tenant_id, id);
      create table generation_records (
        id bigint primary key,
        tenant_id bigint not null,
        app_id bigint not null,
        type smallint not null,
        user_id text not null,
        key_id bigint,
        created_by text not null,
        model_service_id bigint not null,
        params jsonb not null,
        prompt text not null,
        parameters jsonb not null,
        status text not null default 'running'
          check (status in ('running', 'finished', 'stopped', 'interrupted', 'failed')),
        result text not null default '',
        images jsonb not null default '[]',
        prompt_tokens integer not null default 0,
        completion_tokens integer not null default 0,
        total_tokens integer not null default 0,
        credits numeric(20, 6) not null default 0,
        error_code integer,
        error_message text,
        idempotency_key text,
        request_hash text,
        created_at timestamptz not null default now(),
        ended_at timestamptz,
        unique (tenant_id, idempotency_key)
      );
      create index generation_records_of_tenant on generation_records (tenant_id, created_at desc, id desc);
      create index generation_records_of_user on generation_records (tenant_id, user_id, created_at desc, id desc);
      create index generation_records_of_app on generation_records (tenant_id, app_id, created_at desc, id desc);
      create index generation_records_running on generation_records (tenant_id, type) where status = 'running';
      create table generations_in_progress (
        record_id bigint primary key references generation_records (id) on delete cascade,
        tenant_id bigint not null,
        incarnation bigint not null
      );
      create table blobs (
        tenant_id bigint not null,
        sha256 text collate "C" not null,
        mime_type text not null,
        bytes integer not null,
        content bytea not null,
        created_at timestamptz not null default now(),
        primary key (tenant_id, sha256)
      );
      alter table blobs alter column content set storage external;
    `);
    const secure = async (table: string, using: string): Promise<void> => {
      await queryRunner.query(`alter table ${table} enable row level security`);
      await queryRunner.query(`alter table ${table} force row level security`);
      await queryRunner.query(`create policy scope on ${table} using (${using}) with check (${using})`);
    };
    for (const table of TENANT_TABLES) await secure(table, OF_TENANTS);
    // Nodes look for what the dead have left.
    await secure('generations_in_progress', `${OF_TENANTS} or ${PLATFORM}`);
    // The application's role makes no tables, so it starts pg-boss with `migrate: false`. Its jobs hold ids alone. An
    // upgrade of pg-boss with another schema version needs a migration of its own, from `getMigrationPlans`.
    await queryRunner.query(withoutTransaction(getConstructionPlans('pgboss')));
    await queryRunner.query(`
      grant usage on schema pgboss to parley_app;
      grant select, insert, update, delete on all tables in schema pgboss to parley_app;
      revoke insert, delete on pgboss.version from parley_app;
    `);
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      drop schema pgboss cascade;
      drop table blobs, generations_in_progress, generation_records, generation_apps;
    `);
  }
}

/** A migration is in one already; the plan's COMMIT would end it. */
const withoutTransaction = (plan: string): string =>
  plan.replace(/^\s*BEGIN;/, '').replace(/COMMIT;\s*$/, '');
