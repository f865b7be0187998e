import './garbage-collection';
import 'reflect-metadata';
import { startApp, type App } from './app';
import { Config, ConfigError } from './config';
import { DataDirectoryHangsError, makeDataDirectory } from './data-directory';
import { migrate } from './database';
import { EmbeddedPostgres, EmbeddedPostgresError } from './database/embedded-postgres';
import { greeting, Quickstart } from './quickstart';

import { loadSecrets } from './secrets';

const SAME_STOP_MS = 1_000;

/** Start-up failures that an operator can mend are told in one line; anything else is a defect and shows its stack. */
function explain(error: unknown, config: Config | undefined): string {
  const { code, message, stack } = error as NodeJS.ErrnoException;
  if (code === 'EADDRINUSE')
    return `port ${config?.env.PORT} is already in use: stop what holds it, or set PORT`;
  if (code === 'ENOTFOUND' && message.includes('getaddrinfo'))
    return `HOST ${config?.env.HOST} can not be resolved`;
  if (code === 'EADDRNOTAVAIL') return `HOST ${config?.env.HOST} is not an address of this machine`;
  if (code === 'EACCES' && message.includes('listen'))
    return `port ${config?.env.PORT} needs privileges: set PORT`;
  if (['EACCES', 'EROFS', 'EPERM', 'ENOTDIR', 'ENOENT'].includes(code ?? '') && /mkdir|open/.test(message)) {
    return `the data directory ${config?.dataDir} is not writable: mend its permissions, or set PARLEY_DATA_DIR`;
  }
  if (error instanceof ConfigError || error instanceof EmbeddedPostgresError) return message;
  return stack ?? message;
}

async function main(): Promise<void> {
  let config: Config | undefined;
  let postgres: EmbeddedPostgres | undefined;
  let app: App | undefined;
  let stopping: Promise<void> | undefined;

  const stop = (): Promise<void> =>
    (stopping ??= (async () => {
      try {
        await app?.close();
      } finally {
        await postgres?.stop();
      }
    })());
  let stoppedAt = 0;
  const onSignal = (signal: string): void => {
    if (stopping) {
      // The same Ctrl-C can arrive twice, by the terminal and by npm. A later one means it: no more waiting for
      // replies; Postgres recovers by itself.
      if (Date.now() - stoppedAt > SAME_STOP_MS) process.exit(130);
      return;
    }
    stoppedAt = Date.now();
    if (app) process.stderr.write(`\n${signal}: stopping\n`);
    void stop().then(
      () => process.exit(0),
      (error: unknown) => {
        process.stderr.write(`parley: ${explain(error, config)}\n`);
        process.exit(1);
      },
    );
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => onSignal(signal));
  // Whoever read our output is gone (`npm start | head`): that is no reason to die and leave a Postgres behind.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => undefined);
  process.on('uncaughtException', (error) => {
    process.stderr.write(`parley: ${error.stack ?? error.message}\n`);
    void stop().finally(() => process.exit(1));
  });
  // `npm start` holds the other end: killed, it must not leave a server behind.
  process.on('disconnect', () => {
    if (!stopping) onSignal('npm start is gone');
  });

  try {
    config = Config.load();
    if (config.usesDataDir) await makeDataDirectory(config.dataDir);
    const secrets = await loadSecrets(config);
    let databaseUrl = config.env.DATABASE_URL;
    if (databaseUrl === undefined) {
      postgres = await EmbeddedPostgres.start({ dataDir: config.dataDir });
      databaseUrl = postgres.url;
    }
    if (stopping) return;
    await migrate(databaseUrl, (line) => process.stderr.write(`parley: ${line}\n`));
    app = await startApp({ config, databaseUrl, ...secrets });
    if (stopping) return;
    if (config.quickstart) {
      const quickstart = app.nest.get(Quickstart);
      const file = await quickstart.prepare(app.url, secrets.rootKey ?? '');
      const { OPENAI_API_KEY, OPENAI_BASE_URL } = config.env;
      const provider =
        OPENAI_API_KEY || OPENAI_BASE_URL ? 'the provider you configured' : "Parley's built-in demo model";
      process.stdout.write(`${greeting(file, quickstart.file, provider)}\n`);
    } else {
      process.stdout.write(`Parley is ready at ${app.url}\n`);
    }
  } catch (error) {
    if (stopping) return;
    process.stderr.write(`parley: ${explain(error, config)}\n`);
    if (error instanceof DataDirectoryHangsError) process.kill(process.pid, 'SIGKILL');
    await stop().catch(() => undefined);
    process.exit(1);
  }
}

void main();
