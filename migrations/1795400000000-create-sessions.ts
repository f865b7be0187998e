import type { MigrationInterface, QueryRunner } from 'typeorm';

const OF_TENANTS = `tenant_id = any((select string_to_array(current_setting('app.tenants', true), ',')::bigint[])::bigint[])`;

/** A client's own name for a dialogue of a user with an assistant (protocols/agent-channel.md, `sessionId`), and the tools that were called for a reply. */
export class CreateSessions1795400000000 implements MigrationInterface {
  name = 'CreateSessions1795400000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    // Deferred: the name is claimed first, so that of two first turns at once one finds it taken.
    await queryRunner.query(`
      create table dialogue_sessions (
        tenant_id bigint not null,
        user_id text collate "C" not null,
        assistant_id bigint not null,
        name text collate "C" not null,
        dialogue_id bigint not null references dialogues (id) on delete cascade deferrable initially deferred,
        created_at timestamptz not null default now(),
        primary key (tenant_id, assistant_id, user_id, name)
      );
      create index dialogue_sessions_of_dialogue on dialogue_sessions (dialogue_id);
      alter table dialogue_sessions enable row level security;
      alter table dialogue_sessions force row level security;
      create policy scope on dialogue_sessions using (${OF_TENANTS}) with check (${OF_TENANTS});
      create table reply_steps (
        message_id bigint not null references dialogue_messages (id) on delete cascade,
        number integer not null,
        tenant_id bigint not null,
        call_id text not null,
        tool text not null,
        arguments text not null,
        result text not null,
        is_error boolean not null,
        duration_ms integer not null,
        created_at timestamptz not null default now(),
        primary key (message_id, number)
      );
      alter table reply_steps enable row level security;
      alter table reply_steps force row level security;
      create policy scope on reply_steps using (${OF_TENANTS}) with check (${OF_TENANTS});
      create index conversation_dialogues_of_dialogue on conversation_dialogues (dialogue_id);
      alter table reply_requests add column reply_id bigint;
    `);
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      alter table reply_requests drop column reply_id;
      drop index conversation_dialogues_of_dialogue;
      drop table reply_steps;
      drop table dialogue_sessions;
    `);
  }
}
