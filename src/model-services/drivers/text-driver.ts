/**
 * What the reply engine asks of a text model, whatever its provider. One driver instance a provider kind; a call
 * carries everything it needs, so drivers hold no tenant state.
 */
export type PromptMessage = {
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
};

/** A part of a message that is not one text: `text`, `image_url` …, as the OpenAI API has it. */
export type ContentPart = { readonly type: string } & Readonly<Record<string, unknown>>;

export interface ToolCall {
  readonly id: string;
  readonly type: 'function';
  readonly function: {
    readonly name: string;
    /** JSON, as the model wrote it. */ readonly arguments: string;
  };
  /** Whatever else its provider wants back: `extra_content` with Gemini's thought signature, `cache_control` … */
  readonly [field: string]: unknown;
}

/** Any message that a provider takes; what a client or a tool loop sends beside plain prompts. */
export interface ChatMessage {
  readonly role: 'system' | 'developer' | 'user' | 'assistant' | 'tool';
  readonly content?: string | readonly ContentPart[] | null;
  readonly name?: string;
  readonly tool_calls?: readonly ToolCall[];
  readonly tool_call_id?: string;
  /** Whatever else its provider wants back: DeepSeek's `reasoning_content` beside calls, `cache_control` … */
  readonly [field: string]: unknown;
}

/** A piece of a call: the first of an `index` (0, 1, 2 …) has its id, the arguments come bit by bit. */
export interface ToolCallDelta {
  readonly index: number;
  readonly id?: string;
  readonly name?: string;
  readonly arguments?: string;
  /** Fields of the call that only its provider understands. */
  readonly extra?: Readonly<Record<string, unknown>>;
}

/** Milliseconds. `firstPiece` runs from the request's start to the first answer or reasoning text, `idle` between two network reads after it. */
export interface ProviderTimeouts {
  readonly connectTimeoutMs: number;
  readonly firstPieceTimeoutMs: number;
  readonly idleTimeoutMs: number;
  readonly totalTimeoutMs: number;
}

/** The provider as the driver needs it: decrypted credential included, so never log it whole. */
export interface ProviderEndpoint extends ProviderTimeouts {
  /** Stable id: what the driver learns about a provider (`stream_options` refused) is remembered under it. */
  readonly providerId: string;
  readonly baseUrl: string;
  readonly apiKey?: string;
  readonly headers: Readonly<Record<string, string>>;
  /** The platform's own provider, or a tenant's: where its connections may lead. */
  readonly policy: 'operator' | 'provider';
  /** There is a credential or a header, sealed under a key that is not known any more. */
  readonly unreadable?: boolean;
}

export interface TextRequest {
  readonly endpoint: ProviderEndpoint;
  /** The upstream's own name of the model. */
  readonly model: string;
  readonly messages: readonly ChatMessage[];
  /** Default parameters of the service and the assistant, already merged: temperature, max_tokens, … */
  readonly parameters: Readonly<Record<string, unknown>>;
  readonly signal: AbortSignal;
  /** Absent: what comes is taken as fast as it comes. */
  readonly flow?: Flow;
}

/** Whether who an answer is for keeps up with it. */
export interface Flow {
  /** Undefined: it does. Else the provider is read no further until this resolves; it never rejects. */
  room(): Promise<void> | undefined;
}

/** Called synchronously, once per network read, with every piece that read held, in order. */
export interface TextSink {
  pieces(pieces: string[]): void;
  /** `reasoning_content`: kept apart from the answer. */
  reasoning(pieces: string[]): void;
  /** Absent: who asked gave the model no tools. */
  toolCalls?(deltas: ToolCallDelta[]): void;
  /**
   * Fields of the answer that only its provider understands, as they come; {@link mergedFields} puts them together.
   * Reasoning is among them under the provider's own name for it: some want it back beside calls of tools.
   */
  fields?(fields: Readonly<Record<string, unknown>>): void;
}

export interface TextUsage {
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly totalTokens: number;
}

/** Of a model that failed and gave nothing: it has nothing to be paid for. */
export const NO_USAGE: TextUsage = { promptTokens: 0, completionTokens: 0, totalTokens: 0 };

export interface TextResult {
  /** As the provider counts; null when it told nothing: then the engine estimates, and marks it so. */
  readonly usage: TextUsage | null;
  readonly finishReason: string | null;
  /** Upstream requests made, refused ones included. */
  readonly attempts: number;
}

export abstract class TextDriver {
  /**
   * Streams one completion into `sink`; resolves at its regular end.
   * Rejects with {@link ProviderError}; with `signal.reason` when aborted. Pieces already delivered stay delivered.
   */
  abstract stream(request: TextRequest, sink: TextSink): Promise<TextResult>;
}

export type ProviderFailure =
  | 'unreachable' // connection refused, reset, DNS, TLS
  | 'timeout' // connect, first-piece, idle or total
  | 'refused' // 4xx other than 429: the credential, the model, the request
  | 'rate-limited' // 429 that went on
  | 'failed' // 5xx, an error event in the stream, a stream cut off before its end
  | 'unreadable' // our own credential for it
  | 'malformed'; // not what an OpenAI-compatible endpoint sends

/** `message` is safe to show a tenant: no credential, no address of the provider, no body longer than 300 characters. */
export class ProviderError extends Error {
  constructor(
    readonly failure: ProviderFailure,
    message: string,
    readonly details: {
      readonly status?: number;
      readonly retryAfterMs?: number;
      readonly attempts: number;
      readonly cause?: unknown;
    },
  ) {
    super(message, { cause: details.cause });
    this.name = 'ProviderError';
  }
}
