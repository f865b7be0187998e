import { AsyncLocalStorage } from 'node:async_hooks';
import {
  Client,
  ProtocolError,
  SdkHttpError,
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
  type ToolResult,
} from './tool';
import type { ToolNetwork } from './tool-network';
import { ToolFailure } from './tool-failure';
import { unlessAborted } from './toolbox';

/** A session is shared: opening it is no single reply's, nor ends with it. */
const DIAL_MS = 5_000;
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

/**
 * One MCP server over streamable HTTP, for any number of replies at once. A session is opened when it is first needed,
 * and again after a failure or when the server has forgotten it.
 */
export class McpSource {
  private connection: Promise<Connection> | undefined;
  private closed = false;
  /** Of the request that is being made: aborted with what makes its answer unusable. */
  private readonly asking = new AsyncLocalStorage<AbortController>();

  constructor(
    private readonly target: McpTarget,
    private readonly network: ToolNetwork,
  ) {}

  /** The server's tools, as far as they are allowed. Rejects with whatever went wrong. */
  list(signal: AbortSignal): Promise<McpTools> {
    return this.ask(signal, async (client, limit) => {
      if (!client.getServerCapabilities()?.tools) return { tools: [], notes: ['its server has no tools'] };
      const { tools } = await client.listTools(undefined, { signal: limit, timeout: SDK_TIMEOUT_MS });
      return offer(tools, this.target.allow);
    });
  }

  /** Rejects with whatever went wrong. */
  async call(tool: string, args: JsonObject, signal: AbortSignal): Promise<ToolResult> {
    const result = await this.ask(signal, (client, limit) =>
      client.callTool({ name: tool, arguments: args }, { signal: limit, timeout: SDK_TIMEOUT_MS }),
    );
    return { content: textOf(result), isError: result.isError === true };
  }

  /** Never rejects. */
  async close(): Promise<void> {
    this.closed = true;
    const open = this.connection;
    this.connection = undefined;
    await open?.then(farewell, () => undefined);
  }

  /** Once more where the server says that it does not know the session: then it has done nothing. */
  private async ask<T>(
    signal: AbortSignal,
    work: (client: Client, signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    for (let kept = this.connection !== undefined; ; kept = false) {
      const connecting = this.connect();
      const { client } = await unlessAborted(connecting, signal);
      const broken = new AbortController();
      try {
        return await this.asking.run(broken, () => work(client, AbortSignal.any([signal, broken.signal])));
      } catch (error) {
        const answered = error instanceof ProtocolError;
        if (!answered && !signal.aborted && !broken.signal.aborted) this.drop(connecting);
        if (kept && !signal.aborted && isForgotten(error)) continue;
        throw broken.signal.aborted ? broken.signal.reason : error;
      }
    }
  }

  private connect(): Promise<Connection> {
    this.connection ??= this.dial().catch((error: unknown) => {
      this.connection = undefined;
      throw error;
    });
    return this.connection;
  }

  private drop(connecting: Promise<Connection>): void {
    if (this.connection === connecting) this.connection = undefined;
    void connecting.then(({ client }) => client.close()).catch(() => undefined);
  }

  private async dial(): Promise<Connection> {
    if (this.closed) throw new ToolFailure('it is closed');
    const transport = new StreamableHTTPClientTransport(new URL(this.target.url), {
      ...(this.target.headers && { requestInit: { headers: { ...this.target.headers } } }),
      fetch: (url, init) => this.fetch(url, init),
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
    const broken = new AbortController();
    const limit = AbortSignal.any([AbortSignal.timeout(DIAL_MS), broken.signal]);
    try {
      await this.asking.run(broken, () =>
        client.connect(transport, { signal: limit, timeout: SDK_TIMEOUT_MS }),
      );
    } catch (error) {
      void client.close().catch(() => undefined);
      throw broken.signal.aborted ? broken.signal.reason : error;
    }
    return { client, transport };
  }

  /** The stream of what a server says unasked is not taken: nobody would listen. */
  private fetch(url: string | URL, init: RequestInit | undefined): Promise<Response> {
    const unasked = init?.method === 'GET' && !new Headers(init.headers).has('last-event-id');
    if (unasked) return Promise.resolve(new Response(null, { status: 405 }));
    const asking = this.asking.getStore();
    return this.network.fetch(url, init, (error) => asking?.abort(error));
  }
}

async function farewell({ client, transport }: Connection): Promise<void> {
  await within(
    FAREWELL_MS,
    transport.terminateSession().catch(() => undefined),
  );
  await client.close().catch(() => undefined);
}

/** 404 is the protocol's own word for it; some servers say 400. */
const isForgotten = (error: unknown): boolean =>
  error instanceof SdkHttpError && (error.status === 404 || error.status === 400);

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
