import { createParser, type EventSourceParser } from 'eventsource-parser';
import { inPieces, MAX_PIECE_CHARS, wellFormed } from '../../common';
import { ProviderError, type TextSink, type ToolCallDelta } from './text-driver';
import { CallNumbering, type RawToolCall } from './tool-calls';

/** A name of this file's own: one of another is looked up anew for every piece. */
const LONG_PIECE_CHARS = MAX_PIECE_CHARS;
/** One event larger than this is no piece of an answer. UTF-16 units. */
const MAX_EVENT_CHARS = 1_048_576;
const MAX_MESSAGE_CHARS = 300;

interface ProviderUsage {
  readonly prompt_tokens?: number;
  readonly completion_tokens?: number;
  readonly total_tokens?: number;
}

/** As loosely as providers send it. */
interface Chunk {
  readonly error?: unknown;
  readonly usage?: ProviderUsage | null;
  readonly choices?: readonly {
    readonly index?: number;
    readonly delta?: Delta | null;
    readonly message?: Delta | null;
    readonly finish_reason?: string | null;
  }[];
}
interface Delta {
  readonly content?: string | null;
  readonly reasoning_content?: string | null;
  readonly reasoning?: string | null;
  readonly tool_calls?: readonly RawToolCall[] | null;
  readonly [field: string]: unknown;
}
/** The fields of an answer that are understood here; the others are carried. */
const KNOWN: ReadonlySet<string> = new Set(['role', 'content', 'tool_calls', 'refusal', 'function_call']);

/** Reads one answer's bytes into pieces, tolerating what "compatible" providers do differently. */
export class CompletionStream {
  usage: ProviderUsage | undefined;
  finishReason: string | null = null;
  done = false;
  /** True once any text, answer or reasoning, has come. */
  spoke = false;
  private readonly decoder = new TextDecoder('utf-8'); // drops a BOM, holds back split characters
  private readonly parser: EventSourceParser;
  private pieces: string[] = [];
  private reasoning: string[] = [];
  private toolCalls: ToolCallDelta[] = [];
  private heldText = '';
  private heldReasoning = '';

  private readonly numbering: CallNumbering;

  /** `taken`: ids of calls that the conversation already has. */
  constructor(
    private readonly sink: TextSink,
    taken?: () => Iterable<string>,
  ) {
    this.numbering = new CallNumbering(taken);
    this.parser = createParser({
      maxBufferSize: MAX_EVENT_CHARS,
      onEvent: ({ data, event }) => this.event(data, event),
      onError: (error) => {
        if (error.type === 'max-buffer-size-exceeded') throw malformed('an event over 1 MiB');
      },
    });
  }

  /** Throws ProviderError for an error event and for what is no event stream of completions. */
  read(bytes: Uint8Array): void {
    try {
      this.parser.feed(this.decoder.decode(bytes, { stream: true }));
    } finally {
      this.deliver();
    }
  }

  /** After the last byte: what a provider that forgot the last blank line still meant. */
  finish(): void {
    this.parser.feed(this.decoder.decode());
    this.parser.reset({ consume: true });
    if (this.heldText) this.pieces.push(this.heldText);
    if (this.heldReasoning) this.reasoning.push(this.heldReasoning);
    this.heldText = this.heldReasoning = '';
    this.deliver();
  }

  /** A whole answer in one JSON body. */
  whole(chunk: unknown): void {
    this.chunk(chunk as Chunk);
    this.done = true;
    this.finish();
  }

  private event(data: string, event: string | undefined): void {
    if (this.done || data === '') return;
    if (data === '[DONE]') {
      this.done = true;
      return;
    }
    let chunk: Chunk;
    try {
      chunk = JSON.parse(data) as Chunk;
    } catch {
      if (event === 'error') throw failed(data);
      throw malformed('an event that is not JSON');
    }
    if (event === 'error') throw failed(errorText(chunk) ?? 'the provider reported an error');
    this.chunk(chunk);
  }

