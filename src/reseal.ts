import { entities } from './app';
import { AssistantsRepository } from './assistants';
import { IdGenerator, SecretBox } from './common';
import { Config, ConfigError } from './config';
import { applicationDataSource, connectionFailure, Database } from './database';
import { EmbeddedPostgres } from './database/embedded-postgres';
import { ModelProvidersRepository } from './model-services';
import { named, SealedValues, webhookSecretsOf, type ResealReport } from './sealed-values';
import { loadSecrets } from './secrets';
import { TenantsRepository } from './tenancy';
import { WebhooksRepository } from './webhooks';

/** Seals anew under PARLEY_SECRET_KEY what PARLEY_SECRET_KEY_PREVIOUS sealed, while servers run. */
async function reseal(url: string, box: SecretBox): Promise<ResealReport> {
  const source = await applicationDataSource({ url, poolSize: 2, entities })
    .initialize()
    .catch((error: unknown) => {
      throw new ConfigError(`DATABASE_URL: ${connectionFailure(error)}`);
    });
  const database = new Database(source);
  try {
    const ids = new IdGenerator();
    return await new SealedValues(
      database,
      box,
      new TenantsRepository(ids, database),
      new ModelProvidersRepository(ids, box, database),
      new AssistantsRepository(database, ids),
      new WebhooksRepository(database, ids, webhookSecretsOf(box)),
    ).reseal();
  } finally {
    await database.onApplicationShutdown();
  }
}

/** `npm run secrets:reseal`: on DATABASE_URL or the embedded server. Exit code 1 when something could not be read. */
async function main(): Promise<void> {
  const config = Config.load();
  const { secretKey, previousSecretKey } = await loadSecrets(config);
  const postgres = config.env.DATABASE_URL
    ? undefined
    : await EmbeddedPostgres.start({ dataDir: config.dataDir });
  try {
    const url = config.env.DATABASE_URL ?? postgres!.url;
    const { resealed, current, unreadable } = await reseal(url, new SecretBox(secretKey, previousSecretKey));
    process.stdout.write(`sealed anew: ${resealed}, under this key before: ${current}\n`);
    if (unreadable.length === 0) return;
    process.stderr.write(
      `parley: ${unreadable.length} can not be read, neither under PARLEY_SECRET_KEY nor under ` +
        `PARLEY_SECRET_KEY_PREVIOUS; enter them again: ${named(unreadable)}\n`,
    );
    process.exitCode = 1;
  } finally {
    await postgres?.stop();
  }
}

main().catch((error: unknown) => {
  process.stderr.write(`parley: ${(error as Error).message}\n`);
  process.exitCode = 1;
});
