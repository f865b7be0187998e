import { LRUCache } from 'lru-cache';
import { AppError, TokenBucket, type TenantId } from '../common';

export interface ShareLimits {
  /** Requests of one tenant that are under way, those that wait included; more are refused. */
  readonly requests: number;
  /** Of them, those that are worked on while other tenants are there, too. */
  readonly atWork: number;
  /** Requests of all tenants that are worked on while there are several. */
  readonly allAtWork: number;
  /** Of large bodies, what a tenant may send for long and at once while other tenants are there, too; {@link weightOf}. */
  readonly largeBytesPerSecond: number;
}

/** Smaller bodies are parsed in a moment and count as none. */
export const LARGE_BODY_BYTES = 16_384;
/** A tenant that was heard of so recently has company. */
const COMPANY_MS = 60_000;
/** How long a body holds up everybody else grows with its length: so many bytes at a time do not matter. */
const STEP_BYTES = 262_144;
/** So long at most a tenant waits for what one body took, however long that was. */
const MAX_DEBT_SECONDS = 5;
/** A request that asks a provider works for a moment before, and then waits. */
const ASKING_MS = 5;
/** Any other one, at the longest: whatever it waits for, its tenant's next ones need not. */
const WORKING_MS = 1_000;
/** Tenants whose large bodies are remembered. */
const MAX_BUCKETS = 10_000;

/** What becomes of requests; the connection behind each of them tells whether it is a stream by now. */
export interface Connection {
  /** True once the head of the answer was written: what is still open then is a stream, and has its own limits. */
  readonly headersSent: boolean;
}

/** One request of a tenant, from its head to its end. */
export class Ticket {
  state: 'admitted' | 'waiting' | 'working' | 'past' = 'admitted';
  start: (() => void) | undefined;
  timer: NodeJS.Timeout | undefined;

  constructor(
    readonly share: Share,
    readonly connection: Connection,
    /** It is to ask a provider: it keeps its place for a moment only, not while it waits for the answer. */
    readonly asks: boolean,
    /** Of its tenant's large bodies, what stands for one whose length is not known yet. */
    public reservedBytes: number,
  ) {}
}

/** What one tenant has under way. */
class Share {
  readonly underWay = new Set<Ticket>();
  readonly waiting: Ticket[] = [];
  atWork = 0;

  constructor(readonly tenantId: TenantId) {}
}

/**
 * What each tenant may have of this process, so that nobody waits for another's flood. A tenant that is alone is not
 * held back. As soon as a second one is there, on whatever wire, few requests of each are worked on at once and the
 * others wait in their tenant's own queue; the queues take turns. Frames of sockets do not wait here: what is held back
 * leaves the event loop and the database to them.
 */
export class FairShares {
  /** Since the start of the process, for /metrics. */
  refused = 0;
  private readonly shares = new Map<TenantId, Share>();
  private readonly largeBodies = new LRUCache<TenantId, TokenBucket>({ max: MAX_BUCKETS });
  /** Those whose requests wait, the next in turn first. */
  private ring: Share[] = [];
  private atWork = 0;
  private last: TenantId | undefined;
  private companyUntil = -Infinity;
  private starting = false;

  constructor(
    private readonly limits: ShareLimits,
    private readonly now: () => number = () => performance.now(),
  ) {}

  /** A tenant does something, on whatever wire. */
  heard(tenantId: TenantId): void {
    if (tenantId === this.last) return;
    // Whoever comes second comes after somebody.
    if (this.last !== undefined) this.companyUntil = this.now() + COMPANY_MS;
    this.last = tenantId;
  }

  /** Now, for /metrics. */
  get counts(): { tenants: number; atWork: number; waiting: number } {
    const waiting = this.ring.reduce((sum, share) => sum + share.waiting.length, 0);
    return { tenants: this.shares.size, atWork: this.atWork, waiting };
  }

  /**
   * Counts a request that has come, before its body is read; `bodyBytes` is null where its length was not announced:
   * some are reserved until `bodyCame` tells it. Throws RATE_LIMITED; else `leave` must follow.
   */
  enter(
    tenantId: TenantId,
    connection: Connection,
    { bodyBytes = 0, asks = false }: { readonly bodyBytes?: number | null; readonly asks?: boolean } = {},
  ): Ticket {
    this.heard(tenantId);
    let share = this.shares.get(tenantId);
    if (!share) this.shares.set(tenantId, (share = new Share(tenantId)));
    let reservedBytes = 0;
    try {
      if (share.underWay.size >= this.limits.requests) this.admit(share);
      if (bodyBytes === null) reservedBytes = this.reserve(tenantId);
      else if (bodyBytes > LARGE_BODY_BYTES) this.charge(tenantId, bodyBytes);
    } catch (error) {
      this.refused += 1;
      this.forget(share);
      throw error;
    }
    const ticket = new Ticket(share, connection, asks, reservedBytes);
    share.underWay.add(ticket);
    return ticket;
  }

  /** A body whose length nobody had announced is there, and about to be parsed. RATE_LIMITED, as if it had been announced. */
  bodyCame(ticket: Ticket, bytes: number): void {
    this.giveBack(ticket);
    if (bytes <= LARGE_BODY_BYTES) return;
    try {
      this.charge(ticket.share.tenantId, bytes);
    } catch (error) {
      this.refused += 1;
      throw error;
    }
  }

