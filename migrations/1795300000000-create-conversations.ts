import type { MigrationInterface, QueryRunner } from 'typeorm';
import { ensuringPartitions } from './message-partitions';

/**
 * As in the foundation, but the list is made once a statement: in an insert's check a plain expression is evaluated
 * again for every row, and batches have hundreds.
 */
const OF_TENANTS = `tenant_id = any((select string_to_array(current_setting('app.tenants', true), ',')::bigint[])::bigint[])`;
const PLATFORM = `current_setting('app.platform', true) = 'on'`;

const TENANT_TABLES = [
  'conversations',
  'conversation_members',
  'conversation_dialogues',
  'conversation_senders',
  'messages',
  'devices',
  'device_marks',
] as const;
/** Nodes look for work of every tenant in these. */
const TENANT_OR_PLATFORM_TABLES = [
  'im_sessions',
  'im_revocations',
  'reply_requests',
  'webhooks',
  'webhook_deliveries',
] as const;

export class CreateConversations1795300000000 implements MigrationInterface {
  name = 'CreateConversations1795300000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    // Half-empty pages where rows are rewritten all the time: the new version finds room beside the old one (HOT).
    await queryRunner.query(`
      create table conversations (
        id bigint primary key,
        tenant_id bigint not null,
        kind text not null check (kind in ('single', 'group')),
        key text not null,
        name text not null default '',
        attributes jsonb not null default '{}',
        max_members integer,
        muted boolean not null default false,
        assistant_id bigint,
        member_count integer not null default 0,
        last_seq bigint not null default 0,
        last_id bigint not null default 0,
        deleted_at timestamptz,
        created_at timestamptz not null default now(),
        unique (key, tenant_id, kind)
      ) with (fillfactor = 50);
      create index conversations_groups on conversations (tenant_id, key) where kind = 'group' and deleted_at is null;
      create table conversation_members (
        conversation_id bigint not null references conversations (id) on delete cascade,
        user_id text collate "C" not null,
        tenant_id bigint not null,
        role text not null default 'member' check (role in ('owner', 'admin', 'member')),
        from_seq bigint not null default 0,
        until_seq bigint,
        read_seq bigint not null default 0,
        read_own bigint not null default 0,
        muted_until timestamptz,
        joined_at timestamptz not null default now(),
        primary key (conversation_id, user_id)
      );
      create index conversation_members_of_user on conversation_members (tenant_id, user_id);
      create table conversation_dialogues (
        conversation_id bigint not null,
        assistant_id bigint not null,
        tenant_id bigint not null,
        dialogue_id bigint not null,
        primary key (conversation_id, assistant_id)
      );
      create table conversation_senders (
        conversation_id bigint not null,
        sender text collate "C" not null,
        tenant_id bigint not null,
        sent bigint not null,
        primary key (conversation_id, sender)
      ) with (fillfactor = 50);
      create table messages (
        id bigint not null,
        tenant_id bigint not null,
        conversation_id bigint not null,
        seq bigint not null,
        sender text collate "C" not null,
        client text not null,
        dedupe text collate "C",
        frame text not null,
        recalled_at timestamptz
      ) partition by range (id);
      create table devices (
        tenant_id bigint not null,
        user_id text collate "C" not null,
        client text collate "C" not null,
        created_at timestamptz not null default now(),
        primary key (tenant_id, user_id, client)
      );
      create table device_marks (
        tenant_id bigint not null,
        user_id text collate "C" not null,
        client text collate "C" not null,
        conversation_id bigint not null,
        seq bigint not null,
        primary key (tenant_id, user_id, client, conversation_id)
      ) with (fillfactor = 70);
      create table im_sessions (
        tenant_id bigint not null,
        user_id text collate "C" not null,
        client text collate "C" not null,
        incarnation bigint not null,
        connection_id bigint not null,
        connected_at timestamptz not null default now(),
        primary key (tenant_id, user_id, client)
      );
      create index im_sessions_of_node on im_sessions (incarnation);
      create table im_revocations (
        tenant_id bigint not null,
        user_id text collate "C" not null,
        client text collate "C" not null default '',
        revoked_at timestamptz not null,
        primary key (tenant_id, user_id, client)
      );
      create index im_revocations_age on im_revocations (revoked_at);
      create table reply_requests (
        message_id bigint primary key,
        tenant_id bigint not null,
        conversation_id bigint not null,
        assistant_id bigint not null,
        sender text not null,
        frame text not null,
        incarnation bigint,
        attempts integer not null default 0,
        next_at timestamptz not null default now()
      );
      create index reply_requests_of_conversation on reply_requests (conversation_id, message_id);
      create table webhooks (
        id bigint primary key,
        tenant_id bigint not null references tenants (id) on delete cascade,
        url text not null,
        secret text not null,
        events text[] not null,
        enabled boolean not null default true,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now()
      );
      create index webhooks_of_tenant on webhooks (tenant_id);
      create table webhook_deliveries (
        id bigint generated always as identity primary key,
        webhook_id bigint not null references webhooks (id) on delete cascade,
        tenant_id bigint not null,
        event text not null,
        event_id text not null,
        payload text not null,
        attempts integer not null default 0,
        next_at timestamptz not null default now(),
        last_error text,
        dead boolean not null default false,
        created_at timestamptz not null default now()
      );
      create index webhook_deliveries_due on webhook_deliveries (webhook_id, next_at) where not dead;
      create index webhook_deliveries_dead on webhook_deliveries (tenant_id, id) where dead;
    `);
    for (const table of [...TENANT_TABLES, ...TENANT_OR_PLATFORM_TABLES]) {
      const using = (TENANT_OR_PLATFORM_TABLES as readonly string[]).includes(table)
        ? `${OF_TENANTS} or ${PLATFORM}`
        : OF_TENANTS;
      await queryRunner.query(`alter table ${table} enable row level security`);
      await queryRunner.query(`alter table ${table} force row level security`);
      await queryRunner.query(`create policy scope on ${table} using (${using}) with check (${using})`);
    }
    // A month a partition, named after its month; a message's id holds its time (22 bits under the milliseconds).
    // The application's role makes no tables: these two functions do that one thing for it. A partition is reached
    // through its parent and its parent's policy alone.
    await queryRunner.query(`
      create function message_id_at(at timestamptz) returns bigint language sql immutable as
        $$ select ((extract(epoch from at) * 1000)::bigint - 1704067200000) << 22 $$;
      ${ensuringPartitions('')};
      create function drop_message_partitions(older_than timestamptz) returns text[]
      language plpgsql security definer set search_path = public as $$
      declare
        victim text;
        dropped text[] := '{}';
      begin
        for victim in
          select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
          where i.inhparent = 'messages'::regclass and c.relname ~ '^messages_[0-9]{6}$'
            and to_date(right(c.relname, 6), 'YYYYMM') + interval '1 month' <= older_than at time zone 'UTC'
          order by 1
        loop
          execute format('drop table %I', victim);
          dropped := dropped || victim;
        end loop;
        return dropped;
      end $$;
      revoke all on function ensure_message_partition(timestamptz), drop_message_partitions(timestamptz) from public;
      grant execute on function ensure_message_partition(timestamptz), drop_message_partitions(timestamptz) to parley_app;
      select ensure_message_partition(now() - interval '32 days'), ensure_message_partition(now()),
        ensure_message_partition(date_trunc('month', now(), 'UTC') + interval '32 days');
    `);
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      drop table webhook_deliveries, webhooks, reply_requests, im_revocations, im_sessions, device_marks, devices,
        messages, conversation_senders, conversation_dialogues, conversation_members, conversations;
      drop function ensure_message_partition(timestamptz), drop_message_partitions(timestamptz), message_id_at(timestamptz);
    `);
  }
}
