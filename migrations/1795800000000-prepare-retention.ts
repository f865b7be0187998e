import type { MigrationInterface, QueryRunner } from 'typeorm';

/** Months of messages of which the tenants' retention has left nothing can be dropped whole; who else shows an image can be asked. */
export class PrepareRetention1795800000000 implements MigrationInterface {
  name = 'PrepareRetention1795800000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    // Row-level security hides a partition's rows from its owner, too: for as long as it is looked into, it does not.
    // Who waits longer for the lock than that waits for a reader of old history, and comes again.
    await queryRunner.query(`
      create function drop_empty_message_partitions(older_than timestamptz) returns text[]
      language plpgsql security definer set search_path = public set lock_timeout = '2s' as $$
      declare
        victim text;
        empty boolean;
        dropped text[] := '{}';
      begin
        for victim in
          select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
          where i.inhparent = 'messages'::regclass and c.relname ~ '^messages_[0-9]{6}$'
            and to_date(right(c.relname, 6), 'YYYYMM') + interval '1 month' <= older_than at time zone 'UTC'
          order by 1
        loop
          execute format('alter table %I no force row level security', victim);
          execute format('select not exists (select 1 from %I)', victim) into empty;
          if empty then
            execute format('drop table %I', victim);
            dropped := dropped || victim;
          else
            execute format('alter table %I force row level security', victim);
          end if;
        end loop;
        return dropped;
      end $$;
      revoke all on function drop_empty_message_partitions(timestamptz) from public;
      grant execute on function drop_empty_message_partitions(timestamptz) to parley_app;
      create index generation_records_images on generation_records using gin (images jsonb_path_ops) where type = 1;
    `);
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(
      'drop index generation_records_images; drop function drop_empty_message_partitions(timestamptz)',
    );
  }
}
