import { Injectable } from '@nestjs/common';
import type { EntityManager } from 'typeorm';
import {
  AppError,
  idAtTime,
  type ApiKeyId,
  type GenerationAppId,
  type GenerationRecordId,
  type ModelServiceId,
  type TenantId,
} from '../common';
import { Database, platformScope, tenantScope, type Row, type Statement } from '../database';
import { GENERATION_TYPE, type GenerationType } from './generation-apps.repository';
import { GenerationRecordEntity } from './generation-record.entity';
import type { PromptValues } from './prompt-template';

export type GenerationEnd = 'finished' | 'stopped' | 'interrupted' | 'failed';

/** An image that a model made; its bytes are a blob of that hash. */
export interface StoredImage {
  readonly sha256: string;
  readonly mimeType: string;
  readonly width: number;
  readonly height: number;
}

/** What an app was asked for and what became of it. */
export interface GenerationRecord {
  readonly id: GenerationRecordId;
  readonly tenantId: TenantId;
  readonly appId: GenerationAppId;
  readonly type: GenerationType;
  readonly userId: string;
  readonly keyId: ApiKeyId | null;
  readonly createdBy: string;
  readonly modelServiceId: ModelServiceId;
  readonly params: PromptValues;
  readonly prompt: string;
  readonly parameters: Readonly<Record<string, unknown>>;
  readonly status: 'running' | GenerationEnd;
  readonly result: string;
  readonly images: readonly StoredImage[];
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly totalTokens: number;
  readonly credits: number;
  readonly error: { readonly code: number; readonly message: string } | null;
  readonly createdAt: Date;
}

export interface Idempotency {
  readonly key: string;
  readonly requestHash: string;
}

export type ListedGeneration = Omit<GenerationRecord, 'prompt' | 'parameters'>;

export type GenerationDraft = Omit<
  GenerationRecord,
  | 'status'
  | 'result'
  | 'images'
  | 'promptTokens'
  | 'completionTokens'
  | 'totalTokens'
  | 'credits'
  | 'error'
  | 'createdAt'
>;

export interface GenerationResult {
  readonly status: GenerationEnd;
  readonly result: string;
  readonly images: readonly StoredImage[];
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly totalTokens: number;
  readonly credits: number;
  readonly error: GenerationRecord['error'];
}

export interface RecordListQuery {
  readonly appId?: GenerationAppId;
  readonly userId?: string;
  readonly orderBy: 'createdAt' | 'totalTokens';
  readonly descending: boolean;
  readonly offset: number;
  readonly limit: number;
}

/** One that is to be erased. */
export interface ErasableGeneration {
  readonly id: GenerationRecordId;
  readonly running: boolean;
  readonly keyId: ApiKeyId | null;
  readonly modelServiceId: ModelServiceId;
}

/** What this process answers for. */
export interface OwnGenerations {
  readonly incarnation: bigint;
  readonly running: readonly GenerationRecordId[];
}

export interface ReleasedImage {
  readonly tenantId: TenantId;
  readonly sha256: string;
}

/** A generation whose process is gone. */
export interface OrphanedGeneration {
  readonly tenantId: TenantId;
  readonly recordId: GenerationRecordId;
}

@Injectable()
export class GenerationRecordsRepository {
  constructor(private readonly database: Database) {}

  /**
   * Stores the draft as `running`. With a key that was used within the last 24 hours nothing is stored, and the first
   * request's record is returned. IDEMPOTENCY_MISMATCH when that was another request.
   */
  async create(
    tx: EntityManager,
    draft: GenerationDraft,
    idempotency: Idempotency | null,
  ): Promise<{ readonly id: GenerationRecordId; readonly isNew: boolean }> {
    const { tenantId } = draft;
    const key = idempotency?.key ?? null;
    if (key !== null) {
      await tx.query(
        `update generation_records set idempotency_key = null
         where tenant_id = $1 and idempotency_key = $2 and created_at < now() - interval '24 hours'`,
        [tenantId, key],
      );
    }
    // A simultaneous second request waits here for the first one's commit.
    const inserted = await tx
      .createQueryBuilder()
      .insert()
      .into(GenerationRecordEntity)
      .values({ ...draft, idempotencyKey: key, requestHash: idempotency?.requestHash ?? null })
      .orIgnore()
      .returning('id')
      .updateEntity(false)
      .execute();
    if ((inserted.raw as unknown[]).length > 0) return { id: draft.id, isNew: true };
    const first = await tx.findOneByOrFail(GenerationRecordEntity, { tenantId, idempotencyKey: key! });
    if (first.requestHash !== idempotency?.requestHash) throw new AppError('IDEMPOTENCY_MISMATCH');
    return { id: first.id as GenerationRecordId, isNew: false };
  }

