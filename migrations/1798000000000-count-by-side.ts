import type { MigrationInterface, QueryRunner } from 'typeorm';

/**
 * In a one-to-one conversation, how many messages each of the two has sent stands in the conversation's own row, which
 * every batch writes anyway; `conversation_senders` is for groups, and for those who are neither of the two. `side` says
 * which of the two a member is: 0 is the first in the conversation's key.
 */
export class CountBySide1798000000000 implements MigrationInterface {
  name = 'CountBySide1798000000000';

  async up(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      alter table conversations
        add column sent_first bigint not null default 0,
        add column sent_second bigint not null default 0;
      alter table conversation_members add column side smallint check (side in (0, 1));
      update conversation_members m
        set side = case when starts_with(c.key, '[' || to_json(m.user_id)::text || ',') then 0 else 1 end
        from conversations c where c.id = m.conversation_id and c.kind = 'single';
      with moved as (
        delete from conversation_senders s using conversation_members m
        where m.conversation_id = s.conversation_id and m.user_id = s.sender and m.side is not null
        returning s.conversation_id, m.side, s.sent)
      update conversations c set sent_first = o.first, sent_second = o.second
        from (select conversation_id, coalesce(sum(sent) filter (where side = 0), 0) as first,
                coalesce(sum(sent) filter (where side = 1), 0) as second from moved group by conversation_id) o
        where c.id = o.conversation_id;
      -- Whatever a statement has written by then is undone.
      create function conversations_have_moved() returns boolean language plpgsql as $$
        begin
          raise exception 'another process has written to these conversations' using errcode = 'PY001';
        end $$;
    `);
  }

  async down(queryRunner: QueryRunner): Promise<void> {
    await queryRunner.query(`
      drop function conversations_have_moved();
      insert into conversation_senders (conversation_id, sender, tenant_id, sent)
        select c.id, m.user_id, c.tenant_id, case m.side when 0 then c.sent_first else c.sent_second end
        from conversation_members m join conversations c on c.id = m.conversation_id
        where m.side is not null and case m.side when 0 then c.sent_first else c.sent_second end > 0;
      alter table conversation_members drop column side;
      alter table conversations drop column sent_first, drop column sent_second;
    `);
  }
}