  /** Calls `start` when it is this request's turn: at once, or later unless it has left by then. */
  work(ticket: Ticket, start: () => void): void {
    if (ticket.state !== 'admitted') return;
    const { share } = ticket;
    if (share.waiting.length > 0 || !this.hasRoomFor(share)) {
      ticket.state = 'waiting';
      ticket.start = start;
      if (share.waiting.push(ticket) === 1) this.ring.push(share);
      return;
    }
    this.begin(ticket);
    start();
  }

  /** It has been answered, or its client is gone. */
  leave(ticket: Ticket): void {
    const { share, state } = ticket;
    if (state === 'waiting') {
      share.waiting.splice(share.waiting.indexOf(ticket), 1);
      if (share.waiting.length === 0) this.ring = this.ring.filter((one) => one !== share);
    } else this.yield(ticket);
    ticket.state = 'past';
    ticket.start = undefined;
    // A body that never came to be parsed held up nobody.
    this.giveBack(ticket);
    share.underWay.delete(ticket);
    this.forget(share);
  }

  /** Streams that have begun are not counted any more; looked for only where the limit is reached. */
  private admit(share: Share): void {
    for (const ticket of share.underWay) if (ticket.connection.headersSent) share.underWay.delete(ticket);
    if (share.underWay.size < this.limits.requests) return;
    throw new AppError('RATE_LIMITED', {
      message: `This tenant has ${this.limits.requests} requests under way; come back when some are answered.`,
      retryAfterSeconds: 1,
    });
  }

  /** A body may be larger than what is left: the next one waits for that. */
  private charge(tenantId: TenantId, bytes: number): void {
    if (!this.inCompany) return;
    if (this.take(tenantId, bytes)) return;
    const bucket = this.bucketOf(tenantId);
    const { largeBytesPerSecond: perSecond } = this.limits;
    throw new AppError('RATE_LIMITED', {
      message: `This tenant sends more than ${perSecond} bytes a second in bodies over ${LARGE_BODY_BYTES} bytes; come back later.`,
      retryAfterSeconds: Math.max(1, bucket.waitMs(perSecond) / 1_000),
    });
  }

  /** For a body of unknown length: those that come at once are not all let in by what is left for one. */
  private reserve(tenantId: TenantId): number {
    if (!this.inCompany) return 0;
    const bytes = Math.min(STEP_BYTES, this.limits.largeBytesPerSecond);
    this.charge(tenantId, bytes);
    return bytes;
  }

  private giveBack(ticket: Ticket): void {
    if (ticket.reservedBytes === 0) return;
    this.bucketOf(ticket.share.tenantId).giveBack(ticket.reservedBytes);
    ticket.reservedBytes = 0;
  }

  private take(tenantId: TenantId, bytes: number): boolean {
    const [now, burst, perSecond] = this.fill;
    const weight = Math.min(weightOf(bytes), perSecond * MAX_DEBT_SECONDS);
    return this.bucketOf(tenantId).takeOnCredit(now, burst, perSecond, weight);
  }

  private bucketOf(tenantId: TenantId): TokenBucket {
    let bucket = this.largeBodies.get(tenantId);
    const [now, burst] = this.fill;
    if (!bucket) this.largeBodies.set(tenantId, (bucket = new TokenBucket(burst, now)));
    return bucket;
  }

  private get fill(): [now: number, burst: number, perSecond: number] {
    const { largeBytesPerSecond: perSecond } = this.limits;
    return [this.now(), perSecond, perSecond];
  }

  private get inCompany(): boolean {
    return this.companyUntil > this.now();
  }

  private hasRoomFor(share: Share): boolean {
    const { atWork, allAtWork } = this.limits;
    return (share.atWork < atWork && this.atWork < allAtWork) || !this.inCompany;
  }

  private begin(ticket: Ticket): void {
    ticket.state = 'past';
    // Whoever is alone takes no place, so that what it has begun does not hold up its own when somebody comes.
    if (!this.inCompany) return;
    ticket.state = 'working';
    ticket.share.atWork += 1;
    this.atWork += 1;
    ticket.timer = setTimeout(() => this.yield(ticket), ticket.asks ? ASKING_MS : WORKING_MS).unref();
  }

  /** Its place is free, whether it is at its end or only waits for somebody else. */
  private yield(ticket: Ticket): void {
    clearTimeout(ticket.timer);
    if (ticket.state !== 'working') return;
    ticket.state = 'past';
    ticket.share.atWork -= 1;
    this.atWork -= 1;
    if (this.ring.length === 0 || this.starting) return;
    this.starting = true;
    // Not within somebody else's end: the sockets have their turn between two requests.
    setImmediate(() => this.startMore());
  }

  private startMore(): void {
    this.starting = false;
    // Of as many as are in a row without room, none has any.
    for (let without = 0; without < this.ring.length;) {
      const share = this.ring.shift()!;
      const next = this.hasRoomFor(share) ? share.waiting.shift() : undefined;
      without = next ? 0 : without + 1;
      if (share.waiting.length > 0) this.ring.push(share);
      if (!next) continue;
      const { start } = next;
      next.start = undefined;
      this.begin(next);
      start!();
    }
  }

  private forget(share: Share): void {
    if (share.underWay.size > 0 || share.waiting.length > 0 || share.atWork > 0) return;
    if (this.shares.get(share.tenantId) === share) this.shares.delete(share.tenantId);
  }
}

/** Once for each 256 KiB begun: one body of a megabyte costs the others more than ten of a hundred kilobytes. */
export const weightOf = (bytes: number): number => bytes * Math.ceil(bytes / STEP_BYTES);
