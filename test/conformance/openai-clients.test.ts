import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText } from 'ai';
it('x', () => {
  expect(typeof createOpenAICompatible).toBe('function');
  expect(typeof generateText).toBe('function');
});
