import { createServer, connect, type AddressInfo, type Socket } from 'node:net';
import { DataSource } from 'typeorm';
import { AppError } from '../../src/common';
import { applicationDataSource, Database, platformScope } from '../../src/database';
import { freshDatabase } from '../support/database';

/** Passes bytes on to Postgres until it is told to keep them, as a network does whose other end has vanished. */
async function silentNetwork(target: URL) {
  let silent = false;
  const sockets = new Set<Socket>();
  const server = createServer((near) => {
    const far = connect(Number(target.port), target.hostname);
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from);
      from.on('data', (data) => silent || to.write(data));
      from.on('error', () => undefined).on('close', () => to.destroy());
    }
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  const url = new URL(target);
  url.port = String((server.address() as AddressInfo).port);
  return {
    url: url.href,
    silence: (on: boolean) => (silent = on),
    close: () => {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

const PATIENCE_MS = 300;
const statement = (text: string) => ({
  name: `stall-${text}`,
  text,
  values: [],
  map: (rows: unknown[]) => rows.length,
});

let postgres: Awaited<ReturnType<typeof freshDatabase>>;
let network: Awaited<ReturnType<typeof silentNetwork>>;
let source: DataSource;
let database: Database;

beforeAll(async () => {
  postgres = await freshDatabase();
  network = await silentNetwork(new URL(postgres.url));
  source = await applicationDataSource({ url: network.url, poolSize: 2, entities: [] }).initialize();
  database = new Database(source, PATIENCE_MS);
});
afterAll(async () => {
  network.silence(false);
  await database.onApplicationShutdown();
  network.close();
  await postgres.drop();
});

test('a Postgres that owes an answer and falls silent is given up, and asked anew over another connection', async () => {
  const ask = () => database.one(platformScope(), statement('select 1'));
  await expect(ask()).resolves.toBe(1);
  network.silence(true);
  await expect(ask()).rejects.toMatchObject({ code: 'STORAGE_UNAVAILABLE' } satisfies Partial<AppError>);
  network.silence(false);
  await expect(ask()).resolves.toBe(1);
});

test('a connection at rest is left alone, however long', async () => {
  const ask = () =>
    database.one(platformScope(), {
      ...statement('select pg_backend_pid() as pid'),
      map: ([row]) => (row as unknown as { pid: number }).pid,
    });
  const first = await ask();
  // As many looks as end a connection that is waited for.
  await new Promise((resolve) => setTimeout(resolve, 3 * PATIENCE_MS));
  await expect(ask()).resolves.toBe(first);
});
