import { Injectable } from '@nestjs/common';
import { MoreThan, type EntityManager } from 'typeorm';
import {
  AppError,
  cursorPage,
  FreshCache,
  IdGenerator,
  type CursorPage,
  type CursorQuery,
  type GenerationAppId,
  type ModelServiceId,
  type TenantId,
} from '../common';
import { Database, tenantScope } from '../database';
import { GenerationAppEntity } from './generation-app.entity';
import type { PromptVariable } from './prompt-template';

/** `type` of an app and of what it made. */
export const GENERATION_TYPE = { text: 0, image: 1 } as const;
export type GenerationType = (typeof GENERATION_TYPE)[keyof typeof GENERATION_TYPE];

/** A form and the prompt that its answers are put into. */
export interface GenerationApp {
  readonly id: GenerationAppId;
  readonly tenantId: TenantId;
  readonly type: GenerationType;
  readonly name: string;
  readonly description: string;
  /** Writes a variable as `{{name}}`. */
  readonly promptTemplate: string;
  readonly variables: readonly PromptVariable[];
  readonly modelServiceId: ModelServiceId;
  /** Go over those of the model service: temperature, size, … */
  readonly parameters: Readonly<Record<string, unknown>>;
  readonly createdAt: Date;
  readonly updatedAt: Date;
}
export type GenerationAppInput = Omit<GenerationApp, 'id' | 'tenantId' | 'createdAt' | 'updatedAt'>;

const MAX_CACHED = 10_000;

@Injectable()
export class GenerationAppsRepository {
  private readonly found = new FreshCache<GenerationApp | null>(MAX_CACHED);

  constructor(
    private readonly database: Database,
    private readonly ids: IdGenerator,
  ) {}

  /** Null when this tenant has none of that id. Known within a second of a change. */
  find(tenantId: TenantId, id: GenerationAppId): GenerationApp | null | Promise<GenerationApp | null> {
    return this.found.get(`${tenantId}/${id}`, () =>
      this.database.transaction(tenantScope(tenantId), async (tx) => {
        const row = await tx.findOneBy(GenerationAppEntity, { tenantId, id });
        return row && toApp(row);
      }),
    );
  }

  async create(tx: EntityManager, tenantId: TenantId, input: GenerationAppInput): Promise<GenerationApp> {
    const id = this.ids.next<GenerationAppId>();
    await tx.insert(GenerationAppEntity, { id, tenantId, ...input, variables: [...input.variables] });
    return this.get(tx, tenantId, id);
  }

  /** `lock`: nobody else changes it before the transaction's end. */
  async get(
    tx: EntityManager,
    tenantId: TenantId,
    id: GenerationAppId,
    lock = false,
  ): Promise<GenerationApp> {
    const row = await tx.findOne(GenerationAppEntity, {
      where: { tenantId, id },
      ...(lock && { lock: { mode: 'pessimistic_write' } }),
    });
    if (!row) throw new AppError('NOT_FOUND');
    return toApp(row);
  }

  async list(tx: EntityManager, tenantId: TenantId, query: CursorQuery): Promise<CursorPage<GenerationApp>> {
    const rows = await tx.find(GenerationAppEntity, {
      where: { tenantId, id: MoreThan(query.cursor ?? '0') },
      order: { id: 'asc' },
      take: query.limit + 1,
    });
    return cursorPage(rows.map(toApp), query.limit);
  }

  async update(
    tx: EntityManager,
    tenantId: TenantId,
    id: GenerationAppId,
    { variables, ...change }: GenerationAppInput,
  ): Promise<GenerationApp> {
    await tx.update(
      GenerationAppEntity,
      { tenantId, id },
      { ...change, variables: [...variables], updatedAt: new Date() },
    );
    return this.get(tx, tenantId, id);
  }

  /** What it made stays. */
  async delete(tx: EntityManager, tenantId: TenantId, id: GenerationAppId): Promise<GenerationApp> {
    const app = await this.get(tx, tenantId, id);
    await tx.delete(GenerationAppEntity, { tenantId, id });
    return app;
  }
}

function toApp(row: GenerationAppEntity): GenerationApp {
  return {
    ...row,
    id: row.id as GenerationAppId,
    tenantId: row.tenantId as TenantId,
    type: row.type as GenerationType,
    variables: row.variables as PromptVariable[],
    modelServiceId: row.modelServiceId as ModelServiceId,
    parameters: row.parameters as Record<string, unknown>,
  };
}
