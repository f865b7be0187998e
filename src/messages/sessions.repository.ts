import { Injectable } from '@nestjs/common';
import { asId, type AssistantId, type DialogueId, type TenantId } from '../common';
import { Database, tenantScope, type Row, type Statement } from '../database';

/** A dialogue with an assistant under the name its client gave it. */
export interface Session {
  readonly name: string;
  readonly dialogueId: DialogueId;
  readonly userId: string;
  readonly title: string;
  readonly messages: number;
  readonly createdAt: Date;
  readonly updatedAt: Date;
}

/** Whose session it is; the name is the client's own. */
export interface SessionKey {
  readonly tenantId: TenantId;
  readonly userId: string;
  readonly assistantId: AssistantId;
  readonly name: string;
}

export interface SessionListQuery {
  readonly assistantId: AssistantId;
  /** Null: every user's. */
  readonly userId: string | null;
  readonly offset: number;
  readonly limit: number;
}

@Injectable()
export class SessionsRepository {
  constructor(private readonly database: Database) {}

  /** The user's dialogue of that name; else, where the name is a dialogue's id, that dialogue with this assistant (of `onlyUser`, null: of anybody). */
  find(key: SessionKey, onlyUser: string | null): Promise<DialogueId | null> {
    return this.database.one(tenantScope(key.tenantId), findSession(key, onlyUser));
  }

  list(tenantId: TenantId, query: SessionListQuery): Promise<{ total: number; rows: Session[] }> {
    return this.database.one(tenantScope(tenantId), listSessions(tenantId, query));
  }

  /** The name is free again, the dialogue stays. False: there was none. */
  forget(key: SessionKey): Promise<boolean> {
    return this.database.one(tenantScope(key.tenantId), {
      name: 'session-forget',
      text: `delete from dialogue_sessions
             where tenant_id = $1 and assistant_id = $2 and user_id = $3 and name = $4 returning 1`,
      values: [key.tenantId, key.assistantId, key.userId, key.name],
      map: (rows) => rows.length > 0,
    });
  }
}

const findSession = (
  { tenantId, userId, assistantId, name }: SessionKey,
  onlyUser: string | null,
): Statement<DialogueId | null> => ({
  name: 'session-find',
  text: `select dialogue_id, 0 as rank from dialogue_sessions
         where tenant_id = $1 and assistant_id = $2 and user_id = $3 and name = $4
         union all
         select id, 1 from dialogues where tenant_id = $1 and id = $5 and assistant_id = $2 and ($6::text is null or user_id = $6)
         order by rank limit 1`,
  values: [tenantId, assistantId, userId, name, asId(name), onlyUser],
  map: ([row]) => (row ? (row.dialogue_id as DialogueId) : null),
});

const listSessions = (
  tenantId: TenantId,
  { assistantId, userId, offset, limit }: SessionListQuery,
): Statement<{ total: number; rows: Session[] }> => ({
  name: 'session-list',
  text: `with mine as (
           select s.name, s.user_id, s.created_at, d.id, d.name as title, d.updated_at
           from dialogue_sessions s join dialogues d on d.id = s.dialogue_id and d.tenant_id = s.tenant_id
           where s.tenant_id = $1 and s.assistant_id = $2 and ($3::text is null or s.user_id = $3)),
         page as (select * from mine order by updated_at desc, id desc offset $4 limit $5)
         select (select count(*) from mine) as total, p.*,
           (select count(*) from dialogue_messages m
            where m.tenant_id = $1 and m.dialogue_id = p.id and m.role <> 'system') as messages
         from (select 1) one left join page p on true
         order by p.updated_at desc, p.id desc`,
  values: [tenantId, assistantId, userId, offset, limit],
  map: (rows) => ({
    total: Number(rows[0]?.total ?? 0),
    rows: rows.filter((row) => row.id !== null).map(toSession),
  }),
});

function toSession(row: Row): Session {
  return {
    name: row.name as string,
    dialogueId: row.id as DialogueId,
    userId: row.user_id as string,
    title: row.title as string,
    messages: Number(row.messages),
    createdAt: row.created_at as Date,
    updatedAt: row.updated_at as Date,
  };
}
