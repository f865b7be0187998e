import {
  Client,
  ProtocolError,
  StreamableHTTPClientTransport,
  type CallToolResult,
  type JsonSchemaValidator,
  type jsonSchemaValidator,
} from '@modelcontextprotocol/client';
import { truncate, within } from '../common';
import { isObject, storable, storableJson, type JsonObject } from './json';
import {
  MAX_DESCRIPTION_CHARS,
  MAX_PARAMETERS_CHARS,
  MAX_TOOLS,
  type OfferedTool,
  type OpenSource,
  type ToolResult,
} from './tool';
import type { ToolNetwork } from './tool-network';
import { ToolFailure } from './tool-failure';

const FAREWELL_MS = 1_000;
/** Never reached: our own signals end a request first. */
const SDK_TIMEOUT_MS = 60_000;

/** A foreign schema's patterns could keep us busy for ever; what a tool answers is text to us anyway. */
const uncheckedOutput: jsonSchemaValidator = {
  getValidator<T>(): JsonSchemaValidator<T> {
    return (input) => ({ valid: true, data: input as T, errorMessage: undefined });
  },
};

interface Connection {
  readonly client: Client;
  readonly transport: StreamableHTTPClientTransport;
  /** Aborted with what makes it unusable. */
  readonly broken: AbortController;
}

export interface McpTarget {
  readonly url: string;
  readonly headers: Readonly<Record<string, string>> | undefined;
  readonly allow: readonly string[] | undefined;
}

export interface McpTools {
  readonly tools: readonly OfferedTool[];
  readonly notes: readonly string[];
}

/** One MCP server over streamable HTTP. A connection is opened when it is first needed, and again after a failure. */
export class McpSource implements OpenSource {
  tools: readonly OfferedTool[] = [];
  notes: readonly string[] = [];
  private connection: Promise<Connection> | undefined;
  private readonly opened: Connection[] = [];
  private closed = false;

  constructor(
    private readonly target: McpTarget,
    private readonly network: ToolNetwork,
  ) {}

  /** Asks for the tools, unless they are known. Rejects with whatever went wrong. */
  async open(known: McpTools | undefined, signal: AbortSignal): Promise<McpTools> {
    const offered = known ?? (await this.list(signal));
    ({ tools: this.tools, notes: this.notes } = offered);
    return offered;
  }

  async call(tool: string, args: JsonObject, signal: AbortSignal): Promise<ToolResult> {
    const connecting = this.connect(signal);
    const { client, broken } = await connecting;
    try {
      const result = await client.callTool(
        { name: tool, arguments: args },
        { signal: AbortSignal.any([signal, broken.signal]), timeout: SDK_TIMEOUT_MS },
      );
      return { content: textOf(result), isError: result.isError === true };
    } catch (error) {
      const answered = error instanceof ProtocolError;
      if (!answered && !signal.aborted && this.connection === connecting) this.connection = undefined;
      throw broken.signal.aborted ? broken.signal.reason : error;
    }
  }

  async close(): Promise<void> {
    this.closed = true;
    await Promise.all(
      this.opened.splice(0).map(async ({ client, transport }) => {
        await within(
          FAREWELL_MS,
          transport.terminateSession().catch(() => undefined),
        );
        await client.close().catch(() => undefined);
      }),
    );
  }

  private async list(signal: AbortSignal): Promise<McpTools> {
    const { client, broken } = await this.connect(signal);
    if (!client.getServerCapabilities()?.tools) return { tools: [], notes: ['its server has no tools'] };
    try {
      const { tools } = await client.listTools(undefined, {
        signal: AbortSignal.any([signal, broken.signal]),
        timeout: SDK_TIMEOUT_MS,
      });
      return offer(tools, this.target.allow);
    } catch (error) {
      throw broken.signal.aborted ? broken.signal.reason : error;
    }
  }

