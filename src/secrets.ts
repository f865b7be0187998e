import { randomBytes } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Config } from './config';

export interface Secrets {
  readonly secretKey: string;
  readonly previousSecretKey: string | undefined;
  readonly rootKey: string | undefined;
}

/**
 * From the environment; outside production what is missing is made once and kept in `<data dir>/secrets.json` (mode
 * 600), so that what was encrypted yesterday can be read today. The directory is there.
 */
export async function loadSecrets(config: Config): Promise<Secrets> {
  const { PARLEY_SECRET_KEY: secretKey, PARLEY_ROOT_KEY: rootKey } = config.env;
  const previousSecretKey = config.env.PARLEY_SECRET_KEY_PREVIOUS;
  if (secretKey && (rootKey || config.production)) return { secretKey, previousSecretKey, rootKey };
  const file = join(config.dataDir, 'secrets.json');
  type Kept = { secretKey?: string; rootKey?: string };
  const text = await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error;
    return '{}';
  });
  const kept = JSON.parse(text) as Kept;
  const secrets = {
    secretKey: kept.secretKey ?? randomBytes(32).toString('base64url'),
    rootKey: kept.rootKey ?? `pk_root_${randomBytes(32).toString('base64url')}`,
  };
  if (!kept.secretKey || !kept.rootKey) {
    await writeFile(file, `${JSON.stringify(secrets, null, 2)}\n`, { mode: 0o600 });
  }
  return {
    secretKey: secretKey ?? secrets.secretKey,
    previousSecretKey,
    rootKey: rootKey ?? secrets.rootKey,
  };
}
