import type { TestTenant } from '../support/app';
import {
  HEADER_EDGES,
  mixture,
  mutations,
  NO_BODIES,
  PATH_EDGES,
  QUERY_EDGES,
  validOf,
  type Schema,
} from './edges';

export interface Parameter {
  readonly in: 'path' | 'query' | 'header';
  readonly name: string;
}
interface Operation {
  readonly parameters?: readonly Parameter[];
  readonly requestBody?: { readonly content: Readonly<Record<string, { readonly schema?: Schema }>> };
}
export interface OpenApi {
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly components: { readonly schemas: Readonly<Record<string, Schema>> };
}

/** One request to send, and what it is, for whoever reads of its failure. */
export interface Case {
  readonly label: string;
  readonly method: string;
  readonly path: string;
  readonly body?: string | undefined;
  readonly headers: Readonly<Record<string, string>>;
}

/** The requests of one operation: those as it wants them, and those at every edge. */
export interface Cases {
  readonly operation: string;
  readonly valid: Case;
  readonly edges: readonly Case[];
}

/** What stands for a part of a path: a thing of acme's. */
export type Things = Readonly<Record<string, string>>;

/** A WAV file of one sample. */
const SOUND = Buffer.from(
  '524946462600000057415645666d74201000000001000100401f0000803e0000020010006461746102000000' + '0000',
  'hex',
).toString('base64');

/** Parameters without which there is no answer. */
const NEEDED: Readonly<Record<string, string>> = { '/api/v1/im/conversations': 'userId=ann' };

/** Paths that are the same handler under another prefix. */
const TWINS = /^\/(copywriting|api\/v1\/(chat\/completions|embeddings|images|audio|models))/;

/** What a schema can't tell: fields that must name things, or fit each other. Values over those of the schema. */
function givenOf(tenant: TestTenant, things: Things): Record<string, Record<string, unknown>> {
  const modelServiceId = tenant.serviceId;
  // Nothing listens there, and nothing leaves this machine.
  const nowhere = 'http://127.0.0.1:9';
  const [appKey, appSecret] = tenant.apiKey.split(/(?<=^pk_\d+)_/);
  const user = { userId: 'ann' };
  const tool = {
    type: 'openapi',
    name: 'shop',
    baseUrl: `${nowhere}/v1`,
    spec: {
      openapi: '3.1.0',
      info: { title: 'x', version: '1' },
      paths: { '/x': { get: { operationId: 'x' } } },
    },
  };
  const version = {
    modelServiceId,
    contextPolicy: {},
    tools: [tool],
    suggestedQuestions: ['x'],
    parameters: {},
  };
  const app = {
    modelServiceId,
    type: 0,
    promptTemplate: 'Say {{topic}}',
    variables: [{ name: 'topic', type: 'text' }],
  };
  const provider = {
    kind: 'openai-compatible',
    preset: null,
    baseUrl: `${nowhere}/v1`,
    headers: {},
    quirks: {},
    maxConcurrency: null,
    credentials: [{ apiKey: 'sk-x', weight: 1 }],
  };
  const service = { providerId: tenant.providerId, model: 'echo', parameters: {}, fallbackIds: [], type: 0 };
  const key = { scopes: ['im'], expiresAt: null, allowedAddresses: [], limits: {} };
  const webhook = { url: `${nowhere}/hook`, events: ['message.created'], enabled: true };
  const group = { members: ['ann'], owner: 'ann', maxMembers: null, attributes: { a: 1 } };
  const agent = {
    modelServiceId,
    parameters: {},
    description: 'x',
    avatar: 'x',
    prompt: 'x',
    greeting: 'x',
    suggestedQuestions: [],
  };
  const settings = {
    allowedOrigins: ['https://app.example'],
    limits: {},
    retentionDays: null,
    status: 'active',
  };
  return {
    SendMessage: {
      speechUserDialogueMessage: { content: 'Hello' },
      modelServiceId,
      name: 'x',
      id: undefined,
    },
    Generate: { params: { topic: 'x' }, modelServiceId },
    SpokenAudio: { url: undefined, base64: SOUND, format: {} },
    AppTokenRequest: { ...user, appKey, appSecret, client: 'pc', groupId: ['team'] },
    TokenRequest: { ...user, client: 'pc', groupId: ['team'] },
    SendMessageRequest: {
      type: 'single',
      source: 'ann',
      target: 'bob',
      msg: { msgId: undefined, content: 'x' },
      extra: { a: 1 },
    },
    BroadcastRequest: { source: 'ann', users: ['bob', 'cid'], msg: { content: 'x' }, everybody: undefined },
    CreateGroupRequest: { ...group, groupId: things.newGroup },
    UpdateGroupRequest: { maxMembers: null, attributes: { a: 1 } },
    AddMembersRequest: { users: ['cid'], role: 'member' },
    UpdateMemberRequest: { role: 'member', mutedSeconds: 1 },
    CreateWebhookRequest: webhook,
    UpdateWebhookRequest: { ...webhook, enabled: false },
    ChannelTokenRequest: { ...user, expiresIn: 900 },
    CreateAgentRequest: { ...agent, id: things.newSlug, name: 'x' },
    UpdateAgentRequest: { ...agent, id: undefined },
    ClearSessionRequest: { agentId: 'main', sessionKey: 'x' },
    CreateEmbeddings: { model: 'embedder', input: 'x' },
    CreateImages: { model: 'painter', prompt: 'x', n: 1, size: '64x64', response_format: 'b64_json' },
    CreateTenant: settings,
    UpdateTenant: settings,
    CreateApiKey: key,
    UpdateApiKey: key,
    CreateProvider: provider,
    UpdateProvider: provider,
    CreateModelService: service,
    UpdateModelService: service,
    CreateModelPrice: { inputPrice: 1, outputPrice: 1, effectiveFrom: '2099-01-01T00:00:00.000Z' },
    CreateAssistant: { slug: `${things.newSlug}-assistant` },
    UpdateAssistant: { slug: undefined },
    CreateAssistantVersion: version,
    CreateGenerationApp: app,
    UpdateGenerationApp: app,
    'chat/completions': {
      model: 'agent:main',
      stream: false,
      sessionId: undefined,
      stream_options: undefined,
      temperature: 1,
      stop: ['x'],
      tools: undefined,
      tool_choice: undefined,
      response_format: { type: 'text' },
      messages: [{ role: 'user', content: [{ type: 'text', text: 'Hello' }] }],
    },
  };
}

