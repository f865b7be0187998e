import type { EntityManager } from 'typeorm';
import type { MessageId, TenantId } from '../common';
import type { Row } from '../database';
import { ERASED_USER } from './ledger';

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

/** With the counts of the user's own quotas. */
export async function anonymiseUser(tx: EntityManager, tenantId: TenantId, userId: string): Promise<number> {
  await tx.query(
    `delete from usage_counters where tenant_id = $1
       and (scope = 'user' and scope_id = $2 or scope = 'key-user' and substr(scope_id, position('/' in scope_id) + 1) = $2)`,
    [tenantId, userId],
  );
  for (const table of ['usage_user_hours', 'usage_user_days']) {
    await tx.query(`update ${table} set user_id = '${ERASED_USER}' where tenant_id = $1 and user_id = $2`, [
      tenantId,
      userId,
    ]);
  }
  return changed(tx, `${ANONYMISE} and user_id = $2`, [tenantId, userId]);
}

/** At most `limit` rows of that time; how many. */
export async function anonymiseOld(
  tx: EntityManager,
  tenantId: TenantId,
  { from, before }: { readonly from: Date; readonly before: Date },
  limit: number,
): Promise<number> {
  return changed(
    tx,
    `${ANONYMISE} and message_id in (
       select message_id from usage_ledger where tenant_id = $1 and created_at >= $2 and created_at < $3 and user_id <> '${ERASED_USER}'
       limit $4)`,
    [tenantId, from, before, limit],
  );
}

async function changed(tx: EntityManager, sql: string, values: unknown[]): Promise<number> {
  const [row] = await tx.query<Row[]>(
    `with changed as (${sql} returning 1) select count(*) as n from changed`,
    values,
  );
  return Number(row!.n);
}