  /** Of a key that was used within the last 24 hours; IDEMPOTENCY_MISMATCH when that was another request. */
  async findByKey(
    tenantId: TenantId,
    { key, requestHash }: Idempotency,
  ): Promise<{ readonly id: GenerationRecordId; readonly type: GenerationType } | null> {
    const [row] = await this.database.one(tenantScope(tenantId), generationByKey(tenantId, key));
    if (!row) return null;
    if (row.request_hash !== requestHash) throw new AppError('IDEMPOTENCY_MISMATCH');
    return { id: row.id as GenerationRecordId, type: row.type as GenerationType };
  }

  /** From now on this process answers for the record. */
  async claim(tx: EntityManager, { id, tenantId }: GenerationDraft, incarnation: bigint): Promise<void> {
    await tx.query(
      'insert into generations_in_progress (record_id, tenant_id, incarnation) values ($1, $2, $3)',
      [id, tenantId, incarnation.toString()],
    );
  }

  /** Those of this transaction among them. */
  countRunningImages(tx: EntityManager, tenantId: TenantId): Promise<number> {
    return tx.countBy(GenerationRecordEntity, { tenantId, type: GENERATION_TYPE.image, status: 'running' });
  }

  find(tenantId: TenantId, id: GenerationRecordId): Promise<GenerationRecord | null> {
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const row = await tx.findOneBy(GenerationRecordEntity, { tenantId, id });
      return row && toRecord(row);
    });
  }

  /** A page of a tenant's records, and how many there are; without what was asked of the model, which is long and shown nowhere. */
  list(tenantId: TenantId, query: RecordListQuery): Promise<{ total: number; rows: ListedGeneration[] }> {
    const { appId, userId, orderBy, descending } = query;
    const direction = descending ? 'desc' : 'asc';
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const [rows, total] = await tx.findAndCount(GenerationRecordEntity, {
        where: { tenantId, ...(appId && { appId }), ...(userId !== undefined && { userId }) },
        order: { [orderBy]: direction, id: direction },
        select: LISTED,
        skip: query.offset,
        take: query.limit,
      });
      return { total, rows: rows.map(toListed) };
    });
  }

  /** From now on the image is kept for the record. False: the record is gone, or has ended. */
  async claimImage(tenantId: TenantId, id: GenerationRecordId, sha256: string): Promise<boolean> {
    return this.database.one(tenantScope(tenantId), claimImage(tenantId, id, sha256));
  }

  async isImageShown(tx: EntityManager, tenantId: TenantId, sha256: string): Promise<boolean> {
    const rows = await tx.query<Row[]>(
      'select 1 from generation_images where tenant_id = $1 and sha256 = $2 limit 1',
      [tenantId, sha256],
    );
    return rows.length > 0;
  }

  /** Images that a record has let go of: nobody may show them any more. Of every tenant. */
  releasedImages(limit: number): Promise<ReleasedImage[]> {
    return this.database.one(platformScope(), releasedImages(limit));
  }

  async forgetRelease(tx: EntityManager, { tenantId, sha256 }: ReleasedImage): Promise<void> {
    await tx.query('delete from blob_releases where tenant_id = $1 and sha256 = $2', [tenantId, sha256]);
  }

  /** Some that are of a user, or older than that; the oldest first. */
  async erasable(
    tx: EntityManager,
    tenantId: TenantId,
    which: { readonly userId: string } | { readonly before: Date },
    limit: number,
  ): Promise<ErasableGeneration[]> {
    const of =
      'userId' in which
        ? 'user_id = $2 order by created_at desc, id desc'
        : 'created_at < $2 order by created_at, id';
    const rows = await tx.query<Row[]>(
      `select id, status, key_id, model_service_id from generation_records where tenant_id = $1 and ${of} limit $3 for update`,
      [tenantId, 'userId' in which ? which.userId : which.before, limit],
    );
    return rows.map((row) => ({
      id: row.id as GenerationRecordId,
      running: row.status === 'running',
      keyId: row.key_id as ApiKeyId | null,
      modelServiceId: row.model_service_id as ModelServiceId,
    }));
  }

  /** With what says that they show their images. */
  async erase(tx: EntityManager, tenantId: TenantId, ids: readonly GenerationRecordId[]): Promise<void> {
    await tx.query('delete from generation_records where tenant_id = $1 and id = any($2::bigint[])', [
      tenantId,
      ids,
    ]);
  }

  /** Generations that a dead process wrote, or this one without knowing it any more; of every tenant. */
  orphaned(own: OwnGenerations, leaseMs: number, limit: number): Promise<OrphanedGeneration[]> {
    return this.database.one(platformScope(), orphanedGenerations(own, leaseMs, limit));
  }
}

/**
 * Ends a record once: true for whoever did. One that was taken for interrupted and finishes after all is overwritten.
 */
