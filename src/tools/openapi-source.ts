import { truncate } from '../common';
import type { JsonObject } from './json';
import type { Operation } from './openapi-document';
import { requestOf } from './openapi-request';
import type { OpenSource, ToolResult } from './tool';
import { statusInWords, ToolFailure } from './tool-failure';
import { AnswerTooLarge, type ToolNetwork } from './tool-network';

const MAX_REFUSAL_CHARS = 4_000;
const TEXT =
  /^(text\/|application\/([\w.+-]+\+)?(json|xml|yaml|javascript|x-ndjson|x-www-form-urlencoded)\b)/i;

/** The operations of an OpenAPI document. Opening it asks nobody. */
export class OpenApiSource implements OpenSource {
  readonly notes = [];
  private readonly headers: Readonly<Record<string, string>>;

  constructor(
    readonly tools: readonly Operation[],
    private readonly baseUrl: string,
    headers: Readonly<Record<string, string>> | undefined,
    private readonly network: ToolNetwork,
  ) {
    this.headers = lowerCased(headers ?? {});
  }

  async call(tool: string, args: JsonObject, signal: AbortSignal): Promise<ToolResult> {
    const operation = this.tools.find(({ name }) => name === tool);
    if (!operation) throw new ToolFailure('there is no such operation');
    const { url, method, headers, body } = requestOf(this.baseUrl, operation, args);
    const answer = await this.network.fetch(url, {
      method,
      signal,
      headers: { accept: 'application/json, text/*;q=0.9, */*;q=0.1', ...headers, ...this.headers },
      ...(body !== undefined && { body }),
    });
    return answer.ok ? { content: await contentOf(answer), isError: false } : refusal(answer);
  }

  async close(): Promise<void> {}
}

/** Under one spelling a configured header wins over an argument of the same name. */
const lowerCased = (headers: Readonly<Record<string, string>>): Readonly<Record<string, string>> =>
  Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]));

async function contentOf(answer: Response): Promise<string> {
  const type = answer.headers.get('content-type') ?? 'text/plain';
  if (!TEXT.test(type)) {
    await answer.body?.cancel();
    return `[an answer of the type ${type.slice(0, 100)}, left out: it is not text]`;
  }
  const text = await start(answer);
  return text === '' ? `(status ${answer.status}, without content)` : text;
}

/** What a 4xx says helps to call better; what a 5xx or a redirect says is for its operator. */
async function refusal(answer: Response): Promise<ToolResult> {
  const words = statusInWords(answer.status);
  const said =
    answer.status >= 400 && answer.status <= 499 && TEXT.test(answer.headers.get('content-type') ?? '');
  const text = said ? truncate((await start(answer)).trim(), MAX_REFUSAL_CHARS) : '';
  if (!said) await answer.body?.cancel();
  return { content: text === '' ? words : `${words}: ${text}`, isError: true };
}

/** The text, or as much of it as may be read. */
async function start(answer: Response): Promise<string> {
  const decoder = new TextDecoder();
  let text = '';
  try {
    const chunks: AsyncIterable<Uint8Array> | [] = answer.body ?? [];
    for await (const chunk of chunks) text += decoder.decode(chunk, { stream: true });
  } catch (error) {
    if (!(error instanceof AnswerTooLarge)) throw error;
  }
  return text + decoder.decode();
}
