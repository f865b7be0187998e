import { Injectable } from '@nestjs/common';
import { In, MoreThan, type EntityManager } from 'typeorm';
import {
  AppError,
  cursorPage,
  FreshCache,
  IdGenerator,
  type AssistantId,
  type AssistantVersionId,
  type CursorPage,
  type CursorQuery,
  type ModelServiceId,
  type SealedRow,
  type SealedRows,
  type TenantId,
} from '../common';
import { Database, idArray, tenantScope, tenantsScope, type Statement } from '../database';
import { AssistantVersionEntity } from './assistant-version.entity';
import { AssistantEntity } from './assistant.entity';

export interface Assistant {
  readonly id: AssistantId;
  readonly tenantId: TenantId;
  readonly slug: string;
  readonly name: string;
  readonly description: string;
  readonly avatar: string;
  readonly publishedVersionId: AssistantVersionId | null;
  readonly createdAt: Date;
  readonly updatedAt: Date;
}
export type AssistantInput = Partial<Pick<Assistant, 'slug' | 'name' | 'description' | 'avatar'>>;

/** Never changes once made: a dialogue that began under it goes on under it. */
export interface AssistantVersion {
  readonly id: AssistantVersionId;
  readonly tenantId: TenantId;
  readonly assistantId: AssistantId;
  /** 1, 2, 3 … within the assistant. */
  readonly number: number;
  readonly prompt: string;
  readonly modelServiceId: ModelServiceId;
  readonly parameters: Readonly<Record<string, unknown>>;
  readonly greeting: string;
  readonly suggestedQuestions: readonly string[];
  readonly contextPolicy: Readonly<Record<string, unknown>>;
  readonly tools: readonly unknown[];
  readonly publishedAt: Date | null;
  readonly createdAt: Date;
}
export interface AssistantVersionInput {
  readonly prompt?: string;
  readonly modelServiceId: ModelServiceId;
  readonly parameters?: Readonly<Record<string, unknown>>;
  readonly greeting?: string;
  readonly suggestedQuestions?: readonly string[];
  readonly contextPolicy?: Readonly<Record<string, unknown>>;
  /** As they are stored: with their secrets sealed. */
  readonly tools?: readonly unknown[];
}

/** A version with its assistant's face: what a tenant's server may know of it. */
export interface PublicVersion extends AssistantVersion {
  readonly assistant: Pick<Assistant, 'slug' | 'name' | 'description' | 'avatar' | 'updatedAt'>;
}

/** An assistant and what its slug answers with. */
export interface AssistantWithVersion {
  readonly assistant: Assistant;
  /** Null: nothing is published. */
  readonly version: AssistantVersion | null;
}

/** An assistant as somebody to write to. */
export interface Contact {
  readonly assistantId: AssistantId;
  readonly slug: string;
  /** Null: nothing is published, so it answers nobody. */
  readonly versionId: AssistantVersionId | null;
}

export type PublishedAssistant = Pick<Assistant, 'id' | 'slug' | 'name' | 'createdAt'>;

const MAX_CACHED = 10_000;

/** The sealed headers of a version's tools, in their order. */
const SEALED = `(select array_agg(tool->>'headers' order by place)
  from jsonb_array_elements(v.tools) with ordinality x(tool, place) where tool ? 'headers')`;

@Injectable()
export class AssistantsRepository implements SealedRows {
  private readonly versions = new FreshCache<PublicVersion | null>(MAX_CACHED);
  private readonly contacts = new FreshCache<Contact | null>(MAX_CACHED);

  constructor(
    private readonly database: Database,
    private readonly ids: IdGenerator,
  ) {}

  /** Null when this tenant has none of that id. Known within a second of a change. */
  findVersion(
    tenantId: TenantId,
    id: AssistantVersionId,
  ): PublicVersion | null | Promise<PublicVersion | null> {
    return this.versions.get(`${tenantId}/${id}`, () =>
      this.database.one(tenantScope(tenantId), findVersion(tenantId, id)),
    );
  }

