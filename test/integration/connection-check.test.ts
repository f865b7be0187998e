import { randomBytes } from 'node:crypto';
import { Client } from 'pg';
import { ConfigError } from '../../src/config';
import {
  APPLICATION_ROLE,
  applicationDataSource,
  checkConnections,
  poolOf,
  type Session,
} from '../../src/database';
import { freshDatabase, query } from '../support/database';
import { ended, Server } from '../support/server';

let database: Awaited<ReturnType<typeof freshDatabase>>;
const clients: Client[] = [];
beforeAll(async () => {
  database = await freshDatabase();
});
afterEach(async () => {
  await Promise.all(clients.splice(0).map((client) => client.end()));
});
afterAll(() => database.drop());

const OPTIONS = '-c plan_cache_mode=force_generic_plan -c timezone=UTC';
async function connected(options: string): Promise<Client> {
  const client = new Client({ connectionString: database.url, options });
  clients.push(client);
  await client.connect();
  return client;
}
const sessions = (options: string) => async (): Promise<Session> => {
  const client = await connected(options);
  return { query: (sql) => client.query<Record<string, unknown>>(sql), release: () => undefined };
};
const line = (open: () => Promise<Session>, role = APPLICATION_ROLE, patienceMs?: number): Promise<string> =>
  checkConnections(open, role, patienceMs).then(
    () => 'all is well',
    (error: unknown) => {
      expect(error).toBeInstanceOf(ConfigError);
      expect((error as Error).message).not.toContain('\n');
      return (error as Error).message;
    },
  );

it('is content with the pool as it is', async () => {
  const source = await applicationDataSource({ url: database.url, poolSize: 2, entities: [] }).initialize();
  try {
    for (let i = 0; i < 2; i += 1) expect(await line(() => poolOf(source).connect())).toBe('all is well');
    expect(await line(sessions(`-c role=parley_app ${OPTIONS}`))).toBe('all is well');
  } finally {
    await source.destroy();
  }
});

it('says that connections run as another role, or without their settings', async () => {
  expect(await line(sessions(''))).toMatch(
    /^DATABASE_URL: connections run as the role "postgres" and not as "parley_app"; a pooler between drops [^\n]*DATABASE_URL lead to PostgreSQL itself$/,
  );
  expect(await line(sessions('-c role=parley_app'))).toMatch(
    /do not have the settings they asked for; a pooler/,
  );
});

it('says that row-level security does not bind the role', async () => {
  const role = `test_${randomBytes(6).toString('hex')}`;
  await query(database.url, `create role ${role} bypassrls`);
  try {
    expect(await line(sessions(`-c role=${role} ${OPTIONS}`), role)).toBe(
      `DATABASE_URL: row-level security does not bind the role "${role}", which is allowed to bypass it: alter role "${role}" nosuperuser nobypassrls`,
    );
  } finally {
    await query(database.url, `drop role ${role}`);
  }
  expect(await line(sessions(OPTIONS), 'postgres')).toMatch(/"postgres", which is a superuser: alter role/);
});

it('names the tables where it was turned off, and leaves those of others alone', async () => {
  const own = await freshDatabase();
  try {
    const open = async (): Promise<Session> => {
      const client = new Client({ connectionString: own.url, options: `-c role=parley_app ${OPTIONS}` });
      clients.push(client);
      await client.connect();
      return { query: (sql) => client.query<Record<string, unknown>>(sql), release: () => undefined };
    };
    await query(
      own.url,
      'create table spatial_ref_sys (srid int); grant select on spatial_ref_sys to public',
    );
    expect(await line(open)).toBe('all is well');
    await query(own.url, 'alter table dialogues disable row level security');
    await query(own.url, 'alter table messages disable row level security');
    expect(await line(open)).toMatch(
      /^DATABASE_URL: row-level security does not hold for dialogues, messages: alter table/,
    );

    const { child, output } = Server.launch({
      NODE_ENV: 'production',
      DATABASE_URL: own.url,
      PARLEY_SECRET_KEY: 's'.repeat(32),
    });
    expect(await ended(child)).toBe(1);
    expect(output.join('')).toMatch(
      /^parley: DATABASE_URL: row-level security does not hold for dialogues, messages: [^\n]*\n$/,
    );
  } finally {
    await Promise.all(clients.splice(0).map((client) => client.end()));
    await own.drop();
  }
}, 60_000);

/** A pooler's behaviour over real connections: the last that was given back is the first to be lent. */
class Pooler {
  private readonly idle: Client[] = [];
  constructor(private readonly mode: 'session' | 'transaction' | 'statement') {}

  readonly open = async (): Promise<Session> => {
    let mine = this.mode === 'session' ? await this.lend() : undefined;
    let inTransaction = false;
    return {
      query: async (sql) => {
        const client = (mine ??= await this.lend());
        const result = await client.query<Record<string, unknown>>(sql);
        if (sql === 'begin') inTransaction = true;
        if (sql === 'rollback') inTransaction = false;
        if (this.mode === 'statement' || (this.mode === 'transaction' && !inTransaction)) {
          this.idle.push(mine);
          mine = undefined;
        }
        return result;
      },
      release: () => undefined,
    };
  };

  private async lend(): Promise<Client> {
    const client = this.idle.pop() ?? (await connected(''));
    // Its own `connect_query`, without which the role alone would give it away.
    await client.query(`set role parley_app; set plan_cache_mode = force_generic_plan; set timezone = 'UTC'`);
    return client;
  }
}

it('says that a pooler lends connections by the transaction or the statement', async () => {
  const BROKEN = /^DATABASE_URL: a pooler between lends its connections by the transaction or the statement/;
  expect(await line(new Pooler('session').open)).toBe('all is well');
  expect(await line(new Pooler('transaction').open)).toMatch(BROKEN);
  expect(await line(new Pooler('statement').open)).toMatch(BROKEN);
});

it('says that a session forgets what it set', async () => {
  const open = async (): Promise<Session> => {
    const client = await connected(`-c role=parley_app ${OPTIONS}`);
    return {
      query: async (sql) => {
        const result = await client.query<Record<string, unknown>>(sql);
        await client.query('reset parley.session').catch(() => undefined);
        return result;
      },
      release: () => undefined,
    };
  };
  expect(await line(open)).toMatch(/a pooler between lends its connections/);
});

it('does not wait for ever for a pooler with one connection', async () => {
  const whole = await sessions(`-c role=parley_app ${OPTIONS}`)();
  let opened = 0;
  const open = (): Promise<Session> => {
    opened += 1;
    return Promise.resolve(
      opened === 1 ? whole : { ...whole, query: () => new Promise<never>(() => undefined) },
    );
  };
  expect(await line(open, APPLICATION_ROLE, 20)).toMatch(
    /^DATABASE_URL: two connections at once did not answer within 0\.02 s/,
  );
});
