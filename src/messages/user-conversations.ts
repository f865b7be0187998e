import { Injectable } from '@nestjs/common';
import type { ConversationId, TenantId } from '../common';
import { Database, tenantScope, type Statement } from '../database';
import { SENT_BY_MEMBER } from './append-statements';
import type { Standing } from './conversation-records';
import { toStanding } from './device-statements';

/** The last conversation of the page before. */
export interface RecentPlace {
  readonly lastId: string;
  readonly id: string;
}

/** A user's conversations as the tenant's server reads them, without a device. */
@Injectable()
export class UserConversations {
  constructor(private readonly database: Database) {}

  /** Those the user is in, the most recent first; `mark` is 0. */
  recent(tenantId: TenantId, userId: string, before: RecentPlace | null, limit: number): Promise<Standing[]> {
    return this.database.one(tenantScope(tenantId), recent(tenantId, userId, before, limit));
  }
}

/**
 * Of all that a user is in Postgres reads two index entries each, and no more; what is counted and sent is the page's
 * alone. An index in the order of recency would be written with every message. Look-ups with limits stay look-ups,
 * whatever the planner thinks of tables that grew a minute ago.
 */
export const recent = (
  tenantId: TenantId,
  userId: string,
  before: RecentPlace | null,
  limit: number,
): Statement<Standing[]> => ({
  name: before ? 'user-conversations-before' : 'user-conversations',
  text: `with page as materialized (
      select c.id, c.last_id from conversation_members m
      cross join lateral (select id, last_id from conversations where id = m.conversation_id limit 1) c
      where m.tenant_id = $1 and m.user_id = $2 and m.until_seq is null
        ${before ? 'and (c.last_id, c.id) < ($4::bigint, $5::bigint)' : ''}
      order by c.last_id desc, c.id desc limit $3)
    select c.id, c.kind, c.key, c.assistant_id, c.last_seq, page.last_id, m.read_seq, m.until_seq,
      ${SENT_BY_MEMBER} - m.read_own as own, 0 as mark, false as marked, m.from_seq, null as past
    from page
    cross join lateral (select * from conversations where id = page.id limit 1) c
    cross join lateral (
      select * from conversation_members where tenant_id = $1 and user_id = $2 and conversation_id = page.id limit 1) m
    order by page.last_id desc, page.id desc`,
  values: [tenantId, userId, limit, ...(before ? [before.lastId, before.id] : [])],
  map: (rows) => rows.map(toStanding),
});

/** As text for a client, and back; null for what is none. */
export const placeText = ({ lastId, id }: { lastId: string | null; id: ConversationId }): string =>
  `${lastId ?? 0}.${id}`;

export function placeOf(text: string): RecentPlace | null {
  const [, lastId, id] = /^(\d{1,18})\.(\d{1,18})$/.exec(text) ?? [];
  return lastId !== undefined && id !== undefined ? { lastId, id } : null;
}
