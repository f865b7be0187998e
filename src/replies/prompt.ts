import type { BranchMessage } from '../messages';
import { estimateTokens, type PromptMessage } from '../model-services';

/** Room kept for the answer when nobody said how long it may be: a quarter of the window, at most this. */
const DEFAULT_ANSWER_TOKENS = 4_096;
/** What a message costs beside its text, in the formats that providers use. */
const MESSAGE_TOKENS = 4;

/**
 * The branch under the system prompt, cut to the context window from its oldest end and never inside a message. The
 * system prompt and the newest message always go in: whether those two alone fit is the provider's to say.
 */
export function buildPrompt(
  systemPrompt: string,
  branch: readonly BranchMessage[],
  contextWindow: number,
  parameters: Readonly<Record<string, unknown>>,
): PromptMessage[] {
  const system: PromptMessage[] = systemPrompt ? [{ role: 'system', content: systemPrompt }] : [];
  let room = contextWindow - answerTokens(contextWindow, parameters);
  for (const { content } of system) room -= estimateTokens(content) + MESSAGE_TOKENS;
  let first = branch.length;
  while (first > 0) {
    room -= estimateTokens(branch[first - 1]!.content) + MESSAGE_TOKENS;
    if (room < 0 && first < branch.length) break;
    first -= 1;
  }
  // A reply whose question was cut off makes no sense to a model, and some refuse it.
  while (first < branch.length - 1 && branch[first]!.role === 'assistant') first += 1;
  return [...system, ...branch.slice(first).map(({ role, content }) => ({ role, content }))];
}

function answerTokens(contextWindow: number, parameters: Readonly<Record<string, unknown>>): number {
  const asked = parameters.max_completion_tokens ?? parameters.max_tokens;
  const most = Math.floor(contextWindow / 2);
  if (typeof asked === 'number' && asked > 0) return Math.min(asked, most);
  return Math.min(Math.floor(contextWindow / 4), DEFAULT_ANSWER_TOKENS);
}
