import { randomBytes } from 'node:crypto';
import { Injectable, type BeforeApplicationShutdown } from '@nestjs/common';
import { AppError, IdGenerator, MAX_NODE_SLOT } from '../common';
import { Database } from './database';
import { troubleOf, type Trouble } from './health-probe';
import { platformScope } from './scope';
import type { Statement } from './statement';

/** A node whose heartbeat is older than this is taken for dead. Heartbeat and sweep stay well under "within 15 s". */
export const NODE_LEASE_MS = 8_000;
const HEARTBEAT_MS = 2_000;

/**
 * This process among all that share the database: a slot of its own (unique ids) and a heartbeat (who writes which
 * reply, and whether they still live). `incarnation` is new with every start, so a restarted process is not mistaken
 * for the one that died.
 */
@Injectable()
export class NodeRegistry implements BeforeApplicationShutdown {
  readonly incarnation = BigInt(`0x${randomBytes(8).toString('hex')}`) & 0x7fff_ffff_ffff_ffffn;
  private timer: NodeJS.Timeout | undefined;
  private slot = -1;
  private beating = false;
  private freshSince = 0;
  private lastBeat = 0;
  /** Why the last heartbeat was refused; null since one went through. */
  trouble: Trouble | null = null;

  constructor(
    private readonly database: Database,
    private readonly ids: IdGenerator,
  ) {}

  async join(): Promise<void> {
    await this.claim();
    this.timer = setInterval(() => void this.beat(), HEARTBEAT_MS).unref();
  }

  /**
   * True when this node's own heartbeat has gone through for a whole lease. After a database outage every heartbeat
   * is old: nobody may be declared dead before the living had the time to say so.
   */
  get mayJudge(): boolean {
    const now = Date.now();
    return now - this.lastBeat < NODE_LEASE_MS && now - this.freshSince >= NODE_LEASE_MS;
  }

  async beforeApplicationShutdown(): Promise<void> {
    clearInterval(this.timer);
    await this.database.one(platformScope(), releaseSlot(this.incarnation)).catch(() => undefined);
  }

  private async claim(): Promise<void> {
    const [, slot] = await this.database.run(platformScope(), [lockClaims, claimSlot(this.incarnation)]);
    if (slot === null) throw new AppError('OVERLOADED', { message: `more than ${MAX_NODE_SLOT + 1} nodes` });
    this.slot = slot;
    this.ids.useSlot(slot);
    this.lastBeat = Date.now();
    // A fresh node saw nothing fail: what it finds expired really is.
    this.freshSince = this.lastBeat - NODE_LEASE_MS;
  }

  private async beat(): Promise<void> {
    if (this.beating) return;
    this.beating = true;
    try {
      const mine = await this.database.one(platformScope(), heartbeat(this.slot, this.incarnation));
      const now = Date.now();
      this.trouble = null;
      if (now - this.lastBeat > NODE_LEASE_MS) this.freshSince = now;
      this.lastBeat = now;
      if (!mine) {
        await this.claim();
        this.freshSince = now;
      }
    } catch (error) {
      const trouble = troubleOf(error);
      if (trouble === 'disk full' || trouble === 'read-only') this.trouble = trouble;
      // The database is away: requests say so; `mayJudge` turns false by itself.
    } finally {
      this.beating = false;
    }
  }
}

/** One claim at a time: two nodes that start together must not both see the same slot free. */
const lockClaims: Statement<void> = {
  name: 'node-claim-lock',
  text: 'select pg_advisory_xact_lock(7300417)',
  values: [],
  map: () => undefined,
};

const claimSlot = (incarnation: bigint): Statement<number | null> => ({
  name: 'node-claim',
  // The lowest slot that is free or whose holder is long dead: no id of its can be made any more.
  text: `with free as (
      select s.slot from generate_series(0, ${MAX_NODE_SLOT}) as s(slot)
      where not exists (select 1 from nodes n where n.slot = s.slot
                        and n.heartbeat_at > now() - interval '60 seconds')
      order by s.slot limit 1)
    insert into nodes (slot, incarnation, heartbeat_at) select slot, $1, now() from free
    on conflict (slot) do update set incarnation = excluded.incarnation, heartbeat_at = now()
    returning slot`,
  values: [incarnation.toString()],
  map: (rows) => (rows[0] ? Number(rows[0].slot) : null),
});

const heartbeat = (slot: number, incarnation: bigint): Statement<boolean> => ({
  name: 'node-heartbeat',
  text: 'update nodes set heartbeat_at = now() where slot = $1 and incarnation = $2 returning slot',
  values: [slot, incarnation.toString()],
  map: (rows) => rows.length > 0,
});

const releaseSlot = (incarnation: bigint): Statement<void> => ({
  name: 'node-release',
  text: 'delete from nodes where incarnation = $1',
  values: [incarnation.toString()],
  map: () => undefined,
});
