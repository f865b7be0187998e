import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { chmod, chown, cp, mkdir, mkdtemp, readdir, readFile, realpath, rm } from 'node:fs/promises';
import { copyFile, stat, symlink, writeFile } from 'node:fs/promises';
import { arch, platform, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Client } from 'pg';
import {
  DataDirectoryInUseError,
  DataDirectoryNotWritableError,
  EmbeddedPostgres,
  EmbeddedPostgresError,
} from '../../src/database/embedded-postgres';

const ROOT = resolve(__dirname, '..', '..');
const SOURCE = join(ROOT, 'src/database/embedded-postgres.ts');
const NODE = join(ROOT, 'node_modules/.bin/node');
const asRoot = process.getuid?.() === 0;
const succeeds = (command: string, ...args: string[]): boolean => {
  try {
    execFileSync(command, args, { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
};

/** A test where it can run; elsewhere it is skipped, and its name says for want of what. */
const where =
  (can: boolean, needs: string) =>
  (name: string, test: () => Promise<void>): void =>
    can ? it(name, test) : it.skip(`${name} (${needs})`, test);

async function until(what: string, check: () => Promise<boolean> | boolean): Promise<void> {
  for (const deadline = Date.now() + 20_000; Date.now() < deadline; await delay(20))
    if (await check()) return;
  throw new Error(`${what}: not within 20 s`);
}

async function ask<T = string>(url: string, query: string): Promise<T | undefined> {
  const client = new Client({ connectionString: url, connectionTimeoutMillis: 2_000 });
  client.on('error', () => undefined);
  await client.connect();
  try {
    const { rows } = await client.query<Record<string, T>>(query);
    return Object.values(rows[0] ?? {})[0];
  } finally {
    await client.end();
  }
}

const alive = (pid: number): boolean => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

interface Holder {
  readonly child: ChildProcess;
  readonly pid: number;
  readonly url: string;
}

describe('EmbeddedPostgres', () => {
  jest.setTimeout(90_000);
  let home: string;
  let dataDir: string;
  const servers: EmbeddedPostgres[] = [];
  const children: ChildProcess[] = [];

  beforeEach(async () => {
    home = await realpath(await mkdtemp(join(tmpdir(), 'parley-pg-')));
    await chmod(home, 0o755);
    dataDir = join(home, 'data');
  });
  afterEach(async () => {
    await Promise.all(servers.splice(0).map((server) => server.stop()));
    for (const child of children.splice(0)) child.kill('SIGKILL');
    // What a killed holder left running.
    const orphan = Number(
      (await readFile(join(dataDir, 'postgres/postmaster.pid'), 'utf8').catch(() => '')).split('\n')[0],
    );
    if (orphan && succeeds('grep', '-qa', dataDir, `/proc/${orphan}/cmdline`)) {
      process.kill(orphan, 'SIGQUIT');
      await until('the orphan ends', () => !alive(orphan));
    }
    await rm(home, { recursive: true, force: true });
  });

  const start = async (options: Partial<Parameters<typeof EmbeddedPostgres.start>[0]> = {}) => {
    const server = await EmbeddedPostgres.start({ dataDir, ...options });
    servers.push(server);
    return server;
  };

  /** Another process that starts one and keeps it; its last line is the error when it could not. */
  const holder = async (
    source = SOURCE,
    spawnOptions: { uid?: number; gid?: number } = {},
  ): Promise<Holder> => {
    const script = `import(${JSON.stringify(source)}).then(({ EmbeddedPostgres }) =>
      EmbeddedPostgres.start({ dataDir: ${JSON.stringify(dataDir)} })).then(
        (server) => console.log(JSON.stringify({ pid: server.pid, url: server.url })),
        (error) => { console.log(JSON.stringify({ error: error.name + ': ' + error.message })); process.exit(1); });
      setInterval(() => {}, 1000);`;
    const child = spawn(NODE, ['--experimental-transform-types', '--no-warnings', '-e', script], {
      ...spawnOptions,
      cwd: '/',
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    children.push(child);
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
    await until('the other process answers', () => output.includes('\n') || child.exitCode !== null);
    const answer = JSON.parse(output) as Omit<Holder, 'child'> & { error?: string };
    if (answer.error) throw new Error(answer.error);
    return { child, ...answer };
  };

  const kill = async ({ child }: Holder): Promise<void> => {
    child.kill('SIGKILL');
    await until('it is dead', () => child.signalCode !== null);
  };

  it('initialises once, keeps the data, listens to this machine only, and leaves signals alone', async () => {
    const listeners = () =>
      ['SIGINT', 'SIGTERM', 'SIGHUP', 'exit'].map((name) => process.listenerCount(name));
    const before = listeners();
    const first = await start();
    expect(listeners()).toEqual(before);
    expect(await ask(first.url, 'select current_database()')).toBe('parley');
    expect(await ask(first.url, `select version()`)).toMatch(/^PostgreSQL 18/);
    expect(await ask(first.url, `select datlocale from pg_database where datname = 'parley'`)).toBe(
      'C.UTF-8',
    );
    for (const [name, value] of Object.entries({
      fsync: 'on',
      synchronous_commit: 'on',
      listen_addresses: '127.0.0.1',
      unix_socket_directories: '',
      max_connections: '100',
      server_encoding: 'UTF8',
    })) {
      expect(await ask(first.url, `select current_setting('${name}')`)).toBe(value);
    }
    await ask(first.url, 'create table kept as select 1 as one');
    await expect(ask(first.url.replace(/:[^:@]+@/, ':wrong@'), 'select 1')).rejects.toThrow(/password/);
    const { mode } = await stat(join(dataDir, 'postgres-password'));
    expect(mode & 0o777).toBe(0o600);
    const pid = first.pid!;
    await Promise.all([first.stop(), first.stop()]);
    await first.stop();
    expect(alive(pid)).toBe(false);

    const second = await start({ settings: { work_mem: '7MB' } });
    expect(await ask<number>(second.url, 'select one from kept')).toBe(1);
    expect(await ask(second.url, 'show work_mem')).toBe('7MB');
    expect((await readdir(dataDir)).sort()).toEqual(['postgres', 'postgres-password']);
  });

  it('refuses a directory that another one uses, in this process or in another', async () => {
    const first = await start();
    await expect(start()).rejects.toThrow(DataDirectoryInUseError);
    await expect(holder()).rejects.toThrow(
      `DataDirectoryInUseError: another Parley is already using ${dataDir}`,
    );
    expect(await ask<number>(first.url, 'select 1 as one')).toBe(1);
  });

  it('lets one of two first starts at once win', async () => {
    const results = await Promise.allSettled([start(), holder()]);
    expect(results.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
    const lost = results.find((result) => result.status === 'rejected');
    expect(String(lost?.reason)).toMatch(/already using/);
    const [won] = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
    expect(await ask(won!.url, 'select current_database()')).toBe('parley');
  });

  it('ends the server that a killed process left running, and keeps what was committed', async () => {
    const dead = await holder();
    await ask(dead.url, 'create table kept as select 1 as one');
    await kill(dead);
    expect(alive(dead.pid)).toBe(true);
    const next = await start();
    expect(await ask<number>(next.url, 'select one from kept')).toBe(1);
    expect(next.pid).not.toBe(dead.pid);
    expect(await readFile(join(dataDir, 'postgres/postmaster.pid'), 'utf8')).toMatch(
      new RegExp(`^${next.pid}\n`),
    );
  });

  it('recovers when process and server were both killed', async () => {
    const dead = await holder();
    await ask(dead.url, 'create table kept as select 1 as one');
    process.kill(dead.pid, 'SIGKILL');
    await kill(dead);
    const next = await start();
    expect(await ask<number>(next.url, 'select one from kept')).toBe(1);
  });

  it.each(['a dead process', 'another program', 'nothing'])(
    'overlooks a pid file that names %s',
    async (whose) => {
      const first = await start();
      const file = join(dataDir, 'postgres/postmaster.pid');
      const [, ...lines] = (await readFile(file, 'utf8')).split('\n');
      await first.stop();
      let pid = String(process.pid);
      if (whose === 'a dead process') {
        const gone = spawn('true');
        await new Promise((done) => gone.once('exit', done));
        pid = String(gone.pid);
      }
      if (whose === 'another program' && asRoot) {
        // PostgreSQL itself looks past a process of another user, but not past one of its own.
        const { uid, gid } = await stat(join(dataDir, 'postgres'));
        const sleeper = spawn('sleep', ['60'], { uid, gid });
        children.push(sleeper);
        pid = String(sleeper.pid);
      }
      await writeFile(file, whose === 'nothing' ? '' : [pid, ...lines].join('\n'));
      if (whose === 'nothing') await rm(file);
      const second = await start();
      expect(await ask(second.url, 'select current_database()')).toBe('parley');
    },
  );

  it('is not hindered by what a killed first start left behind', async () => {
    await mkdir(join(dataDir, 'postgres.init-2147483646-abc/base'), { recursive: true });
    await mkdir(join(dataDir, 'postgres.init-old/base'), { recursive: true });
    await mkdir(join(dataDir, 'postgres/base'), { recursive: true });
    await writeFile(join(dataDir, 'postgres-password'), '');
    const server = await start();
    expect(await ask(server.url, 'select current_database()')).toBe('parley');
    const left = (await readdir(dataDir)).filter((name) => !name.startsWith('postgres.incomplete-'));
    expect(left.sort()).toEqual(['postgres', 'postgres-password']);
  });

  it.each([
    ['crashes', 'SIGKILL'],
    ['is shut down by somebody', 'SIGINT'],
  ] as const)('starts it again on the same port when it %s', async (_, signal) => {
    const crashes: string[] = [];
    const server = await start({ onCrash: (reason) => crashes.push(reason) });
    const { pid, url } = server;
    await ask(url, 'create table kept as select 1 as one');
    for (let round = 1; round <= 2; round += 1) {
      const before = server.pid!;
      process.kill(before, signal);
      await until('another one runs', () => server.pid !== before && !alive(before));
      await until('it is owned again', () => ask(url, LOCKED).then(Boolean, () => false));
    }
    expect(crashes.length).toBeGreaterThanOrEqual(1);
    expect(server.url).toBe(url);
    expect(server.pid).not.toBe(pid);
    expect(await ask<number>(url, 'select one from kept')).toBe(1);
    await expect(start()).rejects.toThrow(DataDirectoryInUseError);
    await server.stop();
    expect(alive(server.pid!)).toBe(false);
  });

  it('takes its lock again when only the connection was lost', async () => {
    const server = await start();
    const pid = await ask<number>(server.url, LOCKED);
    await ask(server.url, `select pg_terminate_backend(${pid})`);
    await until(
      'it is owned again',
      async () => ![undefined, pid].includes(await ask<number>(server.url, LOCKED)),
    );
    await expect(start()).rejects.toThrow(DataDirectoryInUseError);
  });

  it('stops in the midst of starting it again', async () => {
    let crashed = false;
    const server = await start({ onCrash: () => (crashed = true) });
    process.kill(server.pid!, 'SIGKILL');
    await until('it was noticed', () => crashed);
    await server.stop();
    expect(alive(server.pid!)).toBe(false);
  });

  it('says in one line that the directory cannot be written', async () => {
    await writeFile(join(home, 'file'), '');
    await expect(start({ dataDir: join(home, 'file/data') })).rejects.toThrow(DataDirectoryNotWritableError);
    await expect(start({ dataDir: join(home, 'file') })).rejects.toThrow(
      /^the data directory \S+ is not writable .*$/,
    );
    if (!asRoot) {
      await mkdir(dataDir, { mode: 0o555 });
      await expect(start()).rejects.toThrow(DataDirectoryNotWritableError);
    }
  });

  it('says in one line that the password is lost', async () => {
    await (await start()).stop();
    await rm(join(dataDir, 'postgres-password'));
    await expect(start()).rejects.toThrow(/postgres-password is missing/);
    await writeFile(join(dataDir, 'postgres-password'), 'another');
    await expect(start()).rejects.toThrow(/^the embedded PostgreSQL does not let Parley in: password .*$/);
  });

  it('says in one line what PostgreSQL says about a bad setting', async () => {
    await expect(start({ settings: { shared_buffers: 'many' } })).rejects.toThrow(
      /^the embedded PostgreSQL did not start: FATAL: .*shared_buffers.*$/,
    );
    expect(EmbeddedPostgresError.prototype).toBeInstanceOf(Error);
  });

  const nobody = { uid: 65_534, gid: 65_534 };
  // Only root can become somebody else, with util-linux's setpriv, who must be able to read this Node.
  const reachesNode = asRoot && succeeds('setpriv', '--reuid=65534', '--clear-groups', NODE, '--version');
  const asNobody = where(reachesNode, 'needs root, setpriv, and a Node that uid 65534 can read');
  asNobody('runs as an ordinary user, and as root on what that user made', async () => {
    await mkdir(dataDir);
    await chown(dataDir, nobody.uid, nobody.gid);
    const first = await holder(SOURCE, nobody);
    expect(await ask(first.url, 'select current_database()')).toBe('parley');
    await expect(start()).rejects.toThrow(DataDirectoryInUseError);
    await kill(first);
    const server = await start();
    expect((await stat(`/proc/${server.pid}`)).uid).toBe(nobody.uid);
    expect(await ask(server.url, 'select current_database()')).toBe('parley');
  });

  // An ordinary user can't make a directory the server's own user may not enter.
  const hasSetpriv = asRoot && platform() === 'linux' && succeeds('setpriv', '--version');
  const asRealRoot = where(hasSetpriv, 'needs root and setpriv, on Linux');
  asRealRoot('runs as root in a clone under a private directory', async () => {
    const clone = join(home, 'private/clone');
    const name = `@embedded-postgres/${platform()}-${arch()}`;
    await mkdir(join(clone, 'node_modules', dirname(name)), { recursive: true });
    await chmod(join(home, 'private'), 0o700);
    await cp(join(ROOT, 'node_modules', name), join(clone, 'node_modules', name), {
      recursive: true,
      verbatimSymlinks: true,
    });
    await symlink(join(ROOT, 'node_modules/pg'), join(clone, 'node_modules/pg'));
    await copyFile(SOURCE, join(clone, 'embedded-postgres.ts'));
    dataDir = join(clone, '.parley');
    const modes = async () =>
      Promise.all([home, join(home, 'private'), clone].map(async (path) => (await stat(path)).mode));
    const before = await modes();
    const first = await holder(join(clone, 'embedded-postgres.ts'));
    expect(await ask(first.url, 'select current_database()')).toBe('parley');
    const status = await readFile(`/proc/${first.pid}/status`, 'utf8');
    expect(status).not.toMatch(/^Uid:\s+0\b/m);
    expect(status).toMatch(/^CapEff:\s+0*(4|2)$/m); // dac_read_search or, where withheld, dac_override
    expect(await modes()).toEqual(before);
    await kill(first);
    const second = await holder(join(clone, 'embedded-postgres.ts'));
    expect(second.pid).not.toBe(first.pid);
  });
});

const LOCKED = `select pid from pg_locks where locktype = 'advisory' and granted`;
