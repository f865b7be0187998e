import { Client } from 'pg';
import { ConfigError } from '../../src/config';
import { migrate, underMigrationLock } from '../../src/database';
import { eventually } from '../support/app';
import { freshDatabase, query } from '../support/database';

let database: Awaited<ReturnType<typeof freshDatabase>>;
beforeAll(async () => {
  database = await freshDatabase();
});
afterAll(() => database.drop());

const HOLDERS = `select a.pid, a.state from pg_locks l join pg_stat_activity a using (pid)
  where l.locktype = 'advisory' and l.granted and a.application_name = 'parley-migration-lock'
    and a.datname = current_database()`;
const holders = () => query<{ pid: number; state: string }>(database.url, HOLDERS);

it('is a transaction’s, and gone with it', async () => {
  const during = await underMigrationLock(database.url, holders);
  expect(during).toEqual([{ pid: expect.any(Number) as number, state: 'idle in transaction' }]);
  expect(await holders()).toEqual([]);
  await expect(underMigrationLock(database.url, () => Promise.reject(new Error('no')))).rejects.toThrow('no');
  expect(await holders()).toEqual([]);
});

it('is waited for with a line that says so, and for whom', async () => {
  const first = Promise.withResolvers<void>();
  const [held, waits, lines] = [Promise.withResolvers<void>(), Promise.withResolvers<void>(), [] as string[]];
  const one = underMigrationLock(database.url, async () => {
    held.resolve();
    await first.promise;
    return 'one';
  });
  await held.promise;
  const [holder] = await holders();
  const order: string[] = [];
  const two = migrate(database.url, (line) => {
    lines.push(line);
    waits.resolve();
  }).then((ran) => order.push('two') && ran);
  await waits.promise;
  expect(lines).toEqual([
    `waiting for another process to finish migrating (PostgreSQL's process ${holder!.pid}, from 127.0.0.1) …`,
  ]);
  order.push('one');
  first.resolve();
  expect(await one).toBe('one');
  expect(await two).toEqual([]);
  expect(order).toEqual(['one', 'two']);
});

it('waits for the lock of an earlier version, which was a session’s', async () => {
  const earlier = new Client({ connectionString: database.url });
  await earlier.connect();
  await earlier.query('select pg_advisory_lock(7300417001)');
  const waits = Promise.withResolvers<void>();
  const migrated = migrate(database.url, () => waits.resolve());
  await waits.promise;
  await earlier.end();
  expect(await migrated).toEqual([]);
});

it('outlives the time limits that the operator set for transactions', async () => {
  const name = new URL(database.url).pathname.slice(1);
  for (const limit of ['statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout'])
    await query(database.url, `alter database ${name} set ${limit} = '60ms'`);
  try {
    const during = await underMigrationLock(database.url, async () => {
      // Of the same length: over when it was cut off, as the lock's would have been.
      await expect(query(database.url, 'select pg_sleep(10)')).rejects.toMatchObject({
        code: expect.stringMatching(/57014|25P04/) as unknown,
      });
      return holders();
    });
    expect(during).toHaveLength(1);
  } finally {
    for (const limit of ['statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout'])
      await query(database.url, `alter database ${name} reset ${limit}`);
  }
});

it('lost on the way, it is no success', async () => {
  const working = underMigrationLock(database.url, async () => {
    const [holder] = await holders();
    await query(database.url, 'select pg_terminate_backend($1)', [holder!.pid]);
    await eventually(async () => (await holders()).length === 0);
  });
  await expect(working).rejects.toThrow(ConfigError);
});
