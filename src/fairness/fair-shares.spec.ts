import { jest } from '@jest/globals';
import fc from 'fast-check';
import type { AppError, TenantId } from '../common';
import { FairShares, weightOf, type ShareLimits, type Ticket } from './fair-shares';

const [A, B, C] = ['1', '2', '3'] as TenantId[] as [TenantId, TenantId, TenantId];
const LIMITS: ShareLimits = { requests: 10, atWork: 2, allAtWork: 3, largeBytesPerSecond: 100_000 };
const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

beforeEach(() => {
  jest.useFakeTimers({ doNotFake: ['setImmediate', 'performance', 'nextTick'] });
});
afterEach(() => {
  jest.useRealTimers();
});

/** Requests by name, and which have begun, in their order. */
class Scene {
  now = 0;
  readonly begun: string[] = [];
  readonly tickets = new Map<string, Ticket>();
  readonly connections = new Map<string, { headersSent: boolean }>();
  readonly shares: FairShares;

  constructor(limits: Partial<ShareLimits> = {}) {
    this.shares = new FairShares({ ...LIMITS, ...limits }, () => this.now);
  }

  come(tenantId: TenantId, name: string, more: { bodyBytes?: number | null; asks?: boolean } = {}): void {
    const connection = { headersSent: false };
    const ticket = this.shares.enter(tenantId, connection, more);
    this.tickets.set(name, ticket);
    this.connections.set(name, connection);
    this.shares.work(ticket, () => this.begun.push(name));
  }

  async end(...names: string[]): Promise<void> {
    for (const name of names) {
      this.shares.leave(this.tickets.get(name)!);
      this.tickets.delete(name);
    }
    await nextTurn();
  }

  refusal(tenantId: TenantId, more: { bodyBytes?: number | null } = {}): AppError {
    try {
      this.shares.enter(tenantId, { headersSent: false }, more);
    } catch (error) {
      return error as AppError;
    }
    throw new Error('it was let in');
  }
}

describe('a tenant that is alone', () => {
  it('is not held back', () => {
    const scene = new Scene();
    for (let n = 0; n < 10; n += 1) scene.come(A, `a${n}`);
    expect(scene.begun).toHaveLength(10);
    expect(scene.shares.counts).toEqual({ tenants: 1, atWork: 0, waiting: 0 });
  });

  it('is alone again when nobody else has come for a minute', () => {
    const scene = new Scene();
    scene.shares.heard(B);
    scene.come(A, 'a0');
    scene.come(A, 'a1');
    scene.come(A, 'a2');
    expect(scene.begun).toEqual(['a0', 'a1']);
    scene.now = 60_001;
    scene.come(C, 'c0');
    scene.now = 120_002;
    scene.shares.heard(C);
    scene.come(C, 'c1');
    scene.come(C, 'c2');
    scene.come(C, 'c3');
    expect(scene.begun).toEqual(['a0', 'a1', 'c0', 'c1', 'c2', 'c3']);
  });

  it('takes no places with what it began, for when somebody comes', () => {
    const scene = new Scene();
    for (let n = 0; n < 5; n += 1) scene.come(A, `a${n}`);
    scene.shares.heard(B);
    scene.come(A, 'a5');
    scene.come(B, 'b0');
    expect(scene.begun.slice(5)).toEqual(['a5', 'b0']);
  });
});

