import type { MigrationInterface, QueryRunner } from 'typeorm';

const OF_TENANTS = `(tenant_id = any((select string_to_array(current_setting('app.tenants', true), ',')::bigint[])::bigint[])) is true`;
const PLATFORM = `current_setting('app.platform', true) = 'on'`;
/** Nodes look for work of every tenant in the first. */
const TABLES = {
  broadcasts: `${OF_TENANTS} or ${PLATFORM}`,
  broadcast_pages: OF_TENANTS,
  broadcast_failures: OF_TENANTS,
} as const;

/** One message to many users as a job: what is to be sent, to whom it still is, and whom it did not reach. */
export class CreateBroadcasts1803000000000 implements MigrationInterface {
  name = 'CreateBroadcasts1803000000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      create table broadcasts (
        id bigint primary key,
        tenant_id bigint not null references tenants (id) on delete cascade,
        sender text collate "C" not null,
        msg_id text,
        request_key text not null,
        request_hash text not null,
        -- Gone with the end: what was said is the log's.
        frame text,
        everybody boolean not null,
        recipients integer,
        stored integer not null default 0,
        repeated integer not null default 0,
        failed integer not null default 0,
        -- How far it is: pages that are done, and of a broadcast to everybody the last user reached.
        pages_done integer not null default 0,
        after_user text collate "C" not null default '',
        status text not null default 'running' check (status in ('running', 'finished', 'cancelled')),
        incarnation bigint,
        next_at timestamptz not null default now(),
        created_at timestamptz not null default now(),
        ended_at timestamptz,
        unique (tenant_id, request_key)
      ) with (fillfactor = 70);
      create index broadcasts_of_tenant on broadcasts (tenant_id, id);
      create index broadcasts_running on broadcasts (id) where status = 'running';
      create index broadcasts_ended on broadcasts (ended_at) where ended_at is not null;
      create table broadcast_pages (
        broadcast_id bigint not null references broadcasts (id) on delete cascade,
        page integer not null,
        tenant_id bigint not null,
        targets text[] not null,
        primary key (broadcast_id, page)
      );
      create table broadcast_failures (
        broadcast_id bigint not null references broadcasts (id) on delete cascade,
        user_id text collate "C" not null,
        tenant_id bigint not null,
        code integer not null,
        reason text not null,
        primary key (broadcast_id, user_id)
      );
      create index broadcast_failures_of_user on broadcast_failures (tenant_id, user_id);
    `);
    for (const [table, condition] of Object.entries(TABLES)) {
      await queryRunner.query(`
        alter table ${table} enable row level security;
        alter table ${table} force row level security;
        create policy scope on ${table} using (${condition}) with check (${condition});
      `);
    }
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query('drop table broadcast_failures, broadcast_pages, broadcasts');
  }
}
