import { Injectable, Logger } from '@nestjs/common';
import type { AssistantId } from '../common';
import {
  estimatePromptTokens,
  estimateTokens,
  mergedFields,
  TextDrivers,
  ToolCalls,
  withValidArguments,
  type ChatMessage,
  type Flow,
  type ResolvedService,
  type TextResult,
  type TextSink,
  type TextUsage,
  type ToolCall,
} from '../model-services';
import type { Aside } from '../realtime';
import { ToolSources, type StoredToolSource, type Tool, type Toolbox } from '../tools';

export interface RunRequest {
  readonly service: ResolvedService;
  readonly messages: readonly ChatMessage[];
  readonly parameters: Readonly<Record<string, unknown>>;
  readonly signal: AbortSignal;
  readonly flow?: Flow;
  /** Of the assistant that answers; null: it has none. */
  readonly tools: AssistantTools | null;
}

export interface AssistantTools {
  readonly assistantId: AssistantId;
  readonly sources: readonly unknown[];
}

/** A call that was made, for who keeps account of them. */
export interface ToolStep {
  /** 1, 2, 3 … within the reply. */
  readonly number: number;
  readonly callId: string;
  readonly tool: string;
  /** JSON as the model wrote it. */
  readonly args: string;
  readonly content: string;
  readonly isError: boolean;
  readonly durationMs: number;
}

export interface RunSink extends TextSink {
  aside?(aside: Aside): void;
  /** Resolves when it is stored: until then the model is not asked again. */
  step?(step: ToolStep): Promise<void>;
}

/** Then the model has to answer with what it knows. */
const MAX_ROUNDS = 8;
const MAX_CALLS = 32;
const MAX_RESULT_CHARS = 262_144;
const MAX_TOOLS_MS = 300_000;

const USED_UP = 'Not called: this reply has used its share of tools. Answer with what you know.';

/** Asks a model, runs the tools it calls and asks again with what they gave, until it answers. */
@Injectable()
export class ToolRunner {
  private readonly logger = new Logger(ToolRunner.name);

  constructor(
    private readonly drivers: TextDrivers,
    private readonly sources: ToolSources,
  ) {}

  /** As the driver's `stream`, with the usage of all rounds. */
  async run(request: RunRequest, sink: RunSink): Promise<TextResult> {
    const { service, messages, parameters, signal, flow, tools } = request;
    const asking = { signal, ...(flow && { flow }) };
    const { kind, endpoint, model } = service;
    const driver = this.drivers.of(kind);
    if (!tools || tools.sources.length === 0) {
      const given = parametersOf(parameters, [], 0);
      return driver.stream({ endpoint, model, messages, parameters: given, ...asking }, sink);
    }
    const toolbox = await this.sources.open(
      tools.sources as readonly StoredToolSource[],
      tools.assistantId,
      signal,
    );
    for (const { source, message } of toolbox.failures) {
      this.logger.warn(`assistant ${tools.assistantId}: tools of "${source}": ${message}`);
    }
    try {
      const run = new Rounds(toolbox, sink, signal, [...messages]);
      return await run.until((asked, round) => {
        const given = parametersOf(parameters, toolbox.tools, round);
        return driver.stream(
          { endpoint, model, messages: run.messages, parameters: given, ...asking },
          asked,
        );
      });
    } finally {
      await toolbox.close();
    }
  }
}

/**
 * The parameters of one round; `own`: the assistant's tools, in place of a client's. An empty list of tools is none, and
 * `parallel_tool_calls` is told beside tools alone: some providers refuse either. A forced choice holds for the first round: a
 * model that has to call would never answer. In the last round the tools are still told, for some providers refuse a
 * conversation with calls and without tools, but none may be called.
 */
