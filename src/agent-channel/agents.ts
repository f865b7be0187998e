import { isDeepStrictEqual } from 'node:util';
import { Injectable } from '@nestjs/common';
import type { EntityManager } from 'typeorm';
import {
  AssistantsRepository,
  type AssistantInput,
  type AssistantVersion,
  type AssistantVersionInput,
  type AssistantWithVersion,
} from '../assistants';
import { AppError, badInput, type AssistantId, type ModelServiceId, type TenantId } from '../common';
import { Database, tenantScope } from '../database';
import { ModelServicesRepository, SERVICE_TYPE } from '../model-services';
import { AuditLogRepository, type AuditRecord } from '../tenancy';
import { ToolSources } from '../tools';
import type { CreateAgentRequest, UpdateAgentRequest } from './requests';

/** Who changes an agent, for the audit log. */
export type Author = Pick<AuditRecord, 'principal' | 'address'> & { readonly tenantId: TenantId };

/** The assistant's own part of an agent. */
type Face = Pick<AssistantInput, 'name' | 'description' | 'avatar'>;
/** What makes another version of it. */
type Settings = Partial<
  Pick<AssistantVersionInput, 'prompt' | 'modelServiceId' | 'parameters' | 'greeting' | 'suggestedQuestions'>
>;

/** An agent is an assistant with what its slug answers with; a change of it is one transaction, audit log included. */
@Injectable()
export class Agents {
  constructor(
    private readonly database: Database,
    private readonly assistants: AssistantsRepository,
    private readonly services: ModelServicesRepository,
    private readonly auditLog: AuditLogRepository,
    private readonly tools: ToolSources,
  ) {}

  /** By slug. */
  page(tenantId: TenantId, at: { offset: number; limit: number }) {
    return this.database.transaction(tenantScope(tenantId), (tx) => this.assistants.page(tx, tenantId, at));
  }

  /** NOT_FOUND. */
  get(tenantId: TenantId, slug: string): Promise<AssistantWithVersion> {
    return this.database.transaction(tenantScope(tenantId), (tx) => this.find(tx, tenantId, slug));
  }

