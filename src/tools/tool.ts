import type { JsonObject } from './json';

/** A tool as a model sees it. */
export interface Tool {
  /** `^[A-Za-z0-9_-]{1,64}$`, one of a kind in its toolbox: the source's name, `_`, the tool's. */
  readonly name: string;
  readonly description: string;
  /** A JSON schema of one object. */
  readonly parameters: JsonObject;
}

export interface ToolResult {
  readonly content: string;
  readonly isError: boolean;
}

/** A tool under the name that its source knows it by. */
export type OfferedTool = Tool;

/** One source, ready to be called. */
export interface OpenSource {
  readonly tools: readonly OfferedTool[];
  /** What was left out, in plain words. */
  readonly notes: readonly string[];
  /** Rejects with whatever went wrong; `inPlainWords` says it. */
  call(tool: string, args: JsonObject, signal: AbortSignal): Promise<ToolResult>;
  /** Never rejects. */
  close(): Promise<void>;
}

export const MAX_TOOLS = 64;
export const MAX_DESCRIPTION_CHARS = 4_000;
export const MAX_PARAMETERS_CHARS = 32_000;
