import type { JsonObject } from './json';

interface SourceFields {
  /** `^[A-Za-z0-9_-]{1,32}$`, one of a kind in its list. */
  readonly name: string;
  /** Only these of its tools. */
  readonly allow?: readonly string[];
}
interface McpFields extends SourceFields {
  readonly type: 'mcp';
  /** An MCP server's endpoint, streamable HTTP. */
  readonly url: string;
}
interface OpenApiFields extends SourceFields {
  readonly type: 'openapi';
  /** An OpenAPI 3.0 or 3.1 document; each of its operations with an operationId is a tool. */
  readonly spec: JsonObject;
  /** Instead of the document's first server. */
  readonly baseUrl?: string;
}
interface PlainHeaders {
  readonly headers?: Readonly<Record<string, string>>;
}
interface SealedHeaders {
  readonly headers?: string;
}

/** As an operator writes it. */
export type McpToolSource = McpFields & PlainHeaders;
export type OpenApiToolSource = OpenApiFields & PlainHeaders;
export type ToolSource = McpToolSource | OpenApiToolSource;

/** As it is stored: its headers are one sealed text. */
export type StoredMcpSource = McpFields & SealedHeaders;
export type StoredOpenApiSource = OpenApiFields & SealedHeaders;
export type StoredToolSource = StoredMcpSource | StoredOpenApiSource;