export const endGeneration = (
  tenantId: TenantId,
  id: GenerationRecordId,
  end: GenerationResult,
): Statement<boolean> => ({
  name: 'generation-end',
  text: `with gone as (delete from generations_in_progress where record_id = $2 and tenant_id = $1)
    update generation_records set status = $3, result = $4, images = $5, prompt_tokens = $6, completion_tokens = $7,
      total_tokens = $8, credits = $9, error_code = $10, error_message = $11, ended_at = now()
    where tenant_id = $1 and id = $2
      and (status = 'running' or status = 'interrupted' and $3 <> 'interrupted')
    returning id`,
  values: [
    tenantId,
    id,
    end.status,
    end.result,
    JSON.stringify(end.images),
    end.promptTokens,
    end.completionTokens,
    end.totalTokens,
    end.credits,
    end.error?.code ?? null,
    end.error?.message ?? null,
  ],
  map: (rows) => rows.length > 0,
});

const generationByKey = (tenantId: TenantId, key: string): Statement<Row[]> => ({
  name: 'generation-by-key',
  text: `select id, type, request_hash from generation_records
         where tenant_id = $1 and idempotency_key = $2 and created_at >= now() - interval '24 hours'`,
  values: [tenantId, key],
  map: (rows) => rows,
});

/** Let go of by the record: what it does not show after all. */
export const dropImagesBut = (
  tenantId: TenantId,
  id: GenerationRecordId,
  shown: readonly StoredImage[],
): Statement<void> => ({
  name: 'generation-images-drop',
  text: 'delete from generation_images where tenant_id = $1 and record_id = $2 and sha256 <> all($3::text[])',
  values: [tenantId, id, shown.map(({ sha256 }) => sha256)],
  map: () => undefined,
});

const claimImage = (tenantId: TenantId, id: GenerationRecordId, sha256: string): Statement<boolean> => ({
  name: 'generation-image-claim',
  text: `with record as (
      select id from generation_records where tenant_id = $1 and id = $2 and status = 'running' for share)
    insert into generation_images (tenant_id, sha256, record_id) select $1, $3, id from record
    on conflict (tenant_id, sha256, record_id) do update set sha256 = excluded.sha256 returning 1`,
  values: [tenantId, id, sha256],
  map: (rows) => rows.length > 0,
});

const releasedImages = (limit: number): Statement<ReleasedImage[]> => ({
  name: 'generation-images-released',
  text: 'select tenant_id, sha256 from blob_releases limit $1',
  values: [limit],
  map: (rows) => rows.map((row) => ({ tenantId: row.tenant_id as TenantId, sha256: row.sha256 as string })),
});

/** What a process has claimed longer ago than that and does not know of, it has lost. */
const LOST_AFTER_MS = 60_000;

const orphanedGenerations = (
  { incarnation, running }: OwnGenerations,
  leaseMs: number,
  limit: number,
): Statement<OrphanedGeneration[]> => ({
  name: 'generation-orphans',
  text: `select g.tenant_id, g.record_id from generations_in_progress g
    where not exists (select 1 from nodes n where n.incarnation = g.incarnation
        and n.heartbeat_at > now() - $1 * interval '1 millisecond')
      or g.incarnation = $3 and g.record_id <> all($4::bigint[]) and g.record_id < $5
    order by g.record_id limit $2`,
  values: [leaseMs, limit, incarnation.toString(), running, idAtTime(Date.now() - LOST_AFTER_MS)],
  map: (rows) =>
    rows.map((row) => ({
      tenantId: row.tenant_id as TenantId,
      recordId: row.record_id as GenerationRecordId,
    })),
});

/** Every column that a list shows. */
const LISTED = Object.fromEntries(
  (
    [
      'id',
      'tenantId',
      'appId',
      'type',
      'userId',
      'keyId',
      'createdBy',
      'modelServiceId',
      'params',
      'status',
      'result',
      'images',
      'promptTokens',
      'completionTokens',
      'totalTokens',
      'credits',
      'errorCode',
      'errorMessage',
      'createdAt',
    ] as const
  ).map((name) => [name, true]),
);

function toRecord(row: GenerationRecordEntity): GenerationRecord {
  return { ...toListed(row), prompt: row.prompt, parameters: row.parameters as Record<string, unknown> };
}

function toListed(row: GenerationRecordEntity): ListedGeneration {
  const { errorCode, errorMessage, prompt: _prompt, parameters: _parameters, ...rest } = row;
  return {
    ...rest,
    id: row.id as GenerationRecordId,
    tenantId: row.tenantId as TenantId,
    appId: row.appId as GenerationAppId,
    type: row.type as GenerationType,
    keyId: row.keyId as ApiKeyId | null,
    modelServiceId: row.modelServiceId as ModelServiceId,
    params: row.params as PromptValues,
    status: row.status as GenerationRecord['status'],
    images: row.images as StoredImage[],
    credits: Number(row.credits),
    error: errorCode === null ? null : { code: errorCode, message: errorMessage ?? '' },
  };
}
