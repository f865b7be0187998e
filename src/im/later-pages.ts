import { GroupCommit, type TenantId } from '../common';

const PAGES_A_BATCH = 4;
/** Pages that a tenant has under way; the others of its own wait. */
const PAGES_OF_A_TENANT = 2;

/**
 * Pages after the first, of users with very many conversations: apart from everybody's first pages, few in a statement,
 * and few of one tenant. Who has few conversations never waits for those who have many.
 */
export class LaterPages<Q extends { readonly tenantId: TenantId }, P> {
  private readonly reading: GroupCommit<Q, P>;
  /** Of tenants that have all they may have under way: who waits for one of them to end. */
  private readonly tenants = new Map<TenantId, { running: number; readonly waiting: (() => void)[] }>();

  constructor(read: (queries: readonly Q[]) => Promise<readonly P[]>) {
    this.reading = new GroupCommit(read, PAGES_A_BATCH);
  }

  async read(query: Q): Promise<P> {
    const { tenantId } = query;
    let tenant = this.tenants.get(tenantId);
    if (!tenant) this.tenants.set(tenantId, (tenant = { running: 0, waiting: [] }));
    if (tenant.running < PAGES_OF_A_TENANT) tenant.running += 1;
    // Whoever ends hands its turn on.
    else await new Promise<void>((resolve) => tenant.waiting.push(resolve));
    try {
      return await this.reading.add(query);
    } finally {
      const next = tenant.waiting.shift();
      if (next) next();
      else {
        tenant.running -= 1;
        if (tenant.running === 0) this.tenants.delete(tenantId);
      }
    }
  }
}
