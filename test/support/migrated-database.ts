import type { DataSource, MigrationInterface } from 'typeorm';
import { migrationDataSource } from '../../src/database';
import { freshDatabase, query } from './database';

/** A database of a test file's own, on which migrations go there and back; from `beforeAll` to `afterAll`. */
export function migratedDatabase(): {
  query: <T>(sql: string, values?: unknown[]) => Promise<T[]>;
  migrate: (migration: MigrationInterface, way: 'up' | 'down') => Promise<void>;
} {
  let database: Awaited<ReturnType<typeof freshDatabase>>;
  let source: DataSource;
  beforeAll(async () => {
    database = await freshDatabase();
    source = await migrationDataSource(database.url).initialize();
  });
  afterAll(async () => {
    await source.destroy();
    await database.drop();
  });
  return {
    query: (sql, values) => query(database.url, sql, values),
    migrate: async (migration, way) => {
      const runner = source.createQueryRunner();
      try {
        await migration[way](runner);
      } finally {
        await runner.release();
      }
    },
  };
}
