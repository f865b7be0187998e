import { truncate } from '../common';
import type { Redaction } from '../outbound';
import { redactionOf } from './headers';
import { isObject, storable, type JsonObject } from './json';
import type { OpenSource, Tool, ToolResult } from './tool';
import { inPlainWords } from './tool-failure';
import { toolName } from './tool-names';

const CALL_MS = 30_000;
const MAX_CONTENT_CHARS = 65_536;

export interface SourceFailure {
  readonly source: string;
  /** In plain words, without addresses or credentials. */
  readonly message: string;
}

/** The tools of one reply. */
export interface Toolbox {
  readonly tools: readonly Tool[];
  /** Sources that could not be opened, and what was left out of others. */
  readonly failures: readonly SourceFailure[];
  /**
   * What a tool answers, or in plain words why it does not. `argumentsJson` is a JSON object; blank stands for an empty
   * one. Rejects with the signal's reason when that is aborted, and with nothing else.
   */
  call(name: string, argumentsJson: string, signal: AbortSignal): Promise<ToolResult>;
  /** Ends its connections. Never rejects. */
  close(): Promise<void>;
}

export interface NamedSource {
  readonly name: string;
  /** Values that must not come out. */
  readonly headers: Readonly<Record<string, string>> | undefined;
  readonly source: OpenSource;
}

interface Entry {
  readonly from: NamedSource;
  /** As its source knows it. */
  readonly tool: string;
}

/** The tools of opened sources under names that are one of a kind. */
export class OpenToolbox implements Toolbox {
  readonly tools: readonly Tool[];
  readonly failures: readonly SourceFailure[];
  private readonly entries = new Map<string, Entry>();
  private readonly redactions = new Map<NamedSource, Redaction>();

  constructor(
    private readonly sources: readonly NamedSource[],
    failures: readonly SourceFailure[],
    private readonly callMs = CALL_MS,
  ) {
    const taken = new Set<string>();
    this.tools = sources.flatMap((from) =>
      from.source.tools.flatMap((tool): Tool[] => {
        const name = toolName(from.name, tool.name, taken);
        if (name === null) return [];
        taken.add(name);
        this.entries.set(name, { from, tool: tool.name });
        return [{ name, description: tool.description, parameters: tool.parameters }];
      }),
    );
    this.failures = [
      ...failures,
      ...sources.flatMap(({ name, source }) => source.notes.map((message) => ({ source: name, message }))),
    ];
  }

  async call(name: string, argumentsJson: string, signal: AbortSignal): Promise<ToolResult> {
    signal.throwIfAborted();
    const entry = this.entries.get(name);
    if (!entry) return failed(`There is no tool "${storable(truncate(name, 100))}".`);
    const args = argumentsOf(argumentsJson);
    if (!args) return failed(`The arguments of "${name}" must be one JSON object.`);

    const tooLate = AbortSignal.timeout(this.callMs);
    const { source } = entry.from;
    const limit = AbortSignal.any([signal, tooLate]);
    try {
      const { content, isError } = await unlessAborted(source.call(entry.tool, args, limit), limit);
      return { content: bounded(this.redaction(entry.from).of(content)), isError };
    } catch (error) {
      signal.throwIfAborted();
      const words = tooLate.aborted ? `it took longer than ${this.callMs / 1_000} s` : inPlainWords(error);
      return failed(this.redaction(entry.from).of(`"${name}" failed: ${words}.`));
    }
  }

  private redaction(from: NamedSource): Redaction {
    let redaction = this.redactions.get(from);
    if (!redaction) this.redactions.set(from, (redaction = redactionOf(from.headers)));
    return redaction;
  }

  async close(): Promise<void> {
    await Promise.all(this.sources.map(({ source }) => source.close()));
  }
}

/** Settles as the work does, or at once with the reason when the signal is aborted first. */
export async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  let stop!: () => void;
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason as Error);
    signal.addEventListener('abort', stop, { once: true });
    if (signal.aborted) stop();
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener('abort', stop);
  }
}

function argumentsOf(json: string): JsonObject | null {
  if (json.trim() === '') return {};
  try {
    const value: unknown = JSON.parse(json);
    return isObject(value) ? value : null;
  } catch {
    return null;
  }
}

const failed = (message: string): ToolResult => ({ content: bounded(message), isError: true });

function bounded(text: string): string {
  const clean = storable(text);
  if (clean.length <= MAX_CONTENT_CHARS) return clean;
  const note = `\n[cut: the answer has ${clean.length} characters or more, over the limit of ${MAX_CONTENT_CHARS}]`;
  return `${truncate(clean, MAX_CONTENT_CHARS - note.length)}${note}`;
}
