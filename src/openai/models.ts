import { Injectable } from '@nestjs/common';
import { AssistantsRepository, type PublicVersion } from '../assistants';
import { AppError, badInput, type Principal, type TenantId } from '../common';
import { ModelServicesRepository, SERVICE_TYPE, type ResolvedService } from '../model-services';

export const AGENT_PREFIX = 'agent:';

/** What a `model` stands for: a text service, or an assistant with the service its published version answers with. */
export interface ChatModel {
  readonly version: PublicVersion | null;
  readonly service: ResolvedService;
}

/** Finds what a client's `model` names (protocols/openai.md): a service's name or id, an agent's slug, `agent:<slug>`. */
@Injectable()
export class Models {
  constructor(
    private readonly services: ModelServicesRepository,
    private readonly assistants: AssistantsRepository,
  ) {}

  /** NOT_FOUND for what this tenant has not, BAD_INPUT for a service that writes no text. */
  async chat({ tenantId }: Principal, model: string): Promise<ChatModel> {
    if (!model.startsWith(AGENT_PREFIX)) {
      const service = await this.services.findUsable(tenantId, model);
      if (service && service.type !== SERVICE_TYPE.text) throw badInput('model', 'is not a text model');
      if (service) return { version: null, service };
    }
    const agent = await this.agent(tenantId, model);
    if (agent) return agent;
    throw noSuchModel(model);
  }

  private async agent(tenantId: TenantId, model: string): Promise<ChatModel | null> {
    const slug = model.startsWith(AGENT_PREFIX) ? model.slice(AGENT_PREFIX.length) : model;
    const contact = await this.assistants.findContact(tenantId, { slug });
    const version = contact?.versionId && (await this.assistants.findVersion(tenantId, contact.versionId));
    const service = version && (await this.services.resolve(tenantId, version.modelServiceId));
    return service ? { version, service } : null;
  }
}

export function noSuchModel(model: string): AppError {
  return new AppError('NOT_FOUND', {
    message: `The model "${model}" does not exist or this key may not use it.`,
    errors: [{ field: 'model', message: 'does not exist' }],
  });
}
