import type { MigrationInterface, QueryRunner } from 'typeorm';

const OF_TENANTS = `tenant_id = any((select string_to_array(current_setting('app.tenants', true), ',')::bigint[])::bigint[])`;

/**
 * Who comes back into a group is still to get what was said before they went: each earlier interval of a membership is a
 * row, of the entries after `from_seq` up to `until_seq`. `rejoined`: there are some.
 */
export class PastMemberships1805100000000 implements MigrationInterface {
  name = 'PastMemberships1805100000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      alter table conversation_members add column rejoined boolean not null default false;
      create table past_memberships (
        conversation_id bigint not null references conversations (id) on delete cascade,
        user_id text collate "C" not null,
        tenant_id bigint not null,
        from_seq bigint not null,
        until_seq bigint not null check (until_seq > from_seq),
        primary key (conversation_id, user_id, from_seq)
      );
      alter table past_memberships enable row level security;
      alter table past_memberships force row level security;
      create policy scope on past_memberships using ((${OF_TENANTS}) is true) with check ((${OF_TENANTS}) is true);
    `);
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      drop table past_memberships;
      alter table conversation_members drop column rejoined;
    `);
  }
}