  /** By slug or id. Known within a second of a change. */
  findContact(
    tenantId: TenantId,
    by: { readonly slug: string } | { readonly id: AssistantId },
  ): Contact | null | Promise<Contact | null> {
    const column = 'slug' in by ? 'slug' : 'id';
    const value = 'slug' in by ? by.slug : by.id;
    return this.contacts.get(`${tenantId}/${column}/${value}`, () =>
      this.database.one(tenantScope(tenantId), findContact(tenantId, column, value)),
    );
  }

  /** Which of these ids are assistants of the tenant. */
  among(tenantId: TenantId, ids: readonly AssistantId[]): Promise<ReadonlySet<string>> {
    return this.database.one(tenantScope(tenantId), among(tenantId, ids));
  }

  /** Every assistant that somebody can talk to, by slug. */
  listPublished(tenantId: TenantId): Promise<PublishedAssistant[]> {
    return this.database.one(tenantScope(tenantId), listPublished(tenantId));
  }

  /** CONFLICT when the tenant already has that slug. */
  async create(
    tx: EntityManager,
    tenantId: TenantId,
    input: AssistantInput & { slug: string; name: string },
  ): Promise<Assistant> {
    const id = this.ids.next<AssistantId>();
    await tx.insert(AssistantEntity, { id, tenantId, ...input }).catch(slugTaken);
    return this.get(tx, tenantId, id);
  }

  async get(tx: EntityManager, tenantId: TenantId, id: AssistantId): Promise<Assistant> {
    const row = await tx.findOneBy(AssistantEntity, { tenantId, id });
    if (!row) throw new AppError('NOT_FOUND');
    return toAssistant(row);
  }

  async findBySlug(tx: EntityManager, tenantId: TenantId, slug: string): Promise<Assistant | null> {
    const row = await tx.findOneBy(AssistantEntity, { tenantId, slug });
    return row && toAssistant(row);
  }

  async list(tx: EntityManager, tenantId: TenantId, query: CursorQuery): Promise<CursorPage<Assistant>> {
    const rows = await tx.find(AssistantEntity, {
      where: { tenantId, id: MoreThan(query.cursor ?? '0') },
      order: { id: 'asc' },
      take: query.limit + 1,
    });
    return cursorPage(rows.map(toAssistant), query.limit);
  }

  /** By slug, each with its published version, and how many there are. */
  async page(
    tx: EntityManager,
    tenantId: TenantId,
    { offset, limit }: { readonly offset: number; readonly limit: number },
  ): Promise<{ total: number; rows: AssistantWithVersion[] }> {
    const [rows, total] = await tx.findAndCount(AssistantEntity, {
      where: { tenantId },
      order: { slug: 'asc' },
      skip: offset,
      take: limit,
    });
    return { total, rows: await this.withVersions(tx, tenantId, rows) };
  }

  /** Null when this tenant has none of that slug. `lock`: nobody else changes it before the transaction's end. */
  async findWithVersion(
    tx: EntityManager,
    tenantId: TenantId,
    slug: string,
    lock = false,
  ): Promise<AssistantWithVersion | null> {
    const row = await tx.findOne(AssistantEntity, {
      where: { tenantId, slug },
      ...(lock && { lock: { mode: 'pessimistic_write' } }),
    });
    const [found = null] = await this.withVersions(tx, tenantId, row ? [row] : []);
    return found;
  }

  async update(
    tx: EntityManager,
    tenantId: TenantId,
    id: AssistantId,
    change: AssistantInput,
  ): Promise<Assistant> {
    await tx.update(AssistantEntity, { tenantId, id }, { ...change, updatedAt: new Date() }).catch(slugTaken);
    return this.get(tx, tenantId, id);
  }

  /** With its versions. Dialogues held with it stay. */
  async delete(tx: EntityManager, tenantId: TenantId, id: AssistantId): Promise<Assistant> {
    const assistant = await this.get(tx, tenantId, id);
    await tx.delete(AssistantEntity, { tenantId, id });
    return assistant;
  }

