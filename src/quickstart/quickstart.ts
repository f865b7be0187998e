import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Injectable } from '@nestjs/common';
import { AssistantsRepository } from '../assistants';
import type { ApiKeyId, AssistantVersionId, ModelServiceId, TenantId } from '../common';
import { Config } from '../config';
import { Database, platformScope } from '../database';
import { ModelProvidersRepository, ModelServicesRepository } from '../model-services';
import { ApiKeysRepository, appKeyOf, DemoTenant, formatApiKey, TenantsRepository } from '../tenancy';

/** What the quickstart file holds, and the console shows. */
export interface QuickstartFile {
  readonly url: string;
  readonly tenantId: TenantId;
  readonly apiKey: string;
  readonly rootKey: string;
  readonly appKey: string;
  readonly appSecret: string;
  readonly agentId: string;
  readonly assistantId: string;
  readonly assistantVersionId: AssistantVersionId;
  readonly modelServiceId: ModelServiceId;
}

const AGENT = 'main';
const KEY_SCOPES = ['admin', 'dialogue', 'im', 'models', 'usage'] as const;

/** A demo tenant with a key, an assistant `main` and a text model service: made once, kept in `<data dir>/quickstart.json`. */
@Injectable()
export class Quickstart {
  constructor(
    private readonly config: Config,
    private readonly database: Database,
    private readonly tenants: TenantsRepository,
    private readonly keys: ApiKeysRepository,
    private readonly providers: ModelProvidersRepository,
    private readonly services: ModelServicesRepository,
    private readonly assistants: AssistantsRepository,
    private readonly demo: DemoTenant,
  ) {}

  get file(): string {
    return join(this.config.dataDir, 'quickstart.json');
  }

  /** What was made by an earlier start if it is still there, else anew. `main` talks to whatever the environment names now. */
  async prepare(url: string, rootKey: string): Promise<QuickstartFile> {
    const earlier = await this.earlier();
    const demo = earlier && (await this.stillThere(earlier)) ? earlier : await this.create();
    await this.pointAtProvider(demo.tenantId, demo.modelServiceId);
    const file: QuickstartFile = { ...demo, url, rootKey };
    await writeFile(this.file, `${JSON.stringify(file, null, 2)}\n`, { mode: 0o600 });
    this.demo.open(file.apiKey);
    return file;
  }

  private async earlier(): Promise<QuickstartFile | null> {
    try {
      return JSON.parse(await readFile(this.file, 'utf8')) as QuickstartFile;
    } catch {
      return null; // none yet, or one that was cut off: it is written again
    }
  }

  /** The data directory may have been kept while DATABASE_URL changed. */
  private async stillThere({
    apiKey,
    tenantId,
    assistantVersionId,
    modelServiceId,
  }: QuickstartFile): Promise<boolean> {
    const keyId = apiKey.split('_')[1] as ApiKeyId | undefined;
    if (!keyId || !/^\d{1,19}$/.test(keyId) || !/^\d{1,19}$/.test(tenantId)) return false;
    const key = await this.keys.find(keyId);
    if (!key || key.revoked || key.tenantId !== tenantId) return false;
    const version = await this.assistants.findVersion(tenantId, assistantVersionId);
    return version !== null && (await this.services.resolve(tenantId, modelServiceId)) !== null;
  }

  private create(): Promise<Omit<QuickstartFile, 'url' | 'rootKey'>> {
    return this.database.transaction(platformScope(), async (tx) => {
      const { id: tenantId } = await this.tenants.create(tx, { name: 'Demo' });
      await tx.query(`select set_config('app.tenants', $1, true)`, [tenantId]);
      const { key, secret } = await this.keys.create(tx, tenantId, {
        name: 'quickstart',
        scopes: KEY_SCOPES,
      });
      const provider = await this.providers.create(tx, tenantId, { name: 'Demo provider', kind: 'builtin' });
      const service = await this.services.create(tx, tenantId, {
        name: 'Demo model',
        model: 'demo',
        providerId: provider.id,
      });
      const assistant = await this.assistants.create(tx, tenantId, { slug: AGENT, name: 'Main' });
      const version = await this.assistants.createVersion(tx, tenantId, assistant.id, {
        prompt: 'You are a helpful assistant.',
        modelServiceId: service.id,
      });
      await this.assistants.publish(tx, tenantId, assistant.id, version.id);
      return {
        tenantId,
        apiKey: formatApiKey({ id: key.id, secret }),
        appKey: appKeyOf(key.id),
        appSecret: secret,
        agentId: AGENT,
        assistantId: assistant.id,
        assistantVersionId: version.id,
        modelServiceId: service.id,
      };
    });
  }

  private async pointAtProvider(tenantId: TenantId, serviceId: ModelServiceId): Promise<void> {
    const { OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_MODEL } = this.config.env;
    const configured = OPENAI_API_KEY !== undefined || OPENAI_BASE_URL !== undefined;
    await this.database.transaction(platformScope(tenantId), async (tx) => {
      const { providerId } = await this.services.get(tx, tenantId, serviceId);
      await this.providers.update(
        tx,
        tenantId,
        providerId,
        configured
          ? {
              kind: 'openai-compatible',
              baseUrl: OPENAI_BASE_URL ?? 'https://api.openai.com/v1',
              credentials: OPENAI_API_KEY ? [{ apiKey: OPENAI_API_KEY, weight: 1 }] : [],
            }
          : { kind: 'builtin', baseUrl: null, credentials: [] },
      );
      const model = configured ? (OPENAI_MODEL ?? 'gpt-4o-mini') : 'demo';
      await this.services.update(tx, tenantId, serviceId, { model, name: configured ? model : 'Demo model' });
    });
  }
}

/** What a person who has just typed `npm start` wants to see. */
export function greeting(file: QuickstartFile, path: string, provider: string): string {
  return `
  Parley is ready at ${file.url}          API reference: ${file.url}/docs

    tenant              ${file.tenantId}
    API key             ${file.apiKey}
    assistant           ${file.agentId}, version ${file.assistantVersionId}
    model service       ${file.modelServiceId}, ${provider}
    all of it           ${path}

  Say something:

    curl -N ${file.url}/api/copywriting/dialogue/sse/send-message/${file.assistantVersionId} \\
      -H 'x-api-key: Bearer ${file.apiKey}' \\
      -H 'Content-Type: application/json' \\
      -d '{"speechUserDialogueMessage":{"content":"Hello, Parley"}}'
`;
}