function parametersOf(
  given: Readonly<Record<string, unknown>>,
  own: readonly Tool[],
  round: number,
): Record<string, unknown> {
  const { tools: theirs, tool_choice: choice, parallel_tool_calls: parallel, ...parameters } = given;
  const tools = own.length > 0 ? own.map(asFunction) : theirs;
  if (!Array.isArray(tools) || tools.length === 0)
    return { ...parameters, ...(choice !== undefined && { tool_choice: choice }) };
  const free = choice === 'none' || choice === 'auto' ? choice : undefined;
  const now = round >= MAX_ROUNDS ? 'none' : round === 0 ? choice : free;
  return {
    ...parameters,
    tools,
    ...(now !== undefined && { tool_choice: now }),
    ...(parallel !== undefined && { parallel_tool_calls: parallel }),
  };
}

/** The rounds of one reply: what they cost together, and what is left to spend. */
class Rounds {
  private readonly deadline = performance.now() + MAX_TOOLS_MS;
  private calls = 0;
  private resultChars = 0;

  constructor(
    private readonly toolbox: Toolbox,
    private readonly sink: RunSink,
    private readonly signal: AbortSignal,
    readonly messages: ChatMessage[],
  ) {}

  async until(ask: (sink: TextSink, round: number) => Promise<TextResult>): Promise<TextResult> {
    let attempts = 0;
    let usage: TextUsage = { promptTokens: 0, completionTokens: 0, totalTokens: 0 };
    for (let round = 0; ; round += 1) {
      const calls = new ToolCalls();
      let text = '';
      let fields: Readonly<Record<string, unknown>> = {};
      const result = await ask(
        {
          pieces: (pieces) => {
            text += pieces.join('');
            this.sink.pieces(pieces);
          },
          reasoning: (pieces) => this.sink.reasoning(pieces),
          toolCalls: (deltas) => calls.add(deltas),
          fields: (more) => (fields = mergedFields(fields, more)),
        },
        round,
      );
      attempts += result.attempts;
      const called = calls.all;
      usage = sum(usage, result.usage ?? this.estimate(text, called));
      if (called.length === 0) return { ...result, usage, attempts };
      // Offered none, it called one all the same: nobody is there to run it.
      if (round >= MAX_ROUNDS) return { ...result, finishReason: 'stop', usage, attempts };
      this.messages.push({
        ...fields,
        role: 'assistant',
        content: text || null,
        tool_calls: called.map(withValidArguments),
      });
      const results = await Promise.all(called.map((call) => this.call(call)));
      this.messages.push(...results);
      this.signal.throwIfAborted();
    }
  }

  private async call({ id, function: { name, arguments: args } }: ToolCall): Promise<ChatMessage> {
    const startedAt = performance.now();
    this.sink.aside?.({ type: 'tool', id, tool: name, args: parsed(args) });
    const number = (this.calls += 1);
    const spent = number > MAX_CALLS || this.resultChars > MAX_RESULT_CHARS || startedAt > this.deadline;
    const { content, isError } = spent
      ? { content: USED_UP, isError: true }
      : await this.toolbox.call(name, args, this.signal);
    this.resultChars += content.length;
    this.sink.aside?.({ type: 'tool_result', id, tool: name, content, isError });
    const durationMs = Math.round(performance.now() - startedAt);
    await this.sink.step?.({ number, callId: id, tool: name, args, content, isError, durationMs });
    return { role: 'tool', tool_call_id: id, content };
  }

  private estimate(text: string, calls: readonly ToolCall[]): TextUsage {
    const promptTokens = estimatePromptTokens(this.messages);
    const written = text + calls.map((call) => call.function.name + call.function.arguments).join('');
    const completionTokens = estimateTokens(written);
    return { promptTokens, completionTokens, totalTokens: promptTokens + completionTokens };
  }
}

function sum(a: TextUsage, b: TextUsage): TextUsage {
  return {
    promptTokens: a.promptTokens + b.promptTokens,
    completionTokens: a.completionTokens + b.completionTokens,
    totalTokens: a.totalTokens + b.totalTokens,
  };
}

const asFunction = ({ name, description, parameters }: Tool) => ({
  type: 'function',
  function: { name, description, parameters },
});

/** What the model wrote as arguments: JSON if it is. */
function parsed(args: string): unknown {
  try {
    return args.trim() === '' ? {} : (JSON.parse(args) as unknown);
  } catch {
    return args;
  }
}
