import type { Socket } from 'node:net';
import { Injectable, type OnApplicationShutdown } from '@nestjs/common';
import type { Pool, PoolClient } from 'pg';
import { DataSource, type EntityManager } from 'typeorm';
import { AppError } from '../common';
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

  constructor(private readonly dataSource: DataSource) {}

  private get pool(): Pool {
    return (this.dataSource.driver as unknown as { master: Pool }).master;
  }

  /**
   * Runs the statements in one transaction and one network round trip: BEGIN, the scope, the statements and COMMIT
   * are sent together (pg's pipeline mode). All of them take effect or none. A statement sees what those before it wrote.
   */
  async run<const S extends readonly Statement<unknown>[]>(
    scope: Scope,
    statements: S,
  ): Promise<StatementResults<S>> {
    const client = await this.connect();
    let broken: Error | undefined;
    try {
      this.counters.roundTrips += 1;
      this.counters.transactions += 1;
      this.counters.statements += statements.length;
      // One write, one wake-up of the backend, instead of one a statement.
      const { stream } = (client as unknown as { connection: { stream: Socket } }).connection;
      stream.cork();
      const sent: Promise<unknown>[] = [];
      try {
        sent.push(client.query(beginUnder(scope)));
        for (const { name, text, values } of statements) {
          sent.push(client.query<Row>({ name, text, values: values as unknown[] }));
        }
        sent.push(client.query('COMMIT'));
      } finally {
        stream.uncork();
      }
      const settled = await Promise.allSettled(sent);
      // The first failure is the cause; what follows it only says that the transaction is aborted.
      const failure = settled.find((result) => result.status === 'rejected');
      if (failure) {
        broken = failure.reason as Error;
        throw storageError(failure.reason);
      }
      return statements.map((statement, index) => {
        const result = settled[index + 1] as PromiseFulfilledResult<{ rows: Row[] }>;
        return statement.map(result.value.rows);
      }) as StatementResults<S>;
    } finally {
      // A connection that failed in a transaction is thrown away only if it is broken; a constraint violation rolled back.
      client.release(broken && isConnectionError(broken) ? broken : undefined);
    }
  }

  /** One statement under a scope. */
  async one<T>(scope: Scope, statement: Statement<T>): Promise<T> {
    const [result] = await this.run(scope, [statement]);
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
      throw storageError(error);
    } finally {
      await runner.release().catch(() => undefined);
    }
  }

  /** True when Postgres answers now. */
  async healthy(): Promise<boolean> {
    try {
      const client = await this.connect();
      try {
        await client.query('select 1');
        return true;
      } finally {
        client.release();
      }
    } catch {
      return false;
    }
  }

  async onApplicationShutdown(): Promise<void> {
    if (this.dataSource.isInitialized) await this.dataSource.destroy();
  }

  private async connect(): Promise<PoolClient> {
    try {
      return await this.pool.connect();
    } catch (error) {
      throw new AppError('STORAGE_UNAVAILABLE', { cause: error, retryAfterSeconds: 1 });
    }
  }
}

/** SQLSTATE classes 08 (connection), 53 (resources), 57 (operator: shutdown, crash), 58 (system), and sockets that died. */
export function isConnectionError(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const code = (error as { code?: string }).code;
  if (code !== undefined && /^(08|53|57P|58)/.test(code)) return true;
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
