import { createHash } from 'node:crypto';
import { Injectable } from '@nestjs/common';
import type { EntityManager } from 'typeorm';
import {
  fillTemplate,
  GENERATION_TYPE,
  GenerationAppsRepository,
  GenerationRecordsRepository,
  valuesOf,
  type GenerationApp,
  type GenerationDraft,
  type GenerationType,
  type Idempotency,
} from '../assistants';
import {
  AppError,
  badInput,
  IdGenerator,
  type GenerationAppId,
  type GenerationRecordId,
  type ModelServiceId,
  type Principal,
} from '../common';
import { Database, NodeRegistry, tenantScope } from '../database';
import {
  estimateTokens,
  ModelServicesRepository,
  SERVICE_TYPE,
  type ResolvedService,
} from '../model-services';
import { estimateOf, overQuota, Quotas, reserveUsage, type Estimate, type Quota } from '../usage';
import { ImageCosts } from './image-costs';
import { ImageJobs } from './image-jobs';
import { streamOf, TextGenerations } from './text-generations';

export interface StartGeneration {
  readonly principal: Principal;
  readonly appId: GenerationAppId;
  readonly params: Readonly<Record<string, unknown>>;
  /** Null: the app's own. */
  readonly modelServiceId: ModelServiceId | null;
  /** Null: every request is one of its own. */
  readonly idempotencyKey: string | null;
}

export interface StartedGeneration {
  readonly id: GenerationRecordId;
  readonly type: GenerationType;
  /** False: an earlier request with the same key began it. */
  readonly isNew: boolean;
}

const SERVICE_OF: Readonly<Record<GenerationType, { readonly type: number; readonly kind: string }>> = {
  [GENERATION_TYPE.text]: { type: SERVICE_TYPE.text, kind: 'a text' },
  [GENERATION_TYPE.image]: { type: SERVICE_TYPE.image, kind: 'an image' },
};

const MAX_PARAMS_CHARS = 200_000;

/** Runs generation apps: from a form's values to a record that a model is at work on. */
@Injectable()
export class AppGenerations {
  constructor(
    private readonly database: Database,
    private readonly ids: IdGenerator,
    private readonly nodes: NodeRegistry,
    private readonly apps: GenerationAppsRepository,
    private readonly records: GenerationRecordsRepository,
    private readonly services: ModelServicesRepository,
    private readonly quotas: Quotas,
    private readonly texts: TextGenerations,
    private readonly images: ImageJobs,
    private readonly costs: ImageCosts,
  ) {}

  /**
   * Resolves when the record is stored and somebody answers for it: this process for a text, the queue for an image.
   * NOT_FOUND, BAD_INPUT naming `params.<name>` or `modelServiceId`, IDEMPOTENCY_MISMATCH, RATE_LIMITED,
   * QUOTA_EXCEEDED, OVERLOADED, SHUTTING_DOWN.
   */
  async start({ principal, ...request }: StartGeneration): Promise<StartedGeneration> {
    const { tenantId, userId, keyId, keyName } = principal;
    const idempotency =
      request.idempotencyKey === null
        ? null
        : { key: request.idempotencyKey, requestHash: hashOf(userId, request) };
    // First of all: whatever has become of the app since, a repetition gets what the first one got.
    const first = idempotency && (await this.records.findByKey(tenantId, idempotency));
    if (first) return { ...first, isNew: false };
    const app = await this.apps.find(tenantId, request.appId);
    if (!app) throw new AppError('NOT_FOUND');
    const params = valuesOf(app.variables, request.params);
    const prompt = fillTemplate(app.promptTemplate, params);
    if (prompt.trim() === '') throw badInput('params', 'make an empty prompt');
    // They are stored and listed with every record.
    if (JSON.stringify(params).length > MAX_PARAMS_CHARS || prompt.length > MAX_PARAMS_CHARS)
      throw badInput('params', `are or make more than ${MAX_PARAMS_CHARS} characters`);
    const service = await this.serviceFor(app, request.modelServiceId);
    const draft: GenerationDraft = {
      id: this.ids.next<GenerationRecordId>(),
      tenantId,
      appId: app.id,
      type: app.type,
      userId,
      keyId,
      createdBy: keyName,
      modelServiceId: service.id,
      params,
      prompt,
      parameters: app.parameters,
    };
    let giveBack = app.type === GENERATION_TYPE.text ? this.texts.admit(tenantId) : null;
    try {
      const { id, isNew } = await this.store(principal, draft, service, idempotency);
      if (isNew && giveBack) {
        this.texts.begin(draft, service, giveBack);
        giveBack = null;
      } else if (isNew) this.images.hint();
      return { id, type: app.type, isNew };
    } finally {
      giveBack?.();
    }
  }

  /** The record, who answers for it, and what it may cost, in one transaction: a crash leaves all or nothing. */
  private async store(
    principal: Principal,
    draft: GenerationDraft,
    service: ResolvedService,
    idempotency: Idempotency | null,
  ): Promise<{ id: GenerationRecordId; isNew: boolean }> {
    const isText = draft.type === GENERATION_TYPE.text;
    const quota = await this.quotas.of(principal);
    return this.database.transaction(tenantScope(draft.tenantId), async (tx) => {
      const created = await this.records.create(tx, draft, idempotency);
      if (!created.isNew) return created;
      if (isText) await this.records.claim(tx, draft, this.nodes.incarnation);
      else await this.images.enqueue(tx, { tenantId: draft.tenantId, recordId: draft.id });
      // Last: everybody of the tenant waits for its counts until this is committed.
      if (quota) await this.reserve(tx, quota, draft, service);
      return created;
    });
  }

  /** Settled with the record's ending, which is never left out: whoever dies, another ends it. */
  private async reserve(
    tx: EntityManager,
    quota: Quota,
    draft: GenerationDraft,
    service: ResolvedService,
  ): Promise<void> {
    const { text, values } = reserveUsage(quota, {
      id: streamOf(draft.id),
      ...this.costOf(draft, service),
    });
    await tx.query(text, [...values]).catch((error: unknown) => {
      throw overQuota(error) ?? error;
    });
  }

  private costOf({ type, prompt, parameters }: GenerationDraft, service: ResolvedService): Estimate {
    const options = { ...service.parameters, ...parameters };
    return type === GENERATION_TYPE.text
      ? estimateOf(estimateTokens(prompt), options, service)
      : this.costs.estimate(service, prompt, options);
  }

  private async serviceFor(
    { tenantId, type, modelServiceId }: GenerationApp,
    override: ModelServiceId | null,
  ): Promise<ResolvedService> {
    const wanted = SERVICE_OF[type];
    const service = await this.services.resolve(tenantId, override ?? modelServiceId);
    if (service?.type === wanted.type) return service;
    throw badInput(
      'modelServiceId',
      override
        ? `is not ${wanted.kind} model service this tenant may use`
        : "is needed: the app's own model service is not there any more",
    );
  }
}

/** Of what was sent, not of what the app made of it: that may be another app by then. */
function hashOf(
  userId: string,
  { appId, modelServiceId, params }: Pick<StartGeneration, 'appId' | 'modelServiceId' | 'params'>,
): string {
  const sorted = Object.entries(params).sort(([a], [b]) => (a < b ? -1 : 1));
  const same = [userId, appId, modelServiceId, sorted];
  return createHash('sha256').update(JSON.stringify(same)).digest('hex');
}
