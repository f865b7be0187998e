import type { MigrationInterface, QueryRunner } from 'typeorm';

const OF_TENANTS = `tenant_id = any((select string_to_array(current_setting('app.tenants', true), ',')::bigint[])::bigint[])`;
const PLATFORM = `current_setting('app.platform', true) = 'on'`;

/**
 * Which record shows which image, so that an image goes with the last of them. Row-level security lets no index look into
 * `images` (its operators are not leakproof), and a reference has to stand before the image does.
 */
export class CreateGenerationImages1796000000000 implements MigrationInterface {
  name = 'CreateGenerationImages1796000000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    // The owner is no superuser: what tenants have is hidden from it, too, unless it says who it is.
    await queryRunner.query(`select set_config('app.platform', 'on', true)`);
    await queryRunner.query(`
      drop index generation_records_images;
      create table generation_images (
        tenant_id bigint not null,
        sha256 text collate "C" not null,
        record_id bigint not null references generation_records (id) on delete cascade,
        primary key (tenant_id, sha256, record_id)
      );
      create index generation_images_of_record on generation_images (record_id);
      create table blob_releases (
        tenant_id bigint not null,
        sha256 text collate "C" not null,
        primary key (tenant_id, sha256)
      );
      alter table generation_records no force row level security;
      insert into generation_images (tenant_id, sha256, record_id)
        select distinct r.tenant_id, i.image ->> 'sha256', r.id
        from generation_records r cross join jsonb_array_elements(r.images) as i(image);
      alter table generation_records force row level security;
      create function release_blob() returns trigger language plpgsql set search_path = public as $$
      begin
        insert into blob_releases (tenant_id, sha256) values (old.tenant_id, old.sha256) on conflict do nothing;
        return null;
      end $$;
      create trigger released after delete on generation_images for each row execute function release_blob();
    `);
    for (const [table, using] of [
      ['generation_images', OF_TENANTS],
      ['blob_releases', `${OF_TENANTS} or ${PLATFORM}`],
    ]) {
      await queryRunner.query(`alter table ${table} enable row level security`);
      await queryRunner.query(`alter table ${table} force row level security`);
      await queryRunner.query(`create policy scope on ${table} using (${using}) with check (${using})`);
    }
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      drop table generation_images, blob_releases;
      drop function release_blob();
      create index generation_records_images on generation_records using gin (images jsonb_path_ops) where type = 1;
    `);
  }
}
