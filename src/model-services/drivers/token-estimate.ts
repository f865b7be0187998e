import type { ChatMessage } from './text-driver';

/** What a message costs beside its text, in the formats that providers use. */
export const MESSAGE_OVERHEAD_TOKENS = 4;
const ASCII_CHARS_PER_TOKEN = 4;

/** Tokens of a text that comes piece by piece and is not kept. */
export class TokenCounter {
  /** UTF-16 units. */
  chars = 0;
  private other = 0;

  add(text: string): void {
    this.chars += text.length;
    for (let i = 0; i < text.length; i += 1) if (text.charCodeAt(i) > 0x7f) this.other += 1;
  }

  get tokens(): number {
    return this.other + Math.ceil((this.chars - this.other) / ASCII_CHARS_PER_TOKEN);
  }
}

/** Tokens of a text, roughly: four ASCII characters or one of any other script a token. Linear, so a long Chinese run does not hold up the loop. */
export function estimateTokens(text: string): number {
  const counter = new TokenCounter();
  counter.add(text);
  return counter.tokens;
}

/** An image or a file, whatever its size: providers' own counts differ by more than a better guess would. */
const PART_TOKENS = 512;

export function estimatePromptTokens(messages: readonly ChatMessage[]): number {
  return messages.reduce((sum, message) => sum + contentTokens(message) + MESSAGE_OVERHEAD_TOKENS, 0);
}

function contentTokens({ content, tool_calls: calls = [] }: ChatMessage): number {
  const called = calls.reduce(
    (sum, call) => sum + estimateTokens(call.function.name + call.function.arguments),
    0,
  );
  if (typeof content === 'string') return called + estimateTokens(content);
  return (content ?? []).reduce(
    (sum, part) => sum + (typeof part.text === 'string' ? estimateTokens(part.text) : PART_TOKENS),
    called,
  );
}