  private chunk(chunk: Chunk | null): void {
    if (typeof chunk !== 'object' || chunk === null) return;
    if (chunk.error) throw failed(errorText(chunk) ?? 'the provider reported an error');
    // Some send it with every chunk, growing: the last one counts.
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice || (choice.index ?? 0) !== 0) return;
    const delta = choice.delta ?? choice.message;
    const text = delta?.content;
    if (typeof text === 'string' && text !== '') {
      const whole = this.heldText + text;
      this.heldText = splitPair(whole);
      const piece = this.heldText ? whole.slice(0, -1) : whole;
      // What one event brings may be a whole answer: no reader could be given that in one.
      if (piece.length > LONG_PIECE_CHARS) this.pieces.push(...inPieces(piece));
      else if (piece) this.pieces.push(piece);
    }
    const thought = delta?.reasoning_content ?? delta?.reasoning;
    if (typeof thought === 'string' && thought !== '') {
      const whole = this.heldReasoning + thought;
      this.heldReasoning = splitPair(whole);
      const piece = this.heldReasoning ? whole.slice(0, -1) : whole;
      if (piece) this.reasoning.push(...inPieces(piece));
    }
    if (delta) this.carry(delta);
    if (Array.isArray(delta?.tool_calls)) {
      this.toolCalls.push(...this.numbering.read(delta.tool_calls as unknown[], !choice.delta));
    }
    if (choice.finish_reason) this.finishReason = choice.finish_reason;
  }

  /** Most pieces have nothing but text: this runs for each. */
  private carry(delta: Delta): void {
    for (const name in delta) {
      if (name === 'content' || KNOWN.has(name) || delta[name] === null || delta[name] === '') continue;
      this.sink.fields?.({ [name]: delta[name] });
    }
  }

  private deliver(): void {
    if (this.reasoning.length > 0) {
      const { reasoning } = this;
      this.reasoning = [];
      this.spoke = true;
      this.sink.reasoning(reasoning);
    }
    if (this.pieces.length > 0) {
      const { pieces } = this;
      this.pieces = [];
      this.spoke = true;
      this.sink.pieces(pieces);
    }
    if (this.toolCalls.length > 0) {
      const { toolCalls } = this;
      this.toolCalls = [];
      this.spoke = true;
      this.sink.toolCalls?.(toolCalls);
    }
  }
}

/** A high surrogate at the very end waits for its other half: nothing is cut inside a pair. */
function splitPair(text: string): string {
  const last = text.charCodeAt(text.length - 1);
  return last >= 0xd800 && last <= 0xdbff ? text.slice(-1) : '';
}

/** `{error:{message}}`, `{error:"…"}`, `{message}`, `{detail}`: null when it is none of them. */
export function errorText(body: unknown): string | null {
  if (typeof body !== 'object' || body === null) return null;
  const { error, message, detail } = body as Record<string, unknown>;
  if (typeof error === 'string') return error;
  if (typeof error === 'object' && error !== null) return errorText(error);
  if (typeof message === 'string') return message;
  return typeof detail === 'string' ? detail : null;
}

/** One line of at most 300 characters that can be stored: PostgreSQL takes neither NUL nor half a surrogate pair. */
export function shorten(text: string): string {
  const plain = wellFormed(text).replaceAll('\0', '\ufffd').replace(/\s+/g, ' ').trim();
  return plain.length > MAX_MESSAGE_CHARS
    ? `${plain.slice(0, MAX_MESSAGE_CHARS - 1).toWellFormed()}…`
    : plain;
}

function failed(text: string): ProviderError {
  return new ProviderError('failed', shorten(`The model provider reported: ${text}`), { attempts: 1 });
}

function malformed(what: string): ProviderError {
  return new ProviderError('malformed', `The model provider sent ${what}.`, { attempts: 1 });
}
