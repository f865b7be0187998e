import { Client } from 'pg';
import { ConfigError } from '../config';
import { connectionFailure } from './connection-failure';

/** Two servers starting at once must not run the same migration twice. Arbitrary, fixed. */
const MIGRATION_LOCK = 7_300_417_001;
const FIRST_WAIT_MS = 1_000;
const NEXT_WAITS_MS = 5_000;

/**
 * Does the work while no other process migrates this database. `waiting` is told, every few seconds, for whom it waits.
 * The lock is a transaction's: a session's would stay with the connection that a pooler keeps, for nobody.
 */
export async function underMigrationLock<T>(
  url: string,
  work: () => Promise<T>,
  waiting: (line: string) => void = () => undefined,
): Promise<T> {
  const client = new Client({
    connectionString: url,
    application_name: 'parley-migration-lock',
    connectionTimeoutMillis: 5_000,
    keepAlive: true,
  });
  let lost: Error | undefined;
  client.on('error', (error) => (lost = error));
  try {
    await client.connect();
  } catch (error) {
    throw new ConfigError(`DATABASE_URL: ${connectionFailure(error)}`, { cause: error });
  }
  try {
    await waitForTurn(client, waiting);
    const result = await work();
    // Lost on the way, another process may have begun: what ran is whole, each in its transaction, but who knows more?
    if (lost)
      throw new ConfigError('DATABASE_URL: the connection that held the migration lock was lost', {
        cause: lost,
      });
    await client.query('commit');
    return result;
  } finally {
    await client.end().catch(() => undefined);
  }
}

async function waitForTurn(client: Client, waiting: (line: string) => void): Promise<void> {
  try {
    for (let wait = FIRST_WAIT_MS; !(await take(client, wait)); wait = NEXT_WAITS_MS)
      waiting(`waiting for another process to finish migrating${await holder(client)} …`);
  } catch (error) {
    throw new ConfigError(`DATABASE_URL: ${connectionFailure(error)}`, { cause: error });
  }
}

/** Whether the lock was had within that time; with it, the transaction stays open. */
async function take(client: Client, waitMs: number): Promise<boolean> {
  await client.query('begin');
  // A long migration must not end the transaction that guards it.
  await client.query(
    `select set_config(name, '0', true) from pg_settings
     where name in ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')`,
  );
  await client.query(`set local lock_timeout = ${waitMs}`);
  try {
    await client.query('select pg_advisory_xact_lock($1)', [MIGRATION_LOCK]);
    return true;
  } catch (error) {
    if ((error as { code?: string }).code !== '55P03') throw error;
    await client.query('rollback');
    return false;
  }
}

/** Who to look at if it takes too long; another user's session shows no more than its pid. */
async function holder(client: Client): Promise<string> {
  const { rows } = await client.query<{ pid: number; host: string | null }>(
    `select l.pid, a.client_addr as host from pg_locks l left join pg_stat_activity a using (pid)
     where l.locktype = 'advisory' and l.granted and l.objsubid = 1
       and l.database = (select oid from pg_database where datname = current_database())
       and (l.classid::bigint << 32) + l.objid::bigint = $1`,
    [MIGRATION_LOCK],
  );
  const [row] = rows;
  return row ? ` (PostgreSQL's process ${row.pid}${row.host ? `, from ${row.host}` : ''})` : '';
}