describe('tenants beside each other', () => {
  it("a request does not wait for another tenant's, however many those are", async () => {
    const scene = new Scene();
    scene.shares.heard(B);
    for (let n = 0; n < 10; n += 1) scene.come(A, `a${n}`);
    scene.come(B, 'b0');
    expect(scene.begun).toEqual(['a0', 'a1', 'b0']);
    expect(scene.shares.counts).toEqual({ tenants: 2, atWork: 3, waiting: 8 });
    await scene.end('a0');
    expect(scene.begun).toEqual(['a0', 'a1', 'b0', 'a2']);
  });

  it('take turns where the process is full, each in its own order', async () => {
    const scene = new Scene({ atWork: 3, allAtWork: 1 });
    scene.shares.heard(C);
    for (const name of ['a0', 'a1', 'a2', 'a3']) scene.come(A, name);
    for (const name of ['b0', 'b1']) scene.come(B, name);
    scene.come(C, 'c0');
    for (let n = 0; n < 6; n += 1) await scene.end(scene.begun.at(-1)!);
    expect(scene.begun).toEqual(['a0', 'a1', 'b0', 'c0', 'a2', 'b1', 'a3']);
  });

  it('never more at work than there are places, and everybody gets a turn', async () => {
    const steps = fc.array(fc.record({ tenant: fc.constantFrom(A, B, C), ends: fc.nat(3) }), {
      maxLength: 60,
    });
    await fc.assert(
      fc.asyncProperty(steps, async (all) => {
        const scene = new Scene({ requests: 1_000 });
        scene.shares.heard(A);
        scene.shares.heard(B);
        const check = (): void => {
          const { atWork, waiting } = scene.shares.counts;
          const of = (tenantId: TenantId): number =>
            [...scene.tickets.values()].filter(
              ({ share, state }) => share.tenantId === tenantId && state === 'working',
            ).length;
          expect(atWork).toBe(of(A) + of(B) + of(C));
          expect(atWork).toBeLessThanOrEqual(3);
          for (const tenantId of [A, B, C]) expect(of(tenantId)).toBeLessThanOrEqual(2);
          if (waiting > 0) expect(atWork).toBeGreaterThan(0);
        };
        for (const [n, { tenant, ends }] of all.entries()) {
          scene.come(tenant, `${n}`);
          check();
          // Those that wait may leave, too.
          await scene.end(
            ...[...scene.tickets.keys()].slice(-ends, ends === 0 ? 0 : undefined).slice(0, ends - 1),
          );
          check();
        }
        while (scene.tickets.size > 0) await scene.end([...scene.tickets.keys()][0]!);
        expect(scene.shares.counts).toEqual({ tenants: 0, atWork: 0, waiting: 0 });
      }),
      { numRuns: 50 },
    );
  });

  it('a client that leaves while it waits leaves the queue, and is never begun', async () => {
    const scene = new Scene();
    scene.shares.heard(B);
    for (const name of ['a0', 'a1', 'a2', 'a3']) scene.come(A, name);
    await scene.end('a2');
    await scene.end('a0');
    expect(scene.begun).toEqual(['a0', 'a1', 'a3']);
    await scene.end('a1', 'a3');
    expect(scene.shares.counts).toEqual({ tenants: 0, atWork: 0, waiting: 0 });
  });

  it.each([
    ['what asks a provider', true, 5],
    ['what takes long', false, 1_000],
  ])('%s gives its place on', async (_, asks, ms) => {
    const scene = new Scene({ atWork: 1 });
    scene.shares.heard(B);
    scene.come(A, 'a0', { asks });
    scene.come(A, 'a1');
    jest.advanceTimersByTime(ms - 1);
    await nextTurn();
    expect(scene.begun).toEqual(['a0']);
    jest.advanceTimersByTime(1);
    await nextTurn();
    expect(scene.begun).toEqual(['a0', 'a1']);
    await scene.end('a0', 'a1');
    expect(scene.shares.counts).toEqual({ tenants: 0, atWork: 0, waiting: 0 });
  });
});

describe('requests under way', () => {
  it('are as many as the limit, of each tenant', async () => {
    const scene = new Scene({ requests: 2 });
    scene.come(A, 'a0');
    scene.come(A, 'a1');
    expect(scene.refusal(A)).toMatchObject({ code: 'RATE_LIMITED', retryAfterSeconds: 1 });
    scene.come(B, 'b0');
    await scene.end('a0');
    scene.come(A, 'a2');
    expect(scene.begun).toEqual(['a0', 'a1', 'b0', 'a2']);
  });

  it('streams that have begun are not among them', async () => {
    const scene = new Scene({ requests: 2 });
    scene.come(A, 'a0');
    scene.come(A, 'a1');
    scene.connections.get('a0')!.headersSent = true;
    scene.come(A, 'a2');
    expect(scene.refusal(A)).toMatchObject({ code: 'RATE_LIMITED' });
    await scene.end('a0', 'a1', 'a2');
    expect(scene.shares.counts.tenants).toBe(0);
  });

  it('of a tenant that was refused nothing stays', () => {
    const scene = new Scene({ requests: 0 });
    scene.refusal(A);
    expect(scene.shares.counts.tenants).toBe(0);
  });
});

