import { chmod, mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ConfigError } from '../../src/config';
import { DataDirectoryHangsError, makeDataDirectory } from '../../src/data-directory';

let home: string;
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'parley-data-'));
});
afterEach(() => rm(home, { recursive: true, force: true }));

it('makes what is missing, and takes what is there', async () => {
  const path = join(home, 'a/b/c');
  await Promise.all([makeDataDirectory(path), makeDataDirectory(path)]);
  await makeDataDirectory(path);
  expect((await stat(path)).isDirectory()).toBe(true);
});

const refusal = (path: string) => makeDataDirectory(path).catch((error: unknown) => error);

it('says in one line which directory can not be made', async () => {
  await writeFile(join(home, 'file'), '');
  for (const path of [join(home, 'file'), join(home, 'file/x'), join(home, 'file/x/y')]) {
    const error = await refusal(path);
    expect(error).toBeInstanceOf(ConfigError);
    expect((error as Error).message).toMatch(
      new RegExp(`^the data directory ${path} is not writable \\(E[A-Z]+\\): [^\\n]*PARLEY_DATA_DIR[^\\n]*$`),
    );
  }
});

const asRoot = process.getuid?.() === 0;
(asRoot ? it.skip : it)(
  `says it of one without permission${asRoot ? ' (needs a user other than root)' : ''}`,
  async () => {
    await chmod(home, 0o500);
    expect(await refusal(join(home, 'x'))).toMatchObject({
      message: expect.stringContaining('EACCES') as unknown,
    });
    await chmod(home, 0o700);
  },
);

const onLinux = process.platform === 'linux';
(onLinux ? it : it.skip)(
  `ends also where a name can never be${onLinux ? '' : ' (needs /proc)'}`,
  async () => {
    for (const path of ['/proc/parley', '/proc/parley/deeper/still'])
      expect(await refusal(path)).toMatchObject({ message: expect.stringContaining('(ENOENT)') as unknown });
  },
);

it('waits for a file system that does not answer, but not for ever', async () => {
  const asked: string[] = [];
  const hangs = (path: string): Promise<void> => {
    asked.push(path);
    return new Promise(() => undefined);
  };
  const path = join(home, 'x');
  await expect(makeDataDirectory(path, hangs, 20)).rejects.toThrow(DataDirectoryHangsError);
  await expect(makeDataDirectory(path, hangs, 20)).rejects.toThrow(`${path} does not answer`);
  expect(asked).toEqual([path, path]);
});
