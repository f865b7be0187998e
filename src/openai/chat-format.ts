import type { TextUsage, ToolCall, ToolCallDelta } from '../model-services';
import type { BatchFormat, StreamEnd } from '../realtime';

/** `usage` of an answer. */
export const usageRecord = ({ promptTokens, completionTokens, totalTokens }: TextUsage) => ({
  prompt_tokens: promptTokens,
  completion_tokens: completionTokens,
  total_tokens: totalTokens,
});

export const DONE = 'data: [DONE]\n\n';

/** The events of one streamed answer. The parts that never change are made once: this runs for every piece. */
export class ChunkFormat {
  private readonly base: string;
  private readonly text: string;
  private readonly tail = '},"logprobs":null,"finish_reason":null}]}\n\n';

  constructor(
    id: string,
    model: string,
    created: number,
    private readonly includeUsage: boolean,
  ) {
    const shared = { id, object: 'chat.completion.chunk', created, model, system_fingerprint: null };
    this.base = `data: ${JSON.stringify(shared).slice(0, -1)},"choices":[`;
    this.text = `${this.base}{"index":0,"delta":{"content":`;
  }

  /** First of all, before any piece. */
  first(): string {
    return this.delta('"role":"assistant","content":"","refusal":null');
  }

  pieces(pieces: readonly string[]): string {
    let events = '';
    for (const piece of pieces) events += this.text + JSON.stringify(piece) + this.tail;
    return events;
  }

  /** As the providers that think aloud have it. */
  reasoning(pieces: readonly string[]): string {
    return pieces.map((piece) => this.delta(`"reasoning_content":${JSON.stringify(piece)}`)).join('');
  }

  /** What only the provider understands, under its own names: a client sends it back with the message. */
  fields(fields: Readonly<Record<string, unknown>>): string {
    return this.delta(JSON.stringify(fields).slice(1, -1));
  }

  toolCalls(deltas: readonly ToolCallDelta[]): string {
    return deltas
      .map((delta) => this.delta(`"tool_calls":[${JSON.stringify(this.callRecord(delta))}]`))
      .join('');
  }

  end(finishReason: string, usage: TextUsage): string {
    const last = `${this.base}{"index":0,"delta":{},"logprobs":null,"finish_reason":${JSON.stringify(finishReason)}}]}\n\n`;
    const counts = this.includeUsage
      ? `${this.base}],"usage":${JSON.stringify(usageRecord(usage))}}\n\n`
      : '';
    return last + counts + DONE;
  }

  private callRecord({ index, id, name, arguments: text = '', extra }: ToolCallDelta) {
    return {
      index,
      ...(id !== undefined && { id, type: 'function' }),
      function: { ...(name !== undefined && { name }), arguments: text },
      ...extra,
    };
  }

  private delta(fields: string): string {
    return `${this.base}{"index":0,"delta":{${fields}${this.tail}`;
  }
}

/** A stored reply as chunks; `failed` gives the events of an end that is none, else null. */
export function replyChunks(format: ChunkFormat, failed: (end: StreamEnd) => string | null): BatchFormat {
  return ({ pieces, end }) => {
    const text = format.pieces(pieces);
    return end ? text + (failed(end) ?? format.end(end.finishReason ?? 'stop', end)) : text;
  };
}

export interface Answer {
  readonly id: string;
  readonly model: string;
  readonly created: number;
  readonly text: string;
  readonly reasoning: string;
  readonly toolCalls: readonly ToolCall[];
  /** What only the provider understands; see {@link ChunkFormat.fields}. */
  readonly fields?: Readonly<Record<string, unknown>>;
  readonly finishReason: string;
  readonly usage: TextUsage;
}

/** The one answer of a request that does not stream. */
export function answerRecord({
  id,
  model,
  created,
  text,
  reasoning,
  toolCalls,
  fields,
  finishReason,
  usage,
}: Answer) {
  return {
    id,
    object: 'chat.completion',
    created,
    model,
    choices: [
      {
        index: 0,
        message: {
          ...fields,
          role: 'assistant',
          content: text === '' && toolCalls.length > 0 ? null : text,
          refusal: null,
          ...(reasoning && { reasoning_content: reasoning }),
          ...(toolCalls.length > 0 && { tool_calls: toolCalls }),
        },
        logprobs: null,
        finish_reason: finishReason,
      },
    ],
    usage: usageRecord(usage),
  };
}
