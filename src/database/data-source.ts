import { DataSource, type DataSourceOptions } from 'typeorm';
import { Client } from 'pg';
import { migrations } from '../../migrations';
import { ConfigError } from '../config';

/** The role that requests run as: owns nothing, cannot bypass row-level security. Made by the first migration. */
export const APPLICATION_ROLE = 'parley_app';

export interface DataSourceSettings {
  readonly url: string;
  readonly poolSize: number;
  readonly entities: DataSourceOptions['entities'];
}

/**
 * Every query here finds its rows by an index. A statement is planned once a connection, not once an execution (which
 * cost more than the execution itself), perhaps while its tables are still empty: that plan must not be one that
 * reads a table from end to end, nor joins by doing so.
 */
const PLANNING = [
  'plan_cache_mode=force_generic_plan',
  'enable_seqscan=off',
  'enable_hashjoin=off',
  'enable_mergejoin=off',
];

/** The application's pool. `role` is part of the connection's start-up, so no query of it ever runs as the owner. */
export function applicationDataSource({ url, poolSize, entities }: DataSourceSettings): DataSource {
  return new DataSource({
    type: 'postgres',
    url,
    entities,
    synchronize: false,
    logging: ['error'],
    logger: 'debug',
    applicationName: 'parley',
    poolSize,
    extra: {
      pipeline: true,
      options: [`role=${APPLICATION_ROLE}`, 'statement_timeout=30000', 'timezone=UTC', ...PLANNING]
        .map((setting) => `-c ${setting}`)
        .join(' '),
      connectionTimeoutMillis: 5_000,
      idleTimeoutMillis: 60_000,
      keepAlive: true,
    },
  });
}

/** The owner's connection: migrations and nothing else. */
export function migrationDataSource(url: string, entities: DataSourceOptions['entities'] = []): DataSource {
  return new DataSource({
    type: 'postgres',
    url,
    entities,
    migrations,
    migrationsTableName: 'migrations',
    migrationsTransactionMode: 'each',
    synchronize: false,
    applicationName: 'parley-migrations',
    poolSize: 1,
    extra: { pipeline: true, connectionTimeoutMillis: 5_000 },
  });
}

/** Two servers starting at once must not run the same migration twice. Arbitrary, fixed. */
const MIGRATION_LOCK = 7_300_417_001;

/** Brings the schema up to date; returns the names of what ran. Throws ConfigError when the database can't be used. */
export async function migrate(url: string): Promise<string[]> {
  const lock = new Client({ connectionString: url, connectionTimeoutMillis: 5_000 });
  lock.on('error', () => undefined); // the queries on it fail and tell
  try {
    await lock.connect();
  } catch (error) {
    throw new ConfigError(`DATABASE_URL: ${connectionFailure(error)}`, { cause: error });
  }
  try {
    await lock.query('select pg_advisory_lock($1)', [MIGRATION_LOCK]);
    const source = await migrationDataSource(url).initialize();
    try {
      return (await source.runMigrations()).map((migration) => migration.name);
    } catch (error) {
      // What this user may not do (42501) is the operator's to mend; anything else is ours.
      if ((error as { code?: string }).code !== '42501') throw error;
      throw new ConfigError(
        `DATABASE_URL: its user may not migrate the schema: ${(error as Error).message}`,
        { cause: error },
      );
    } finally {
      await source.destroy();
    }
  } finally {
    await lock.end().catch(() => undefined);
  }
}

/** What went wrong with a connection, without the URL's password. */
export function connectionFailure(error: unknown): string {
  const { code, message } = error as { code?: string; message?: string };
  switch (code) {
    case 'ECONNREFUSED':
      return 'nothing answers at that host and port (is PostgreSQL running?)';
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return "that host's name can't be resolved";
    case '28P01':
    case '28000':
      return 'PostgreSQL refuses that user or password';
    case '3D000':
      return 'that database does not exist';
    default:
      return `can't connect: ${message || code || 'unknown reason'}`;
  }
}
