import { spawnSync } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Config, ConfigError } from './config';
import { connectionFailure, migrate, migrationDataSource, underMigrationLock } from './database';
import { EmbeddedPostgres } from './database/embedded-postgres';
import { entities } from './app';
import { makeDataDirectory } from './data-directory';

/** Entities say nothing of indexes, foreign keys and checks: migrations make those, and what is generated must not drop them. */
const FOREIGN_DROP = /^(ALTER TABLE \S+ DROP CONSTRAINT|DROP INDEX)\b/i;
const FOREIGN_MAKE = /^(ALTER TABLE \S+ ADD CONSTRAINT|CREATE (UNIQUE )?INDEX)\b/i;

/** `npm run migration:run`, `:revert`, `:generate -- <verb-noun>`: on DATABASE_URL or the embedded server. */
async function main([action, name = '']: string[]): Promise<void> {
  const config = Config.load();
  if (!config.env.DATABASE_URL) await makeDataDirectory(config.dataDir);
  const postgres = config.env.DATABASE_URL
    ? undefined
    : await EmbeddedPostgres.start({ dataDir: config.dataDir });
  const url = config.env.DATABASE_URL ?? postgres!.url;
  try {
    if (action === 'run') {
      const ran = await migrate(url, say);
      say(ran.length > 0 ? `ran ${ran.join(', ')}` : 'nothing to run: the schema is up to date');
      return;
    }
    const source = await migrationDataSource(url, entities)
      .initialize()
      .catch((error: unknown) => {
        throw new ConfigError(`DATABASE_URL: ${connectionFailure(error)}`);
      });
    try {
      if (action === 'revert') {
        const [last] = await source.query<{ name: string }[]>(
          `select name from migrations order by timestamp desc limit 1`,
        );
        if (!last) return say('nothing to revert: no migration has been run');
        await underMigrationLock(url, () => source.undoLastMigration(), say);
        say(`reverted ${last.name}`);
      } else {
        if (!/^[a-z][a-z0-9-]*$/.test(name))
          throw new Error('name it: npm run migration:generate -- <verb-noun>');
        const { upQueries, downQueries } = await source.driver.createSchemaBuilder().log();
        const up = upQueries.map(({ query }) => query).filter((query) => !FOREIGN_DROP.test(query));
        const down = downQueries.map(({ query }) => query).filter((query) => !FOREIGN_MAKE.test(query));
        if (up.length === 0) return say('nothing to generate: entities and schema agree');
        const stamp = Date.now();
        const file = join('migrations', `${stamp}-${name}.ts`);
        const className =
          name.replace(/(^|-)([a-z0-9])/g, (_, __, letter: string) => letter.toUpperCase()) + String(stamp);
        await writeFile(file, template(className, up, down.reverse()));
        spawnSync('prettier', ['--write', '--log-level', 'silent', file], {
          shell: process.platform === 'win32',
        });
        say(`wrote ${file}: read it, then add it to migrations/index.ts`);
      }
    } finally {
      await source.destroy();
    }
  } finally {
    await postgres?.stop();
  }
}

function template(className: string, up: string[], down: string[]): string {
  const lines = (queries: string[]): string =>
    queries.map((query) => `    await queryRunner.query(${JSON.stringify(query)});`).join('\n');
  return `import type { MigrationInterface, QueryRunner } from 'typeorm';

export class ${className} implements MigrationInterface {
  name = '${className}';

  async up(queryRunner: QueryRunner): Promise<void> {
${lines(up)}
  }

  async down(queryRunner: QueryRunner): Promise<void> {
${lines(down)}
  }
}
`;
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

main(process.argv.slice(2)).catch((error: unknown) => {
  process.stderr.write(`parley: ${(error as Error).message}\n`);
  process.exitCode = 1;
});