  /** CONFLICT (the slug is taken), BAD_INPUT (modelServiceId). */
  async create(author: Author, input: CreateAgentRequest): Promise<AssistantWithVersion> {
    const { tenantId } = author;
    const { id: slug, name } = input;
    const { modelServiceId, ...settings } = settingsIn(input);
    const serviceId = modelServiceId ?? (await this.firstService(tenantId));
    await this.checkService(tenantId, serviceId);
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const after = await this.assistants
        .create(tx, tenantId, { ...faceIn(input), slug, name })
        .catch(slugTaken);
      await this.record(tx, author, 'create', 'assistant', { after });
      await this.publish(tx, author, after.id, { ...settings, modelServiceId: serviceId });
      return this.find(tx, tenantId, slug);
    });
  }

  /** Changes what is given; its dialogues go on under the version they began with. NOT_FOUND, BAD_INPUT (modelServiceId). */
  async change(author: Author, slug: string, input: UpdateAgentRequest): Promise<AssistantWithVersion> {
    const { tenantId } = author;
    const face = faceIn(input);
    const settings = settingsIn(input);
    const known = await this.get(tenantId, slug);
    if (settings.modelServiceId) await this.checkService(tenantId, settings.modelServiceId);
    const base: AssistantVersionInput | null =
      Object.keys(settings).length === 0 || known.version
        ? null
        : { modelServiceId: settings.modelServiceId ?? (await this.firstService(tenantId)) };
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const { assistant: before, version } = await this.find(tx, tenantId, slug, true);
      if (Object.keys(face).length > 0) {
        const after = await this.assistants.update(tx, tenantId, before.id, face);
        await this.record(tx, author, 'update', 'assistant', { before, after });
      }
      const current = version ? inputOf(version) : base;
      if (current && !isDeepStrictEqual({ ...current, ...settings }, version && current))
        await this.publish(tx, author, before.id, { ...current, ...settings });
      return this.find(tx, tenantId, slug);
    });
  }

  /** NOT_FOUND. Dialogues held with it stay. */
  delete(author: Author, slug: string): Promise<void> {
    const { tenantId } = author;
    return this.database.transaction(tenantScope(tenantId), async (tx) => {
      const { assistant } = await this.find(tx, tenantId, slug);
      const before = await this.assistants.delete(tx, tenantId, assistant.id);
      await this.record(tx, author, 'delete', 'assistant', { before });
    });
  }

  private async find(
    tx: EntityManager,
    tenantId: TenantId,
    slug: string,
    lock = false,
  ): Promise<AssistantWithVersion> {
    // Postgres refuses NUL even in what it is only asked for.
    const found = slug.includes('\0')
      ? null
      : await this.assistants.findWithVersion(tx, tenantId, slug, lock);
    if (!found) throw new AppError('NOT_FOUND', { message: `No agent ${slug}.` });
    return found;
  }

  private async publish(
    tx: EntityManager,
    author: Author,
    assistantId: AssistantId,
    input: AssistantVersionInput,
  ): Promise<void> {
    const { tenantId } = author;
    const made = await this.assistants.createVersion(tx, tenantId, assistantId, input);
    await this.record(tx, author, 'create', 'assistant-version', { after: this.shown(made) });
    const published = await this.assistants.publish(tx, tenantId, assistantId, made.id);
    await this.record(tx, author, 'publish', 'assistant-version', { after: this.shown(published) });
  }

  /** As the audit log may hold it. */
  private shown(version: AssistantVersion) {
    return { ...version, tools: this.tools.shown(version.tools, version.assistantId, 'brief') };
  }

  private record(
    tx: EntityManager,
    author: Author,
    action: AuditRecord['action'],
    resource: string,
    change: { before?: object & { id: string }; after?: object & { id: string } },
  ): Promise<void> {
    const resourceId = (change.after ?? change.before)!.id;
    return this.auditLog.record(tx, { ...author, action, resource, resourceId, ...change });
  }

  private async firstService(tenantId: TenantId): Promise<ModelServiceId> {
    const [first] = (
      await this.services.listUsable(tenantId, {
        type: SERVICE_TYPE.text,
        orderBy: 'order_num',
        descending: false,
        offset: 0,
        limit: 1,
      })
    ).rows;
    if (!first) throw badInput('modelServiceId', 'is needed: there is no text model service to fall back on');
    return first.id;
  }

  private async checkService(tenantId: TenantId, id: ModelServiceId): Promise<void> {
    const service = await this.services.resolve(tenantId, id);
    if (service?.type !== SERVICE_TYPE.text)
      throw badInput('modelServiceId', 'is not a text model service this tenant may use');
  }
}

const faceIn = ({ name, description, avatar }: UpdateAgentRequest): Face =>
  given({ name, description, avatar });

const settingsIn = ({
  prompt,
  modelServiceId,
  parameters,
  greeting,
  suggestedQuestions,
}: UpdateAgentRequest): Settings =>
  given({
    prompt,
    modelServiceId: modelServiceId as ModelServiceId | null | undefined,
    parameters,
    greeting,
    suggestedQuestions,
  });

/** Without what is absent or null. */
function given<T extends object>(fields: T): { [K in keyof T]?: NonNullable<T[K]> } {
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined && value !== null),
  ) as { [K in keyof T]?: NonNullable<T[K]> };
}

/** Another version that differs in nothing; tools stay as they are stored. */
function inputOf(version: AssistantVersion): AssistantVersionInput {
  const { prompt, modelServiceId, parameters, greeting, suggestedQuestions, contextPolicy, tools } = version;
  return { prompt, modelServiceId, parameters, greeting, suggestedQuestions, contextPolicy, tools };
}

/** On this wire the slug is called `id`. */
function slugTaken(error: unknown): never {
  if (!(error instanceof AppError) || error.code !== 'CONFLICT') throw error;
  const message = 'is already taken in this tenant';
  throw new AppError('CONFLICT', { message: `id: ${message}`, errors: [{ field: 'id', message }] });
}