describe('large bodies', () => {
  it.each([
    [100_000, 100_000],
    [262_144, 262_144],
    [262_145, 524_290],
    [1_048_576, 4_194_304],
  ])('one of %i bytes counts as %i', (bytes, weight) => {
    expect(weightOf(bytes)).toBe(weight);
  });

  it('wait for what is left, in bytes a second; a small one never does', () => {
    const scene = new Scene();
    scene.shares.heard(B);
    scene.come(A, 'a0', { bodyBytes: 80_000 });
    scene.come(A, 'a1', { bodyBytes: 80_000 });
    expect(scene.refusal(A, { bodyBytes: 16_385 })).toMatchObject({
      code: 'RATE_LIMITED',
      retryAfterSeconds: 1,
    });
    scene.come(A, 'a2', { bodyBytes: 16_384 });
    scene.come(B, 'b0', { bodyBytes: 80_000 });
    scene.now = 601;
    scene.come(A, 'a3', { bodyBytes: 16_385 });
  });

  it('are told how long it takes', () => {
    const scene = new Scene();
    scene.shares.heard(B);
    scene.come(A, 'a0', { bodyBytes: 400_000 });
    // Of its 800,000 no more than those of five seconds were taken, and 100,000 were there.
    expect(scene.refusal(A, { bodyBytes: 20_000 }).retryAfterSeconds).toBeCloseTo(4, 3);
  });

  it('count when they have come, where nobody said how long they are', () => {
    const scene = new Scene();
    scene.shares.heard(B);
    scene.come(A, 'a0', { bodyBytes: null });
    scene.shares.bodyCame(scene.tickets.get('a0')!, 150_000);
    expect(scene.refusal(A, { bodyBytes: null })).toMatchObject({ code: 'RATE_LIMITED' });
    scene.now = 501;
    scene.come(A, 'a1', { bodyBytes: null });
  });

  it('of unknown length are refused before they are parsed, as if their length had been announced', async () => {
    const scene = new Scene();
    scene.shares.heard(B);
    scene.come(A, 'a0', { bodyBytes: null });
    // All that is left is reserved until it is known how long that one is.
    expect(scene.refusal(A, { bodyBytes: null })).toMatchObject({ code: 'RATE_LIMITED' });
    expect(scene.refusal(A, { bodyBytes: 16_385 })).toMatchObject({ code: 'RATE_LIMITED' });
    scene.shares.bodyCame(scene.tickets.get('a0')!, 16_384);
    scene.come(A, 'a1', { bodyBytes: null });
    scene.shares.bodyCame(scene.tickets.get('a1')!, 90_000);
    scene.come(A, 'a2', { bodyBytes: null });
    expect(() => scene.shares.bodyCame(scene.tickets.get('a2')!, 16_385)).not.toThrow();
    scene.now = 100;
    scene.come(A, 'a3', { bodyBytes: null });
    scene.come(B, 'b0', { bodyBytes: null });
    await scene.end('a3', 'b0');
    expect(scene.shares.counts.tenants).toBe(1);
  });

  it('of unknown length that came beside each other are parsed only as far as there is something left', () => {
    const scene = new Scene({ largeBytesPerSecond: 600_000 });
    scene.shares.heard(B);
    for (const name of ['a0', 'a1', 'a2']) scene.come(A, name, { bodyBytes: null });
    expect(scene.refusal(A, { bodyBytes: null })).toMatchObject({ code: 'RATE_LIMITED' });
    const came = (name: string) => () => scene.shares.bodyCame(scene.tickets.get(name)!, 300_000);
    expect(came('a0')).not.toThrow();
    // Of 300,000 bytes the last step is begun: they count twice, all that was there.
    for (const name of ['a1', 'a2']) expect(came(name)).toThrow('more than 600000 bytes a second');
    expect(scene.refusal(A, { bodyBytes: null })).toMatchObject({ code: 'RATE_LIMITED' });
  });

  it('that are given up before they are there give back what was reserved', async () => {
    const scene = new Scene();
    scene.shares.heard(B);
    for (let n = 0; n < 5; n += 1) {
      scene.come(A, 'a0', { bodyBytes: null });
      await scene.end('a0');
    }
    scene.come(A, 'a1', { bodyBytes: 100_000 });
    expect(scene.refusal(A, { bodyBytes: null })).toMatchObject({ code: 'RATE_LIMITED' });
  });

  it('of a tenant that is alone are not counted', () => {
    const scene = new Scene();
    for (let n = 0; n < 5; n += 1) scene.come(A, `a${n}`, { bodyBytes: 1_000_000 });
    expect(scene.begun).toHaveLength(5);
  });
});
