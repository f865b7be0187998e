import { Injectable } from '@nestjs/common';
import { collectDefaultMetrics, Gauge, Registry } from 'prom-client';
import { Database } from '../database';

/** What this process counts, for Prometheus. A registry of its own: two apps in one test process don't collide. */
@Injectable()
export class Metrics {
  readonly registry = new Registry();

  constructor(database: Database) {
    collectDefaultMetrics({ register: this.registry });
    const { counters } = database;
    this.gauge(
      'parley_database_round_trips',
      'Network round trips of hot-path statements',
      () => counters.roundTrips,
    );
    this.gauge('parley_database_statements', 'Hot-path statements', () => counters.statements);
    this.gauge('parley_database_transactions', 'Transactions', () => counters.transactions);
  }

  /** A number that is asked for whenever somebody looks. */
  gauge(name: string, help: string, read: () => number): void {
    new Gauge({
      name,
      help,
      registers: [this.registry],
      collect() {
        this.set(read());
      },
    });
  }
}
