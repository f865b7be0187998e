import type { MigrationInterface, QueryRunner } from 'typeorm';

/**
 * A new device is one row: `since` is the id of a message that could have been made when it first came, and whatever a
 * conversation holds from before that the device is taken to have. Marks are of conversations it has read in.
 * `fresh`: its first coming is not noted to the end yet. `seen_at` null: its marks were forgotten.
 */
export class DevicesByUse1805000000000 implements MigrationInterface {
  name = 'DevicesByUse1805000000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      alter table devices
        add column since bigint not null default 0,
        add column fresh boolean not null default false,
        add column seen_at timestamptz default now();
      create index devices_seen on devices (tenant_id, seen_at);
      create index conversation_members_pages on conversation_members (tenant_id, user_id, conversation_id);
      drop index conversation_members_of_user;
      -- The last number that was stored before a message of that id could be made. Ids grow with numbers, but for what
      -- was under way meanwhile. Looked for from the end: whoever asks lacks little, mostly. What is not there any more
      -- was among the oldest.
      create function last_seq_before(of_tenant bigint, of_conversation bigint, newest bigint, before bigint)
      returns bigint language plpgsql stable as $$
        declare
          low bigint := newest;
          high bigint := newest + 1;
          step bigint := 1;
          middle bigint;
        begin
          while low > 0 and coalesce((select id from messages where tenant_id = of_tenant
              and conversation_id = of_conversation and seq = low), 0) >= before loop
            high := low;
            low := greatest(0, low - step);
            step := step * 2;
          end loop;
          while high - low > 1 loop
            middle := (low + high) / 2;
            if coalesce((select id from messages where tenant_id = of_tenant
                and conversation_id = of_conversation and seq = middle), 0) >= before
            then high := middle;
            else low := middle;
            end if;
          end loop;
          return low;
        end $$;
    `);
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      select set_config('app.platform', 'on', true);
      select set_config('app.tenants', coalesce((select string_agg(id::text, ',') from tenants), ''), true);
      insert into device_marks (tenant_id, user_id, client, conversation_id, seq)
        select d.tenant_id, d.user_id, d.client, c.id,
          case when c.last_id < d.since then c.last_seq else last_seq_before(c.tenant_id, c.id, c.last_seq, d.since) end
        from devices d
        join conversation_members m on m.tenant_id = d.tenant_id and m.user_id = d.user_id
        join conversations c on c.id = m.conversation_id
        where d.since > 0
        on conflict do nothing;
      drop function last_seq_before(bigint, bigint, bigint, bigint);
      create index conversation_members_of_user on conversation_members (tenant_id, user_id);
      drop index conversation_members_pages, devices_seen;
      alter table devices drop column since, drop column fresh, drop column seen_at;
    `);
  }
}
