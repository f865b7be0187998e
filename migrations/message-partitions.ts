/**
 * What migrations say of the months of messages. Frozen like the migrations that say it: whoever needs another function
 * writes another one.
 */

/** `settings`: `with (…)` of a new month, or nothing. `more`: statements of plpgsql about the new table `name`. */
export const ensuringPartitions = (settings: string, more = ''): string => `
  create or replace function ensure_message_partition(of_month timestamptz) returns boolean
  language plpgsql security definer set search_path = public as $$
  declare
    first timestamptz := date_trunc('month', of_month, 'UTC');
    name text := 'messages_' || to_char(first at time zone 'UTC', 'YYYYMM');
  begin
    perform pg_advisory_xact_lock(7300418);
    if to_regclass(name) is not null then return false; end if;
    execute format('create table %I partition of messages for values from (%s) to (%s) ${settings}', name,
      message_id_at(first), message_id_at(date_trunc('month', first + interval '32 days', 'UTC')));
    execute format('create unique index on %I (conversation_id, seq)', name);
    execute format('create unique index on %I (conversation_id, dedupe) where dedupe is not null', name);
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('revoke all on %I from public, parley_app', name);
    ${more}
    return true;
  end $$`;

/** Statements of plpgsql about each month there is, as table `name`. */
export const onPartitions = (statements: string): string => `
  do $$ declare name text; begin
    for name in select relname from pg_inherits join pg_class c on c.oid = inhrelid
      where inhparent = 'messages'::regclass
    loop
      ${statements}
    end loop;
  end $$`;
