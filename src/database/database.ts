import type { Socket } from 'node:net';
import { Injectable, type OnApplicationShutdown } from '@nestjs/common';
import type { Pool, PoolClient } from 'pg';
import { DataSource, type EntityManager } from 'typeorm';
import { AppError } from '../common';
import { poolOf } from './data-source';
import { HealthProbe, type Trouble } from './health-probe';
import { StallWatch } from './stall-watch';
import { beginUnder, type Scope } from './scope';
import type { Row, Statement, StatementResults } from './statement';

/**
 * The only way to Postgres. Every access names its {@link Scope} first: row-level security is the second wall under
 * the tenant id that repositories put into their WHERE clauses (docs/architecture.md, "Two walls").
 */
@Injectable()
export class Database implements OnApplicationShutdown {
  /** Counted for /metrics and for the benchmark's "what one message costs". */
  readonly counters = { statements: 0, roundTrips: 0, transactions: 0 };

  private readonly stalls: StallWatch;
  private readonly health = new HealthProbe(async (sql) => {
    const client = await this.connect();
    let broken: Error | undefined;
    try {
      await client.query(sql);
    } catch (error) {
      if (isConnectionError(error)) broken = error as Error;
      throw error;
    } finally {
      client.release(broken);
    }
  });

  constructor(
    private readonly dataSource: DataSource,
    /** Over the statements' own timeout ({@link applicationDataSource}): Postgres has its say first. */
    silenceMs = 35_000,
  ) {
    this.stalls = new StallWatch(this.pool, silenceMs);
  }

  private get pool(): Pool {
    return poolOf(this.dataSource);
  }

  /**
   * Runs the statements in one transaction and one network round trip: BEGIN, the scope, the statements and COMMIT
   * are sent together (pg's pipeline mode). All of them take effect or none. A statement sees what those before it wrote.
   * `whenSent` is called when they are on their way: for what can be done while Postgres works. It must not throw.
   */
  async run<const S extends readonly Statement<unknown>[]>(
    scope: Scope,
    statements: S,
    whenSent?: () => void,
  ): Promise<StatementResults<S>> {
    return this.onClient(async (client) => {
      const sent = this.send(client, beginUnder(scope), statements, 'COMMIT');
      whenSent?.();
      const results = await sent;
      return results as StatementResults<S>;
    });
  }

  /**
   * One transaction in two round trips: what the first statements found decides what the second ones are. For work
   * that would need joins and windows in SQL for what is a loop here.
   */
  async runTwice<
    const S extends readonly Statement<unknown>[],
    const T extends readonly Statement<unknown>[],
  >(scope: Scope, first: S, second: (results: StatementResults<S>) => T): Promise<StatementResults<T>> {
    return this.onClient(async (client) => {
      try {
        const found = await this.send(client, beginUnder(scope), first, null);
        return (await this.send(
          client,
          null,
          second(found as StatementResults<S>),
          'COMMIT',
        )) as StatementResults<T>;
      } catch (error) {
        if (!isConnectionError(error)) await client.query('ROLLBACK');
        throw error;
      }
    });
  }

  private async onClient<T>(work: (client: PoolClient) => Promise<T>): Promise<T> {
    const client = await this.connect();
    let broken: Error | undefined;
    try {
      this.counters.transactions += 1;
      return await work(client);
    } catch (error) {
      // A connection that failed in a transaction is thrown away only if it is broken; a constraint violation rolled back.
      if (isConnectionError(error)) broken = error as Error;
      throw this.failed(error);
    } finally {
      client.release(broken);
    }
  }

