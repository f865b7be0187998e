import { mkdir, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { ConfigError } from './config';

/** A start must end within 5 s of being given a directory that can't be made. */
const PATIENCE_MS = 3_000;

/** The file system owes an answer: a thread of this process waits in it, and an orderly exit would wait for that thread. */
export class DataDirectoryHangsError extends ConfigError {}

/** Makes PARLEY_DATA_DIR and what is above it. Throws ConfigError, within 5 s, when it can't be. */
export async function makeDataDirectory(
  path: string,
  make: (path: string) => Promise<unknown> = mkdir,
  patienceMs = PATIENCE_MS,
): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const what = `the file system of the data directory ${path} does not answer`;
      reject(new DataDirectoryHangsError(`${what}: mend it, or set PARLEY_DATA_DIR to another directory`));
    }, patienceMs);
  });
  try {
    await Promise.race([makeAll(path, make), late]);
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    const { code, message } = error as NodeJS.ErrnoException;
    const why =
      code === 'ENOSPC' || code === 'EDQUOT' ? 'can not be made, its disk is full' : 'is not writable';
    throw new ConfigError(
      `the data directory ${path} ${why} (${code ?? message}): mend that, or set PARLEY_DATA_DIR to another directory`,
      { cause: error },
    );
  } finally {
    clearTimeout(timer);
  }
}

/** Not Node's recursive `mkdir`: where a file system says ENOENT for a name under a directory it has (/proc), that never ends. */
async function makeAll(path: string, make: (path: string) => Promise<unknown>): Promise<void> {
  const isDirectory = (): Promise<boolean> =>
    stat(path).then(
      (found) => found.isDirectory(),
      () => false,
    );
  if (await isDirectory()) return;
  const above = dirname(path);
  if (above !== path) await makeAll(above, make);
  try {
    await make(path);
  } catch (error) {
    // Another start may have made it meanwhile.
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    if (!(await isDirectory())) throw Object.assign(new Error('not a directory'), { code: 'ENOTDIR' });
  }
}
