import { randomBytes } from 'node:crypto';
import { Client } from 'pg';

/** A database of the test's own, with the schema as the migrations make it. */
export async function freshDatabase(): Promise<{ url: string; drop: () => Promise<void> }> {
  const name = `test_${randomBytes(8).toString('hex')}`;
  const admin = process.env.TEST_POSTGRES_URL!;
  await query(admin, `create database ${name} template parley`);
  return {
    url: admin.replace(/\/postgres$/, `/${name}`),
    drop: async () => {
      await query(admin, `drop database ${name} with (force)`);
    },
  };
}

/** One statement as the cluster's superuser. */
export async function query<T = Record<string, unknown>>(
  url: string,
  sql: string,
  values?: unknown[],
): Promise<T[]> {
  const client = new Client({ connectionString: url });
  await client.connect();
  try {
    return (await client.query(sql, values)).rows as T[];
  } finally {
    await client.end();
  }
}