/** Every request of one operation. `random` decides of the mixtures alone. */
export function casesOf(
  document: OpenApi,
  method: string,
  path: string,
  {
    tenant,
    things,
    rootKey,
    random,
    mixtures,
  }: {
    readonly tenant: TestTenant;
    readonly things: Things;
    readonly rootKey: string;
    readonly random: () => number;
    readonly mixtures: number;
  },
): Cases | null {
  if (TWINS.test(path)) return null;
  const { parameters = [], requestBody } = document.paths[path]![method]!;
  const resolve = (schema: Schema): Schema =>
    schema.$ref === undefined ? schema : document.components.schemas[schema.$ref.split('/').at(-1)!]!;
  const placed = (name: string): string => things[`${path} ${name}`] ?? things[name] ?? 'x';
  const filled = (over: Record<string, string> = {}): string =>
    path.replace(/\{(\w+)\}/g, (_, name: string) => over[name] ?? placed(name));
  const platform = /^\/(metrics|api\/admin\/tenants)/.test(path);
  const headers = {
    'x-api-key': platform ? rootKey : tenant.apiKey,
    ...(platform ? {} : { 'user-id': 'ann' }),
  };
  const schema = requestBody?.content['application/json']?.schema;
  const name = schema?.$ref?.split('/').at(-1) ?? 'chat/completions';
  const valid = schema && {
    ...(validOf(schema, resolve) as object),
    ...givenOf(tenant, things)[name],
  };
  const made = (label: string, over: Partial<Case> = {}): Case => ({
    label: `${method.toUpperCase()} ${path} ${label}`,
    method: method.toUpperCase(),
    path: NEEDED[path] ? `${filled()}?${NEEDED[path]}` : filled(),
    headers,
    ...(valid && { body: JSON.stringify(valid) }),
    ...over,
  });
  const edges: Case[] = [];
  for (const { in: where, name: parameter } of parameters) {
    if (where === 'path')
      for (const edge of PATH_EDGES)
        edges.push(made(`${parameter} = ${edge.slice(0, 40)}`, { path: filled({ [parameter]: edge }) }));
    if (where === 'query')
      for (const edge of QUERY_EDGES)
        edges.push(made(`?${parameter}${edge.slice(0, 40)}`, { path: `${filled()}?${parameter}${edge}` }));
    if (where === 'header')
      for (const edge of HEADER_EDGES)
        edges.push(
          made(`${parameter}: ${JSON.stringify(edge.slice(0, 20))}`, {
            headers: { ...headers, [parameter.toLowerCase()]: edge },
          }),
        );
  }
  if (schema && valid) {
    for (const { label, body } of mutations(schema, valid, resolve))
      edges.push(made(label, { body: JSON.stringify(body) }));
    for (let count = 0; count < mixtures; count += 1) {
      const { label, body } = mixture(schema, valid, resolve, random);
      edges.push(made(label, { body: JSON.stringify(body) }));
    }
    for (const [label, body] of NO_BODIES) edges.push(made(`body: ${label}`, { body }));
    // Neither is compressed: what the header says is not so.
    edges.push(made('said to be gzip', { headers: { ...headers, 'content-encoding': 'gzip' } }));
    edges.push(made('said to be of two codings', { headers: { ...headers, 'content-encoding': 'gzip, x' } }));
    edges.push(made('in chunks', { headers: { ...headers, 'transfer-encoding': 'chunked' } }));
    edges.push(made('no body', { body: undefined }));
    edges.push(made('another type', { headers: { ...headers, 'content-type': 'text/plain' } }));
    edges.push(
      made('a form', { headers: { ...headers, 'content-type': 'application/x-www-form-urlencoded' } }),
    );
    edges.push(
      made('half a form', {
        headers: { ...headers, 'content-type': 'multipart/form-data; boundary=x' },
        body: '--x\r\n',
      }),
    );
  }
  return { operation: `${method.toUpperCase()} ${path}`, valid: made('as it should be'), edges };
}
