import type { EntityManager } from 'typeorm';
import type { ApiKeyId, AssistantId, MessageId, ModelServiceId, TenantId } from '../common';
import type { Row } from '../database';
import { ERASED_USER, recordUsage, type Wire } from './ledger';
import { settleUsage } from './quotas';

/** Each statement well within its time. */
const ROWS_A_STATEMENT = 10_000;

/** The figures stay and nobody can tell whose they are. The hours are added up anew by themselves: the rows' txid is new. */
const ANONYMISE = `update usage_ledger set user_id = '${ERASED_USER}', txid = pg_current_xact_id()
  where tenant_id = $1 and user_id <> '${ERASED_USER}'`;

export async function anonymiseReplies(
  tx: EntityManager,
  tenantId: TenantId,
  ids: readonly MessageId[],
): Promise<number> {
  return changed(tx, `${ANONYMISE} and message_id = any($2::bigint[])`, [tenantId, ids]);
}

/** With the counts of the user's own quotas, and requests that are under way. Reports by user follow by themselves. */
export async function anonymiseUser(tx: EntityManager, tenantId: TenantId, userId: string): Promise<number> {
  await tx.query(
    `delete from usage_counters where tenant_id = $1
       and (scope = 'user' and scope_id = $2 or scope = 'key-user' and substr(scope_id, position('/' in scope_id) + 1) = $2)`,
    [tenantId, userId],
  );
  let count = await changed(
    tx,
    `update open_requests set user_id = '${ERASED_USER}' where tenant_id = $1 and user_id = $2`,
    [tenantId, userId],
  );
  for (let some = ROWS_A_STATEMENT; some === ROWS_A_STATEMENT; count += some) {
    some = await changed(
      tx,
      `${ANONYMISE} and message_id in (
         select message_id from usage_ledger where tenant_id = $1 and user_id = $2 limit ${ROWS_A_STATEMENT})`,
      [tenantId, userId],
    );
  }
  return count;
}

/** What is under way while its user is erased. */
export interface UnderWay {
  readonly id: MessageId;
  readonly keyId: ApiKeyId | null;
  readonly assistantId: AssistantId | null;
  readonly modelServiceId: ModelServiceId;
  readonly wire: Wire;
}

/** Its row, which names nobody: its ending will overwrite the figures alone. What was reserved is given back. */
export async function recordErased(
  tx: EntityManager,
  tenantId: TenantId,
  { id, ...rest }: UnderWay,
): Promise<void> {
  const nothing = { promptTokens: 0, completionTokens: 0, totalTokens: 0, credits: 0 };
  const ending = {
    attempts: 1,
    estimated: true,
    outcome: 'interrupted',
    firstPieceMs: null,
    latencyMs: 0,
  } as const;
  const entry = { tenantId, messageId: id, userId: ERASED_USER, ...rest, ...nothing, ...ending };
  for (const { text, values } of [recordUsage(entry), settleUsage(tenantId, id, nothing)])
    await tx.query(text, [...values]);
}

/** A place in a tenant's ledger, by time; as text, for a Date knows no microseconds. */
export interface LedgerPlace {
  readonly at: string;
  readonly id: string;
}
export const LEDGER_START: LedgerPlace = { at: '-infinity', id: '0' };

/** Looks at most at `limit` rows after a place, of before that time; where it came to, null at the end. */
export async function anonymiseOld(
  tx: EntityManager,
  tenantId: TenantId,
  { after, before }: { readonly after: LedgerPlace; readonly before: Date },
  limit: number,
): Promise<{ readonly reached: LedgerPlace; readonly more: boolean }> {
  const rows = await tx.query<Row[]>(
    `with old as (
       select message_id, created_at from usage_ledger
       where tenant_id = $1 and (created_at, message_id) > ($2::timestamptz, $3::bigint) and created_at >= $2::timestamptz
         and created_at < $4
       order by created_at, message_id limit $5),
     changed as (${ANONYMISE} and message_id in (select message_id from old))
     select created_at::text as at, message_id as id from old order by created_at desc, message_id desc limit 1`,
    [tenantId, after.at, after.id, before, limit],
  );
  const [row] = rows;
  const reached = row ? { at: row.at as string, id: row.id as string } : after;
  return { reached, more: row !== undefined };
}

async function changed(tx: EntityManager, sql: string, values: unknown[]): Promise<number> {
  const [row] = await tx.query<Row[]>(
    `with changed as (${sql} returning 1) select count(*) as n from changed`,
    values,
  );
  return Number(row!.n);
}
