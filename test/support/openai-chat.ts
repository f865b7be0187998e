import { createParser } from 'eventsource-parser';
import type { TestApp, TestTenant } from './app';
import type { Exchange, Script, Upstream } from './upstream';

/** A tool's call as a provider streams it. */
export interface ScriptedCall {
  readonly index?: number;
  readonly id?: string;
  readonly name: string;
  /** The arguments' JSON, bit by bit. */
  readonly args: readonly string[];
}

const delta = (delta: unknown, finishReason: string | null = null) => ({
  choices: [{ index: 0, delta, finish_reason: finishReason }],
});

/** Id and name with the first of the arguments, the rest of those one by one. */
export async function call(
  exchange: Exchange,
  { index = 0, id, name, args: [first = '', ...rest] }: ScriptedCall,
): Promise<void> {
  const begun = { index, id, type: 'function', function: { name, arguments: first } };
  await exchange.chunk(delta({ role: 'assistant', content: null, tool_calls: [begun] }));
  for (const more of rest) {
    await exchange.chunk(delta({ tool_calls: [{ index, function: { arguments: more } }] }));
  }
}

/** The end of an answer, for a reason of its own. */
export async function finish(exchange: Exchange, reason: string): Promise<void> {
  await exchange.chunk(delta({}, reason));
  await exchange.chunk({
    choices: [],
    usage: { prompt_tokens: 7, completion_tokens: 5, total_tokens: 12 },
  });
  await exchange.raw('data: [DONE]\n\n');
  exchange.response.end();
}

/** All that comes, once it has ended. */
export async function allOf<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

/** What an event stream brought, parsed; its last word `[DONE]` stays as it is. */
export function eventsOf(text: string): any[] {
  const events: unknown[] = [];
  const parser = createParser({
    onEvent: ({ data }) => events.push(data === '[DONE]' ? data : JSON.parse(data)),
    onError: (error) => {
      throw error;
    },
  });
  parser.feed(text);
  return events;
}

export interface Scripted {
  /** What a client asks for, and the name under which the provider knows it. */
  readonly model: string;
  readonly serviceId: string;
}

export interface ScriptedAgent extends Scripted {
  readonly slug: string;
  readonly assistantId: string;
  readonly versionId: string;
}

/** Models and agents whose answers a test writes; without a script the last user message comes back. */
export class ScriptedModels {
  private count = 0;

  constructor(
    private readonly upstream: Upstream,
    private readonly tenant: TestTenant,
  ) {}

  async model(script?: Script, more: Record<string, unknown> = {}): Promise<Scripted> {
    this.count += 1;
    const model = `model-${this.tenant.id}-${this.count}`;
    if (script) this.upstream.on(model, script);
    const { id } = await this.made('/api/admin/model-services', {
      name: model,
      model,
      providerId: this.tenant.providerId,
      ...more,
    });
    return { model, serviceId: id };
  }

  async agent(script?: Script, version: Record<string, unknown> = {}): Promise<ScriptedAgent> {
    const { model, serviceId } = await this.model(script);
    const slug = `agent-${this.count}`;
    const assistant = await this.made('/api/admin/assistants', { slug, name: slug });
    const path = `/api/admin/assistants/${assistant.id}/versions`;
    const { id } = await this.made(path, { modelServiceId: serviceId, prompt: 'Be brief.', ...version });
    await this.made(`${path}/${id}/publish`, undefined);
    return { model, serviceId, slug, assistantId: assistant.id, versionId: id };
  }

  private async made(path: string, body: unknown): Promise<{ id: string }> {
    const { status, text, body: made } = await this.tenant.post(path, body);
    if (status >= 300) throw new Error(`${path}: ${status} ${text}`);
    return made as { id: string };
  }
}

/** A request as any HTTP client sends it, and the answer as it came. */
export const completions = (
  { url }: TestApp,
  body: unknown,
  { apiKey }: TestTenant,
  headers: Record<string, string> = {},
): Promise<Response> =>
  fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${apiKey}`, ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  });
