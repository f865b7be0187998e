import { Injectable } from '@nestjs/common';
import { AssistantsRepository, type PublishedAssistant } from '../assistants';
import { FreshCache, type TenantId } from '../common';
import { ModelServicesRepository, SERVICE_TYPE, type ModelService } from '../model-services';
import { AGENT_PREFIX } from './models';

/** A model as the wire shows it. */
export interface ModelRecord {
  /** What a request's `model` may be to mean this one. */
  readonly id: string;
  readonly object: 'model';
  /** Epoch seconds. */
  readonly created: number;
  /** The tenant's id; `parley` when it is the platform's. */
  readonly owned_by: string;
  readonly type: keyof typeof SERVICE_TYPE | 'agent';
}

interface Catalogue {
  readonly records: readonly ModelRecord[];
  /** By every id that means it. */
  readonly byId: ReadonlyMap<string, ModelRecord>;
}

const PAGE_SIZE = 200;
const MAX_CACHED = 1_000;
const TYPES = Object.keys(SERVICE_TYPE) as (keyof typeof SERVICE_TYPE)[];

/** Everything a tenant may name as a `model`. Known within a second of a change. */
@Injectable()
export class ModelCatalogue {
  private readonly catalogues = new FreshCache<Catalogue>(MAX_CACHED);

  constructor(
    private readonly services: ModelServicesRepository,
    private readonly assistants: AssistantsRepository,
  ) {}

  async list(tenantId: TenantId): Promise<readonly ModelRecord[]> {
    return (await this.of(tenantId)).records;
  }

  /** By name, id, `agent:<slug>` or slug; null when this tenant may use none of that. */
  async find(tenantId: TenantId, id: string): Promise<ModelRecord | null> {
    const { byId } = await this.of(tenantId);
    return byId.get(id) ?? byId.get(`${AGENT_PREFIX}${id}`) ?? null;
  }

  private of(tenantId: TenantId): Catalogue | Promise<Catalogue> {
    return this.catalogues.get(tenantId, async () => {
      const [services, agents] = await Promise.all([
        this.allServices(tenantId),
        this.assistants.listPublished(tenantId),
      ]);
      return catalogueOf(tenantId, services, agents);
    });
  }

  private async allServices(tenantId: TenantId): Promise<ModelService[]> {
    const all: ModelService[] = [];
    for (;;) {
      const { rows } = await this.services.listUsable(tenantId, {
        orderBy: 'order_num',
        descending: false,
        offset: all.length,
        limit: PAGE_SIZE,
      });
      all.push(...rows);
      if (rows.length < PAGE_SIZE) return all;
    }
  }
}

/** Of several services of one name the first is meant by it, as `findUsable` has it; the others go by their ids. */
export function catalogueOf(
  tenantId: TenantId,
  services: readonly ModelService[],
  agents: readonly PublishedAssistant[],
): Catalogue {
  const byId = new Map<string, ModelRecord>();
  const named = new Set<string>();
  const records: ModelRecord[] = [];
  // Stable: within an owner they stay in the order of their numbers.
  const ownFirst = services.toSorted((a, b) => Number(a.tenantId === null) - Number(b.tenantId === null));
  for (const { id, name, tenantId: owner, type, createdAt } of ownFirst) {
    const shadowed = named.has(name);
    named.add(name);
    const record: ModelRecord = {
      id: shadowed ? id : name,
      object: 'model',
      created: Math.floor(createdAt.getTime() / 1_000),
      owned_by: owner ?? 'parley',
      type: TYPES.find((known) => SERVICE_TYPE[known] === type)!,
    };
    records.push(record);
    if (!shadowed && !byId.has(name)) byId.set(name, record);
    byId.set(id, record);
  }
  for (const { slug, createdAt } of agents) {
    const record: ModelRecord = {
      id: `${AGENT_PREFIX}${slug}`,
      object: 'model',
      created: Math.floor(createdAt.getTime() / 1_000),
      owned_by: tenantId,
      type: 'agent',
    };
    records.push(record);
    byId.set(record.id, record);
  }
  return { records, byId };
}
