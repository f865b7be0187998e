import type { EventEmitter } from 'node:events';
import type { Socket } from 'node:net';
import type { PoolClient } from 'pg';

/** Of a client what is looked at; `readyForQuery` is false while an answer is due. */
interface Watched {
  readonly connection: { readonly stream: Pick<Socket, 'bytesRead' | 'destroy'> };
  readonly readyForQuery: boolean;
}

/**
 * Ends connections whose Postgres owes an answer and has been silent for too long: a host that vanished without a
 * word, which TCP alone notices after a quarter of an hour. One look at all of them now and then, instead of `pg`'s
 * `query_timeout`: its timer for every query keeps the query, parameters and all, alive until a full collection of
 * garbage.
 */
export class StallWatch {
  private readonly seen = new Map<Watched, { bytes: number; since: number }>();
  private readonly timer: NodeJS.Timeout;

  constructor(
    pool: Pick<EventEmitter, 'on'>,
    private readonly patienceMs: number,
  ) {
    const watched = (client: PoolClient): Watched => client as unknown as Watched;
    pool.on('acquire', (client: PoolClient) => {
      if (!this.seen.has(watched(client))) this.seen.set(watched(client), { bytes: -1, since: 0 });
    });
    pool.on('remove', (client: PoolClient) => this.seen.delete(watched(client)));
    this.timer = setInterval(() => this.look(performance.now()), Math.ceil(patienceMs / 6)).unref();
  }

  private look(now: number): void {
    for (const [client, last] of this.seen) {
      const { stream } = client.connection;
      if (client.readyForQuery || stream.bytesRead !== last.bytes) {
        last.bytes = stream.bytesRead;
        last.since = now;
      } else if (now - last.since > this.patienceMs) {
        this.seen.delete(client);
        stream.destroy(new Error(`connection terminated: nothing read for ${this.patienceMs} ms`));
      }
    }
  }

  stop(): void {
    clearInterval(this.timer);
  }
}