  async createVersion(
    tx: EntityManager,
    tenantId: TenantId,
    assistantId: AssistantId,
    input: AssistantVersionInput,
  ): Promise<AssistantVersion> {
    const locked = await tx.findOne(AssistantEntity, {
      where: { tenantId, id: assistantId },
      lock: { mode: 'pessimistic_write' }, // numbers count up one by one
    });
    if (!locked) throw new AppError('NOT_FOUND');
    const last = await tx.findOne(AssistantVersionEntity, {
      where: { tenantId, assistantId },
      order: { number: 'desc' },
    });
    const id = this.ids.next<AssistantVersionId>();
    const { suggestedQuestions, tools, ...rest } = input;
    await tx.insert(AssistantVersionEntity, {
      id,
      tenantId,
      assistantId,
      number: (last?.number ?? 0) + 1,
      ...rest,
      ...(suggestedQuestions && { suggestedQuestions: [...suggestedQuestions] }),
      ...(tools && { tools: [...tools] as object[] }),
    });
    return this.getVersion(tx, tenantId, assistantId, id);
  }

  async getVersion(
    tx: EntityManager,
    tenantId: TenantId,
    assistantId: AssistantId,
    id: AssistantVersionId,
  ): Promise<AssistantVersion> {
    const row = await tx.findOneBy(AssistantVersionEntity, { tenantId, assistantId, id });
    if (!row) throw new AppError('NOT_FOUND');
    return toVersion(row);
  }

  async listVersions(
    tx: EntityManager,
    tenantId: TenantId,
    assistantId: AssistantId,
    query: CursorQuery,
  ): Promise<CursorPage<AssistantVersion>> {
    const rows = await tx.find(AssistantVersionEntity, {
      where: { tenantId, assistantId, id: MoreThan(query.cursor ?? '0') },
      order: { id: 'asc' },
      take: query.limit + 1,
    });
    return cursorPage(rows.map(toVersion), query.limit);
  }

  /** Versions whose tools have sealed headers; `name` is the assistant's slug and the version's number. */
  sealedRows(tenants: readonly TenantId[], after: string, limit: number): Promise<SealedRow[]> {
    return this.database.one(tenantsScope(tenants), {
      name: 'assistant-versions-sealed',
      text: `select v.id, v.tenant_id, v.assistant_id, a.slug, v.number, ${SEALED} as sealed
             from assistant_versions v join assistants a on a.id = v.assistant_id
             where v.tenant_id = any($1::bigint[]) and v.id > $2 and v.tools @? '$[*].headers'
             order by v.id limit $3`,
      values: [[...tenants], after, limit],
      map: (rows) =>
        rows.map((row) => ({
          id: row.id as string,
          tenantId: row.tenant_id as TenantId,
          name: `${row.slug as string}, version ${row.number as number}`,
          context: row.assistant_id as string,
          sealed: row.sealed as string[],
        })),
    });
  }

  reseal({ id, tenantId, sealed: before }: SealedRow, sealed: readonly string[]): Promise<boolean> {
    return this.database.one(tenantScope(tenantId!), {
      name: 'assistant-version-reseal',
      text: `update assistant_versions v set tools = (
               select jsonb_agg(case when tool ? 'headers' then jsonb_set(tool, '{headers}',
                 to_jsonb(($4::text[])[array_position($3::text[], tool->>'headers')])) else tool end order by place)
               from jsonb_array_elements(v.tools) with ordinality x(tool, place))
             where v.tenant_id = $1 and v.id = $2 and ${SEALED} = $3::text[] returning v.id`,
      values: [tenantId, id, [...before], [...sealed]],
      map: (rows) => rows.length > 0,
    });
  }

  /** From now on this version is the one that the assistant's slug answers with. */
  async publish(
    tx: EntityManager,
    tenantId: TenantId,
    assistantId: AssistantId,
    id: AssistantVersionId,
  ): Promise<AssistantVersion> {
    const version = await this.getVersion(tx, tenantId, assistantId, id);
    const now = new Date();
    if (!version.publishedAt) await tx.update(AssistantVersionEntity, { tenantId, id }, { publishedAt: now });
    await tx.update(
      AssistantEntity,
      { tenantId, id: assistantId },
      { publishedVersionId: id, updatedAt: now },
    );
    return this.getVersion(tx, tenantId, assistantId, id);
  }

