import { CompletionStream, shorten } from './completion-stream';
import { reportedFailure } from './provider-request';
import type { ProviderEndpoint } from './text-driver';

const endpoint: ProviderEndpoint = {
  providerId: '1',
  baseUrl: 'https://provider.example/v1',
  apiKey: 'sk-secret',
  headers: {},
  policy: 'provider',
  connectTimeoutMs: 1_000,
  firstPieceTimeoutMs: 1_000,
  idleTimeoutMs: 1_000,
  totalTimeoutMs: 1_000,
};
const SAID = 'a\0b\ud800c\udc00';
const STORABLE = 'a\ufffdb\ufffdc\ufffd';

describe("a provider's error message", () => {
  it('is one short line', () => {
    expect(shorten(' a\n b\t')).toBe('a b');
    expect(shorten('x'.repeat(300))).toHaveLength(300);
    expect(shorten('x'.repeat(301))).toBe(`${'x'.repeat(299)}…`);
  });

  it('can be stored, whatever is in it and wherever it is cut', () => {
    expect(shorten(SAID)).toBe(STORABLE);
    expect(shorten(`${'x'.repeat(298)}😀 and more`).isWellFormed()).toBe(true);
  });

  it('can be stored as an event of a chat, too, and as an answer read whole', () => {
    const sink = { pieces: () => undefined, reasoning: () => undefined };
    const event = `data: ${JSON.stringify({ error: { message: SAID } })}\n\n`;
    expect(() => new CompletionStream(sink).read(Buffer.from(event))).toThrow(`reported: ${STORABLE}`);
    const failure = reportedFailure({ error: { message: SAID } }, 1, endpoint);
    expect(failure?.message).toBe(`The model provider reported: ${STORABLE}`);
  });
});
