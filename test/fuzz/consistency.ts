import { SecretBox } from '../../src/common';
import { query } from '../support/database';

/** What holds of the database whatever was asked for: each statement finds the rows that a request left half-written. */
const NEVER: Readonly<Record<string, string>> = {
  'a reply that nobody ends': `select id from dialogue_messages where status = 'streaming'`,
  'a reply in progress that is none': `select message_id from replies_in_progress`,
  'a checkpoint of a reply that has ended': `select message_id from reply_checkpoints`,
  'a reply without its ledger row': `select m.id from dialogue_messages m where role = 'assistant'
    and not exists (select 1 from usage_ledger l where l.message_id = m.id)`,
  'a dialogue without a message': `select d.id from dialogues d
    where not exists (select 1 from dialogue_messages m where m.dialogue_id = d.id)`,
  'a message whose parent is in no dialogue of its own': `select m.id from dialogue_messages m
    where m.parent_id is not null and not exists
      (select 1 from dialogue_messages p where p.id = m.parent_id and p.dialogue_id = m.dialogue_id)`,
  'a request under way that nobody makes': `select id from open_requests`,
  'a reservation that nobody settles': `select id from usage_reservations`,
  'a generation that nobody ends': `select record_id from generations_in_progress`,
  'a numbered log with a gap': `select c.id from conversations c left join
      (select conversation_id, count(*) as n, max(seq) as last from messages group by 1) m on m.conversation_id = c.id
    where c.deleted_at is null and (coalesce(m.n, 0) <> c.last_seq or coalesce(m.last, 0) <> c.last_seq)`,
  'a one-to-one conversation that is not of two': `select c.id from conversations c where kind = 'single'
    and (select count(*) from conversation_members m where m.conversation_id = c.id) not in (1, 2)`,
  'a group whose count of members is wrong': `select c.id from conversations c where kind = 'group' and deleted_at is null
    and member_count <> (select count(*) from conversation_members m where m.conversation_id = c.id and until_seq is null)`,
  'a member of nothing': `select m.user_id from conversation_members m
    where not exists (select 1 from conversations c where c.id = m.conversation_id)`,
  'text with NUL or half a surrogate pair': `select id from messages where frame like '%\\\\u0000%'`,
  'an app whose variables are no list of names': `select id, variables from generation_apps
    where jsonb_typeof(variables) <> 'array' or exists (select 1 from jsonb_array_elements(variables) v
      where jsonb_typeof(v) <> 'object' or jsonb_typeof(v -> 'name') is distinct from 'string' or v ->> 'name' = '')`,
  'a published version of another assistant': `select a.id from assistants a join assistant_versions v
    on v.id = a.published_version_id where v.assistant_id <> a.id`,
};

/** Names of what should never be and is, with the first rows. */
export async function halfWritten(databaseUrl: string, secretKey: string): Promise<Record<string, unknown>> {
  const found: Record<string, unknown> = {};
  for (const [name, sql] of Object.entries(NEVER)) {
    const rows = await query(databaseUrl, `${sql} limit 3`);
    if (rows.length > 0) found[name] = rows;
  }
  const unreadable = await unreadableCredentials(databaseUrl, new SecretBox(secretKey));
  if (unreadable.length > 0) found["credentials that can't be read as a list of keys"] = unreadable;
  return found;
}

/** Providers whose credentials are not what they are read as. */
async function unreadableCredentials(databaseUrl: string, box: SecretBox): Promise<unknown[]> {
  const rows = await query(
    databaseUrl,
    'select id::text, credentials from model_providers where credentials is not null',
  );
  return rows
    .map(({ id, credentials }) => ({ id, text: box.tryOpen(credentials as string, id as string) }))
    .filter(({ text }) => !isListOfKeys(text === null ? null : JSON.parse(text)));
}

const isListOfKeys = (value: unknown): boolean =>
  Array.isArray(value) &&
  (value as unknown[]).every((one) => {
    const { apiKey, weight } = (one ?? {}) as Record<string, unknown>;
    return typeof apiKey === 'string' && apiKey !== '' && typeof weight === 'number' && weight >= 0;
  });
