import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync, statSync, writeSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { randomBytes } from 'node:crypto';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Shutdown } from '../../src/common';
import { ask, bootApp, eventually, says, type TestApp } from '../support/app';
import { freshDatabase, query } from '../support/database';

/** "Health" of docs/operations.md: /health/ready says what keeps PostgreSQL from serving. */
const ready = async (app: TestApp) => {
  const { status, body } = await ask(app.url, 'GET', '/health/ready');
  return { http: status, ...(body as { status: string; database: boolean; reason?: string }) };
};
const becomes = (app: TestApp, wanted: object) =>
  eventually(async () => {
    const found = await ready(app);
    return JSON.stringify({ ...found, ...wanted }) === JSON.stringify(found) && found;
  });
const READY = { http: 200, status: 'ok', database: true };
const troubled = (reason: string) => ({ http: 503, status: 'unavailable', database: false, reason });

/** The way to a PostgreSQL that can be paused as `docker pause` does it: connections stand, nothing comes. */
async function pausable(target: URL) {
  let paused = false;
  const sockets = new Set<Socket>();
  const server = createServer((near) => {
    const far = connect(Number(target.port), target.hostname);
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from);
      from.on('data', (data) => to.write(data)).on('error', () => undefined);
      from.on('close', () => to.destroy());
      if (paused) from.pause();
    }
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  const url = new URL(target);
  url.port = String((server.address() as AddressInfo).port);
  return {
    url: url.href,
    pause: (on: boolean) => {
      paused = on;
      for (const socket of sockets)
        if (on) socket.pause();
        else socket.resume();
    },
    close: () => {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

it('says of a paused PostgreSQL that it gives no answer, however many ask, and is ready when it goes on', async () => {
  const database = await freshDatabase();
  const line = await pausable(new URL(database.url));
  const app = await bootApp({ LOG_LEVEL: 'silent' }, line.url);
  try {
    expect(await ready(app)).toMatchObject({ ...READY });
    line.pause(true);
    const answers = await Promise.all(Array.from({ length: 20 }, () => ready(app)));
    for (const answer of answers) expect(answer).toMatchObject(troubled('no answer'));
    expect((await ask(app.url, 'GET', '/health')).status).toBe(200);
    line.pause(false);
    await becomes(app, READY);
  } finally {
    line.pause(false);
    await app.close();
    line.close();
    await database.drop();
  }
}, 60_000);

describe('a PostgreSQL that takes no writes', () => {
  let app: TestApp;
  let name: string;
  beforeAll(async () => {
    app = await bootApp({ LOG_LEVEL: 'silent' });
    name = new URL(app.databaseUrl).pathname.slice(1);
  });
  afterAll(() => app.close());

  it('is said to have no disk left, from the first heartbeat it refuses to the next it takes', async () => {
    await query(
      app.databaseUrl,
      `create function full_disk() returns trigger language plpgsql as
         $$ begin raise exception 'could not extend file' using errcode = '53100'; end $$;
       create trigger full_disk before update on nodes execute function full_disk()`,
    );
    await becomes(app, troubled('disk full'));
    await query(app.databaseUrl, 'drop trigger full_disk on nodes');
    await becomes(app, READY);
  });

  it('is said to be read-only, and found again once it is not', async () => {
    const anew = `select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()`;
    await query(app.databaseUrl, `alter database ${name} set default_transaction_read_only = on`);
    await query(process.env.TEST_POSTGRES_URL!, anew, [name]);
    await becomes(app, troubled('read-only'));
    await query(process.env.TEST_POSTGRES_URL!, `alter database ${name} reset default_transaction_read_only`);
    await becomes(app, READY);
  });
});

it('says that the process stops', async () => {
  const app = await bootApp({ DRAIN_TIMEOUT_MS: '10000' });
  app.app.nest.get(Shutdown).begin();
  expect(await ready(app)).toEqual({ ...troubled('stopping'), database: true });
  await app.close();
});

/** A disk of a few megabytes; null where this user may make none. */
function smallDisk(): { path: string; remove: () => void } | null {
  const path = mkdtempSync(join(tmpdir(), 'parley-disk-'));
  const remove = (): void => rmSync(path, { recursive: true });
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64m,mode=777', 'tmpfs', path], { stdio: 'ignore' });
  } catch {
    remove();
    return null;
  }
  return {
    path,
    remove: () => {
      execFileSync('umount', [path]);
      remove();
    },
  };
}

const trial = smallDisk();
trial?.remove();
const mayMount = trial !== null;
const reallyFull = `a disk that is really full is said to be, for as long as it is${mayMount ? '' : ' (needs a user who may mount)'}`;
(mayMount ? it : it.skip)(
  reallyFull,
  async () => {
    const disk = smallDisk()!;
    const admin = process.env.TEST_POSTGRES_URL!;
    const name = `test_${randomBytes(8).toString('hex')}`;
    let app: TestApp | undefined;
    try {
      const [shown] = await query<{ data_directory: string }>(admin, 'show data_directory');
      const owner = statSync(shown!.data_directory);
      execFileSync('install', [
        '-d',
        '-m',
        '700',
        '-o',
        String(owner.uid),
        '-g',
        String(owner.gid),
        join(disk.path, 'space'),
      ]);
      await query(admin, `create tablespace ${name} location '${join(disk.path, 'space')}'`);
      await query(admin, `create database ${name} template parley tablespace ${name}`);
      app = await bootApp({ LOG_LEVEL: 'silent' }, admin.replace(/\/postgres$/, `/${name}`));
      const acme = await app.tenant();
      const filler = join(disk.path, 'filler');
      fill(filler);
      // Not every write needs a new page: until one does, nobody can know.
      const talk = async () =>
        (
          await acme.post('/v1/chat/completions', {
            model: 'main',
            sessionId: 's',
            messages: [{ role: 'user', content: randomBytes(6_000).toString('base64') }],
          })
        ).status;
      await eventually(async () => {
        await talk();
        return (await ready(app!)).reason === 'disk full';
      });
      expect(await ready(app)).toMatchObject(troubled('disk full'));
      await rm(filler);
      await becomes(app, READY);
      const client = await acme.send(says('and on'));
      await client.end();
      expect(client.last).toMatchObject({ status: 'finished' });
    } finally {
      await app?.close();
      await query(admin, `drop database if exists ${name} with (force)`);
      await query(admin, `drop tablespace if exists ${name}`);
      disk.remove();
    }
  },
  90_000,
);

function fill(path: string): void {
  const file = openSync(path, 'w');
  try {
    for (const size of [65_536, 512]) {
      try {
        for (;;) writeSync(file, Buffer.alloc(size));
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
      }
    }
  } finally {
    closeSync(file);
  }
}
