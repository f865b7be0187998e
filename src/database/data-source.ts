import { DataSource, type DataSourceOptions } from 'typeorm';
import type { Pool } from 'pg';
import { migrations } from '../../migrations';
import { ConfigError } from '../config';
import { checkConnections } from './connection-check';
import { connectionFailure } from './connection-failure';
import { underMigrationLock } from './migration-lock';

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

/** The pool, open and found to be what it must be. Throws ConfigError when its connections are not. */
export async function openApplicationDataSource(settings: DataSourceSettings): Promise<DataSource> {
  const source = applicationDataSource(settings);
  try {
    await source.initialize();
    await checkConnections(() => poolOf(source).connect(), APPLICATION_ROLE);
    return source;
  } catch (error) {
    if (source.isInitialized) await source.destroy();
    if (error instanceof ConfigError) throw error;
    throw new ConfigError(`DATABASE_URL: ${connectionFailure(error)}`, { cause: error });
  }
}

/** `pg`'s own pool under TypeORM. */
export function poolOf(source: DataSource): Pool {
  return (source.driver as unknown as { master: Pool }).master;
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

/** Brings the schema up to date; returns the names of what ran. Throws ConfigError when the database can't be used. */
export function migrate(url: string, waiting?: (line: string) => void): Promise<string[]> {
  return underMigrationLock(
    url,
    async () => {
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
    },
    waiting,
  );
}
