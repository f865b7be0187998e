import type { MigrationInterface, QueryRunner } from 'typeorm';

/** Row-level security: rows of the tenants that the transaction declared (src/database/scope.ts). Used as an index condition. */
const OF_TENANTS = `tenant_id = any(string_to_array(current_setting('app.tenants', true), ',')::bigint[])`;
const PLATFORM = `current_setting('app.platform', true) = 'on'`;

/** What anybody said or configured: visible to its tenant and to nobody else, the platform's operator included. */
const TENANT_TABLES = [
  'assistants',
  'assistant_versions',
  'dialogues',
  'dialogue_messages',
  'reply_checkpoints',
] as const;
/** Tables that the platform's own work (look-up, sweeping, pruning, administration) reads across tenants. */
const TENANT_OR_PLATFORM_TABLES = [
  'api_keys',
  'replies_in_progress',
  'idempotency_keys',
  'usage_ledger',
  'audit_log',
] as const;
/** Rows without a tenant are shared by the platform: everybody reads them, only the platform writes them. */
const SHARED_TABLES = ['model_providers', 'model_services'] as const;

export class CreateFoundation1795219200000 implements MigrationInterface {
  name = 'CreateFoundation1795219200000';

  async up(queryRunner: QueryRunner): Promise<void> {
    // Roles belong to the cluster: another database of it may have made this one, perhaps this very moment.
    await queryRunner.query(`
      do $$ begin
        if not exists (select from pg_roles where rolname = 'parley_app') then
          create role parley_app nologin nosuperuser nobypassrls nocreatedb nocreaterole;
        end if;
      exception when duplicate_object or unique_violation then null;
      end $$`);
    await queryRunner.query(`
      do $$ begin
        if not pg_has_role(current_user, 'parley_app', 'usage') then grant parley_app to current_user; end if;
      end $$`);
    // No foreign key to `tenants` on what grows with every message: its check would lock the tenant's one row each time.
    await queryRunner.query(`
      create table tenants (
        id bigint primary key,
        name text not null,
        status text not null default 'active' check (status in ('active', 'suspended')),
        allowed_origins text[] not null default '{}',
        group_policy text not null default 'open' check (group_policy in ('open', 'managed')),
        limits jsonb not null default '{}',
        retention_days integer,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now()
      );
      create table api_keys (
        id bigint primary key,
        tenant_id bigint not null references tenants (id) on delete cascade,
        name text not null,
        secret_hash text not null,
        scopes text[] not null,
        expires_at timestamptz,
        allowed_addresses text[] not null default '{}',
        limits jsonb not null default '{}',
        revoked_at timestamptz,
        last_used_at timestamptz,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now()
      );
      create index api_keys_tenant on api_keys (tenant_id, id);
      create table model_providers (
        id bigint primary key,
        tenant_id bigint references tenants (id) on delete cascade,
        name text not null,
        kind text not null check (kind in ('openai-compatible', 'builtin')),
        preset text,
        base_url text,
        credentials text,
        headers text,
        quirks jsonb not null default '{}',
        connect_timeout_ms integer not null default 5000,
        first_piece_timeout_ms integer not null default 60000,
        idle_timeout_ms integer not null default 30000,
        total_timeout_ms integer not null default 600000,
        max_concurrency integer,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now()
      );
      create index model_providers_tenant on model_providers (tenant_id, id);
      create table model_services (
        id bigint primary key,
        tenant_id bigint references tenants (id) on delete cascade,
        provider_id bigint not null references model_providers (id),
        name text not null,
        model text not null,
        type smallint not null default 0 check (type between 0 and 3),
        order_num integer not null default 0,
        context_window integer not null default 32768,
        parameters jsonb not null default '{}',
        input_price numeric(20, 8) not null default 0,
        output_price numeric(20, 8) not null default 0,
        fallback_ids bigint[] not null default '{}',
        enabled boolean not null default true,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now()
      );
      create index model_services_tenant on model_services (tenant_id, order_num);
      create table assistants (
        id bigint primary key,
        tenant_id bigint not null references tenants (id) on delete cascade,
        slug text not null,
        name text not null,
        description text not null default '',
        avatar text not null default '',
        published_version_id bigint,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now(),
        unique (tenant_id, slug)
      );
      create table assistant_versions (
        id bigint primary key,
        tenant_id bigint not null references tenants (id) on delete cascade,
        assistant_id bigint not null references assistants (id) on delete cascade,
        number integer not null,
        prompt text not null default '',
        model_service_id bigint not null,
        parameters jsonb not null default '{}',
        greeting text not null default '',
        suggested_questions text[] not null default '{}',
        context_policy jsonb not null default '{}',
        tools jsonb not null default '[]',
        published_at timestamptz,
        created_at timestamptz not null default now(),
        unique (assistant_id, number)
      );
      create table dialogues (
        id bigint primary key,
        tenant_id bigint not null,
        user_id text not null,
        assistant_id bigint,
        version_id bigint,
        model_service_id bigint not null,
        name text not null,
        closed boolean not null default false,
        total_tokens bigint not null default 0,
        credits numeric(20, 6) not null default 0,
        created_by text not null,
        updated_by text not null,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now()
      );
      create index dialogues_of_assistant on dialogues (tenant_id, assistant_id, updated_at desc, id desc);
      create index dialogues_of_user on dialogues (tenant_id, user_id, updated_at desc, id desc);
      create table dialogue_messages (
        id bigint primary key,
        tenant_id bigint not null,
        dialogue_id bigint not null references dialogues (id) on delete cascade,
        parent_id bigint,
        role text not null check (role in ('system', 'user', 'assistant')),
        content text not null,
        reasoning text not null default '',
        status text not null check (status in ('finished', 'streaming', 'stopped', 'interrupted', 'failed')),
        user_id text not null,
        created_by text not null,
        model_service_id bigint,
        prompt_tokens integer not null default 0,
        completion_tokens integer not null default 0,
        total_tokens integer not null default 0,
        tokens_estimated boolean not null default false,
        credits numeric(20, 6) not null default 0,
        error_code integer,
        error_message text,
        created_at timestamptz not null default now(),
        ended_at timestamptz
      );
      create index dialogue_messages_of_dialogue on dialogue_messages (dialogue_id, id);
      create index dialogue_messages_children on dialogue_messages (parent_id);
      create table replies_in_progress (
        message_id bigint primary key,
        tenant_id bigint not null,
        dialogue_id bigint not null,
        incarnation bigint not null,
        stop_requested boolean not null default false,
        key_id bigint,
        started_at timestamptz not null default now()
      );
      create index replies_in_progress_of_dialogue on replies_in_progress (dialogue_id);
      create table reply_checkpoints (
        message_id bigint not null,
        part integer not null,
        tenant_id bigint not null,
        content text not null,
        reasoning text not null default '',
        primary key (message_id, part)
      );
      create table idempotency_keys (
        tenant_id bigint not null,
        key text not null,
        request_hash text not null,
        message_id bigint not null,
        created_at timestamptz not null default now(),
        primary key (tenant_id, key)
      );
      create index idempotency_keys_age on idempotency_keys (created_at);
      create table usage_ledger (
        message_id bigint primary key,
        tenant_id bigint not null,
        key_id bigint,
        user_id text not null,
        assistant_id bigint,
        model_service_id bigint not null,
        attempts integer not null,
        prompt_tokens integer not null,
        completion_tokens integer not null,
        total_tokens integer not null,
        estimated boolean not null,
        credits numeric(20, 6) not null,
        outcome text not null,
        first_piece_ms integer,
        latency_ms integer not null,
        created_at timestamptz not null default now()
      );
      create index usage_ledger_of_tenant on usage_ledger (tenant_id, created_at);
      create table nodes (
        slot smallint primary key,
        incarnation bigint not null,
        heartbeat_at timestamptz not null
      );
      create table audit_log (
        id bigint primary key,
        tenant_id bigint,
        actor_key_id bigint,
        actor text not null,
        action text not null,
        resource text not null,
        resource_id bigint not null,
        before jsonb,
        after jsonb,
        address text not null,
        created_at timestamptz not null default now()
      );
      create index audit_log_of_tenant on audit_log (tenant_id, id desc);
    `);

    const secure = async (table: string, using: string, check = using): Promise<void> => {
      await queryRunner.query(`alter table ${table} enable row level security`);
      await queryRunner.query(`alter table ${table} force row level security`);
      await queryRunner.query(`create policy scope on ${table} using (${using}) with check (${check})`);
    };
    for (const table of TENANT_TABLES) await secure(table, OF_TENANTS);
    for (const table of TENANT_OR_PLATFORM_TABLES) await secure(table, `${OF_TENANTS} or ${PLATFORM}`);
    for (const table of SHARED_TABLES) {
      await queryRunner.query(`alter table ${table} enable row level security`);
      await queryRunner.query(`alter table ${table} force row level security`);
      await queryRunner.query(
        `create policy scope on ${table} using (${OF_TENANTS} or ${PLATFORM}) with check (${OF_TENANTS} or ${PLATFORM})`,
      );
      await queryRunner.query(`create policy shared on ${table} for select using (tenant_id is null)`);
    }
    await secure('nodes', PLATFORM);
    await secure('tenants', `${OF_TENANTS.replace('tenant_id', 'id')} or ${PLATFORM}`, PLATFORM);
    // A key is looked up before its tenant is known: the look-up declares the one id it may see, and its tenant.
    const keyId = `nullif(current_setting('app.key', true), '')::bigint`;
    await queryRunner.query(`create policy look_up on api_keys for select using (id = ${keyId})`);
    await queryRunner.query(
      `create policy look_up on tenants for select using (id = (select k.tenant_id from api_keys k where k.id = ${keyId}))`,
    );
    await queryRunner.query(`
      grant usage on schema public to parley_app;
      grant select, insert, update, delete on all tables in schema public to parley_app;
      alter default privileges in schema public grant select, insert, update, delete on tables to parley_app;
      do $$ begin
        if to_regclass('public.migrations') is not null then revoke all on migrations from parley_app; end if;
      end $$;
    `);
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      alter default privileges in schema public revoke select, insert, update, delete on tables from parley_app;
      drop table audit_log, nodes, usage_ledger, idempotency_keys, reply_checkpoints, replies_in_progress,
        dialogue_messages, dialogues, assistant_versions, assistants, model_services, model_providers, api_keys, tenants;
      revoke all on schema public from parley_app;
    `);
    // The role itself stays: it belongs to the cluster, and another database may use it.
  }
}