  /**
   * All in one write, one wake-up of the backend, instead of one a statement. With callbacks: of the promises that `pg`
   * would make, each query's keeps the next one's alive until a full collection of garbage, parameters and all.
   */
  private send(
    client: PoolClient,
    before: string | null,
    statements: readonly Statement<unknown>[],
    after: string | null,
  ): Promise<unknown[]> {
    this.counters.roundTrips += 1;
    this.counters.statements += statements.length;
    const { stream } = (client as unknown as { connection: { stream: Socket } }).connection;
    return new Promise<Row[][]>((resolve, reject) => {
      const rows: Row[][] = [];
      let waiting = statements.length + (before === null ? 0 : 1) + (after === null ? 0 : 1);
      let failure: Error | undefined;
      const ended = (error?: Error): void => {
        // The first failure is the cause; what follows it only says that the transaction is aborted.
        failure ??= error;
        waiting -= 1;
        if (waiting > 0) return;
        if (failure) reject(failure);
        else resolve(rows);
      };
      stream.cork();
      try {
        if (before !== null) client.query(before, ended);
        statements.forEach(({ name, text, values }, index) => {
          client.query<Row>({ name, text, values: values as unknown[] }, (error, result) => {
            if (!error) rows[index] = result.rows;
            ended(error);
          });
        });
        if (after !== null) client.query(after, ended);
      } finally {
        stream.uncork();
      }
    }).then((rows) => statements.map(({ map }, index) => map(rows[index]!)));
  }

  /** One statement under a scope. */
  async one<T>(scope: Scope, statement: Statement<T>, whenSent?: () => void): Promise<T> {
    const [result] = await this.run(scope, [statement], whenSent);
    return result;
  }

  /** A TypeORM transaction under a scope, for everything that is not a hot path. */
  async transaction<T>(scope: Scope, work: (manager: EntityManager) => Promise<T>): Promise<T> {
    const runner = this.dataSource.createQueryRunner();
    try {
      const begin = beginUnder(scope);
      await runner.connect();
      await runner.startTransaction();
      if (begin !== 'BEGIN') await runner.query(begin.slice('BEGIN;'.length));
      this.counters.transactions += 1;
      const result = await work(runner.manager);
      await runner.commitTransaction();
      return result;
    } catch (error) {
      if (runner.isTransactionActive) await runner.rollbackTransaction().catch(() => undefined);
      throw this.failed(error);
    } finally {
      await runner.release().catch(() => undefined);
    }
  }

  /** SQL of a library that has tables of its own (pg-boss), under no scope: of ours it sees none. */
  async foreign(text: string, values: readonly unknown[] = []): Promise<{ rows: Row[] }> {
    return this.onClient(async (client) => {
      // With parameters it could not hold several statements, which some of theirs do.
      return values.length > 0 ? client.query<Row>(text, [...values]) : client.query<Row>(text);
    });
  }

  /** What keeps Postgres from serving now, null when nothing does; an answer within two seconds. */
  trouble(): Promise<Trouble | null> {
    return this.health.trouble();
  }

  async onApplicationShutdown(): Promise<void> {
    this.stalls.stop();
    if (this.dataSource.isInitialized) await this.dataSource.destroy();
  }

  private failed(error: unknown): unknown {
    this.health.note(error);
    return storageError(error);
  }

  private async connect(): Promise<PoolClient> {
    try {
      const client = await this.pool.connect();
      // Lost while it is lent out, the pool does not listen: its queries fail and tell, the event must not kill us.
      if (client.listenerCount('error') === 0) client.on('error', () => undefined);
      return client;
    } catch (error) {
      throw new AppError('STORAGE_UNAVAILABLE', { cause: error, retryAfterSeconds: 1 });
    }
  }
}

/**
 * SQLSTATE classes 08 (connection), 53 (resources), 57 (operator: shutdown, crash), 58 (system), a server that takes no
 * writes (25006: after a failover a new connection finds the one that does), and sockets that died.
 */
export function isConnectionError(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const code = (error as { code?: string }).code;
  if (code !== undefined && /^(08|53|57P|58|25006)/.test(code)) return true;
  if (code !== undefined && /^(ECONN|EPIPE|ETIMEDOUT|EHOST|ENET|EAI_)/.test(code)) return true;
  return /connection terminated|connection error|not queryable|timeout exceeded|read timeout|socket/i.test(
    error.message,
  );
}

function storageError(error: unknown): unknown {
  if (error instanceof AppError) return error;
  // TypeORM wraps what the driver threw.
  const cause = (error as { driverError?: unknown }).driverError ?? error;
  if (isConnectionError(cause)) return new AppError('STORAGE_UNAVAILABLE', { cause, retryAfterSeconds: 1 });
  return error;
}
