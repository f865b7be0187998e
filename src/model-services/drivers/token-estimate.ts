import type { PromptMessage } from './text-driver';

/** What a message costs beside its text, in the formats that providers use. */
export const MESSAGE_OVERHEAD_TOKENS = 4;
const ASCII_CHARS_PER_TOKEN = 4;

/** Tokens of a text, roughly: four ASCII characters or one of any other script a token. Linear, so a long Chinese run does not hold up the loop. */
export function estimateTokens(text: string): number {
  let other = 0;
  for (let i = 0; i < text.length; i += 1) if (text.charCodeAt(i) > 0x7f) other += 1;
  return other + Math.ceil((text.length - other) / ASCII_CHARS_PER_TOKEN);
}

export function estimatePromptTokens(messages: readonly PromptMessage[]): number {
  return messages.reduce((sum, { content }) => sum + estimateTokens(content) + MESSAGE_OVERHEAD_TOKENS, 0);
}