  private connect(signal: AbortSignal): Promise<Connection> {
    this.connection ??= this.dial(signal).catch((error: unknown) => {
      this.connection = undefined;
      throw error;
    });
    return this.connection;
  }

  private async dial(signal: AbortSignal): Promise<Connection> {
    if (this.closed) throw new ToolFailure('it is closed');
    const broken = new AbortController();
    const transport = new StreamableHTTPClientTransport(new URL(this.target.url), {
      ...(this.target.headers && { requestInit: { headers: { ...this.target.headers } } }),
      fetch: (url, init) => this.fetch(url, init, broken),
    });
    const client = new Client(
      { name: 'parley', version: '1' },
      {
        versionNegotiation: { mode: 'auto' },
        jsonSchemaValidator: uncheckedOutput,
        inputRequired: { autoFulfill: false },
        listMaxPages: 8,
      },
    );
    this.opened.push({ client, transport, broken });
    try {
      await client.connect(transport, {
        signal: AbortSignal.any([signal, broken.signal]),
        timeout: SDK_TIMEOUT_MS,
      });
    } catch (error) {
      throw broken.signal.aborted ? broken.signal.reason : error;
    }
    return { client, transport, broken };
  }

  /** The stream of what a server says unasked is not taken: nobody would listen. */
  private fetch(
    url: string | URL,
    init: RequestInit | undefined,
    broken: AbortController,
  ): Promise<Response> {
    const unasked = init?.method === 'GET' && !new Headers(init.headers).has('last-event-id');
    if (unasked) return Promise.resolve(new Response(null, { status: 405 }));
    return this.network.fetch(url, init, (error) => broken.abort(error));
  }
}

interface ListedTool {
  readonly name: string;
  readonly description?: string | undefined;
  readonly inputSchema: unknown;
}

/** The allowed tools of a list, at most 64, and what was left out. */
export function offer(listed: readonly ListedTool[], allow?: readonly string[]): McpTools {
  const notes: string[] = [];
  const allowed = listed.filter(({ name }) => !allow || allow.includes(name));
  const absent = (allow ?? []).filter((name) => !listed.some((tool) => tool.name === name));
  if (absent.length > 0) notes.push(`its server does not offer ${absent.join(', ')}`);
  if (allowed.length > MAX_TOOLS) {
    notes.push(`its server offers ${allowed.length} tools; only the first ${MAX_TOOLS} are given`);
  }
  const tools = allowed.slice(0, MAX_TOOLS).flatMap(({ name, description, inputSchema }): OfferedTool[] => {
    const parameters = parametersOf(inputSchema);
    if (!parameters)
      notes.push(`its tool ${storable(truncate(name, 100))} is left out: its schema is too large`);
    const text = storable(truncate(description ?? '', MAX_DESCRIPTION_CHARS));
    return parameters ? [{ name, description: text, parameters }] : [];
  });
  return { tools, notes };
}

function parametersOf(schema: unknown): JsonObject | null {
  try {
    if (!isObject(schema) || JSON.stringify(schema).length > MAX_PARAMETERS_CHARS) return null;
    const { $schema: _, ...parameters } = storableJson(schema);
    return parameters;
  } catch {
    return null; // nested too deeply
  }
}

function textOf({ content, structuredContent }: CallToolResult): string {
  const text = content.map(blockText).join('\n');
  if (text !== '') return text;
  return structuredContent === undefined ? '(done, without content)' : JSON.stringify(structuredContent);
}

function blockText(block: CallToolResult['content'][number]): string {
  switch (block.type) {
    case 'text':
      return block.text;
    case 'resource_link':
      return `[${block.title ?? block.name}: ${block.uri}]`;
    case 'resource':
      return 'text' in block.resource
        ? block.resource.text
        : `[${block.resource.mimeType ?? 'data'}, left out: it is not text]`;
    default:
      return `[${block.mimeType}, left out: it is not text]`;
  }
}