  private async withVersions(
    tx: EntityManager,
    tenantId: TenantId,
    rows: readonly AssistantEntity[],
  ): Promise<AssistantWithVersion[]> {
    const ids = rows.map(({ publishedVersionId }) => publishedVersionId).filter((id) => id !== null);
    const versions = ids.length > 0 ? await tx.findBy(AssistantVersionEntity, { tenantId, id: In(ids) }) : [];
    const byId = new Map(versions.map((version) => [version.id, toVersion(version)]));
    return rows.map((row) => ({
      assistant: toAssistant(row),
      version: byId.get(row.publishedVersionId ?? '') ?? null,
    }));
  }
}

const findVersion = (tenantId: TenantId, id: AssistantVersionId): Statement<PublicVersion | null> => ({
  name: 'assistant-version-find',
  text: `select v.*, a.slug, a.name as assistant_name, a.description, a.avatar, a.updated_at as assistant_updated_at
         from assistant_versions v join assistants a on a.id = v.assistant_id and a.tenant_id = v.tenant_id
         where v.tenant_id = $1 and v.id = $2`,
  values: [tenantId, id],
  map: ([row]) =>
    row
      ? {
          id: row.id as AssistantVersionId,
          tenantId: row.tenant_id as TenantId,
          assistantId: row.assistant_id as AssistantId,
          number: row.number as number,
          prompt: row.prompt as string,
          modelServiceId: row.model_service_id as ModelServiceId,
          parameters: row.parameters as Record<string, unknown>,
          greeting: row.greeting as string,
          suggestedQuestions: row.suggested_questions as string[],
          contextPolicy: row.context_policy as Record<string, unknown>,
          tools: row.tools as unknown[],
          publishedAt: row.published_at as Date | null,
          createdAt: row.created_at as Date,
          assistant: {
            slug: row.slug as string,
            name: row.assistant_name as string,
            description: row.description as string,
            avatar: row.avatar as string,
            updatedAt: row.assistant_updated_at as Date,
          },
        }
      : null,
});

const findContact = (
  tenantId: TenantId,
  column: 'slug' | 'id',
  value: string,
): Statement<Contact | null> => ({
  name: `assistant-contact-${column}`,
  text: `select id, slug, published_version_id from assistants where tenant_id = $1 and ${column} = $2`,
  values: [tenantId, value],
  map: ([row]) =>
    row
      ? {
          assistantId: row.id as AssistantId,
          slug: row.slug as string,
          versionId: row.published_version_id as AssistantVersionId | null,
        }
      : null,
});

const among = (tenantId: TenantId, ids: readonly AssistantId[]): Statement<ReadonlySet<string>> => ({
  name: 'assistant-among',
  text: `select id from assistants where tenant_id = $1 and id = any($2::bigint[])`,
  values: [tenantId, idArray(ids)],
  map: (rows) => new Set(rows.map((row) => row.id as string)),
});

const listPublished = (tenantId: TenantId): Statement<PublishedAssistant[]> => ({
  name: 'assistant-list-published',
  text: `select id, slug, name, created_at from assistants
         where tenant_id = $1 and published_version_id is not null order by slug`,
  values: [tenantId],
  map: (rows) =>
    rows.map((row) => ({
      id: row.id as AssistantId,
      slug: row.slug as string,
      name: row.name as string,
      createdAt: row.created_at as Date,
    })),
});

function slugTaken(error: unknown): never {
  if ((error as { driverError?: { code?: string } }).driverError?.code !== '23505') throw error;
  throw new AppError('CONFLICT', {
    message: 'slug: is already taken in this tenant',
    errors: [{ field: 'slug', message: 'is already taken in this tenant' }],
  });
}

function toAssistant(row: AssistantEntity): Assistant {
  return {
    ...row,
    id: row.id as AssistantId,
    tenantId: row.tenantId as TenantId,
    publishedVersionId: row.publishedVersionId as AssistantVersionId | null,
  };
}

function toVersion(row: AssistantVersionEntity): AssistantVersion {
  return {
    ...row,
    id: row.id as AssistantVersionId,
    tenantId: row.tenantId as TenantId,
    assistantId: row.assistantId as AssistantId,
    modelServiceId: row.modelServiceId as ModelServiceId,
    parameters: row.parameters as Record<string, unknown>,
    contextPolicy: row.contextPolicy as Record<string, unknown>,
  };
}
