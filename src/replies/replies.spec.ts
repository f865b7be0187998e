import fc from 'fast-check';
import type { StoredReply } from '../messages';
import { estimateTokens } from '../model-services';
import { LiveReply, type LiveReplySettings } from './live-reply';
import { buildPrompt } from './prompt';
import { ReplyText } from '../realtime';
import { STORED_PIECE, storedCursor } from './stored-cursor';

const user = (content: string) => ({ role: 'user' as const, content });
const assistant = (content: string) => ({ role: 'assistant' as const, content });

describe('the prompt', () => {
  it('is the system prompt and the whole branch when they fit', () => {
    const branch = [user('a'), assistant('b'), user('c')];
    expect(buildPrompt('sys', branch, 1_000, {})).toEqual([{ role: 'system', content: 'sys' }, ...branch]);
    expect(buildPrompt('', [user('a')], 1_000, {})).toEqual([user('a')]);
  });

  it('always has the newest message, however long', () => {
    expect(buildPrompt('sys', [user('old'), assistant('x'), user('长'.repeat(500))], 100, {})).toEqual([
      { role: 'system', content: 'sys' },
      user('长'.repeat(500)),
    ]);
  });

  it('keeps room for the answer that was asked for', () => {
    const branch = [user('中'.repeat(40)), assistant('中'.repeat(10)), user('中'.repeat(10))];
    expect(buildPrompt('', branch, 100, { max_tokens: 10 })).toHaveLength(3);
    expect(buildPrompt('', branch, 100, { max_tokens: 50 })).toHaveLength(1);
  });

  it('is a suffix of the branch, whole messages, beginning with no answer to a question that is cut off, within the window', () => {
    fc.assert(
      fc.property(
        fc.array(fc.string({ maxLength: 60 }), { maxLength: 12 }),
        fc.string({ minLength: 1, maxLength: 20 }),
        fc.integer({ min: 64, max: 400 }),
        (turns, last, window) => {
          const branch = [
            ...turns.flatMap((text, n) => [user(`${n}${text}`), assistant(`${n}!`)]),
            user(last),
          ];
          const prompt = buildPrompt('system', branch, window, {});
          const kept = prompt.slice(1);
          expect(prompt[0]).toEqual({ role: 'system', content: 'system' });
          expect(kept).toEqual(branch.slice(branch.length - kept.length));
          expect(kept.length).toBeGreaterThan(0);
          expect(kept[0]!.role).toBe('user');
          if (kept.length > 1)
            expect(
              prompt.reduce((sum, { content }) => sum + estimateTokens(content) + 4, 0),
            ).toBeLessThanOrEqual(window);
        },
      ),
    );
  });
});

describe('checkpoints', () => {
  it('together are the text, part by part, and are made again until they are saved', () => {
    const reply = new LiveReply(
      { tenantId: '1', replyId: '2' } as unknown as LiveReplySettings,
      new ReplyText(),
    );
    expect(reply.checkpoint()).toBeNull();
    for (const piece of ['a', 'b']) reply.written.push(piece);
    expect(reply.checkpoint()!.checkpoint).toMatchObject({ part: 0, content: 'ab' });
    reply.written.push('c');
    const first = reply.checkpoint()!;
    expect(first.checkpoint).toMatchObject({ part: 0, content: 'abc', reasoning: '' });
    reply.written.push('d');
    first.saved();
    reply.reasoning += 'why';
    const second = reply.checkpoint()!;
    expect(second.checkpoint).toMatchObject({ part: 1, content: 'd', reasoning: 'why' });
    second.saved();
    expect(reply.checkpoint()).toBeNull();
  });
});

describe('a reader of what is stored', () => {
  const stored = (status: string, content: string) =>
    ({
      reply: {
        status,
        content,
        promptTokens: 1,
        completionTokens: 2,
        totalTokens: 3,
        credits: 0,
        error: null,
      },
    }) as unknown as StoredReply;
  const read = (reply: StoredReply | null, after: number) =>
    storedCursor({ findReply: async () => reply }, '1' as never, '2' as never, after, () => undefined);

  it('gets the text as one piece and the end; having the piece, the end; having the end, nothing', async () => {
    expect((await read(stored('interrupted', 'text'), 3))!.take(10)).toMatchObject({
      first: STORED_PIECE,
      pieces: ['text'],
      end: { status: 'interrupted' },
    });
    expect((await read(stored('finished', 'text'), STORED_PIECE))!.take(10)).toMatchObject({
      first: STORED_PIECE + 1,
      pieces: [],
      end: { status: 'finished' },
    });
    expect((await read(stored('finished', ''), 0))!.take(10)).toMatchObject({
      pieces: [],
      end: { status: 'finished' },
    });
    expect((await read(stored('finished', 'text'), STORED_PIECE + 1))!.exhausted).toBe(true);
    expect(await read(null, 0)).toBeNull();
  });

  it('comes in pieces of one size, and goes on after the one that the reader has', async () => {
    const text = `${'x'.repeat(16_383)}😀${'y'.repeat(20_000)}`;
    const all: string[] = [];
    let number = STORED_PIECE - 1;
    for (let ended = false; !ended;) {
      const batch = (await read(stored('finished', text), number))!.take(1)!;
      expect(batch.offset).toBe(all.join('').length);
      expect(batch.first).toBe(number + 1);
      all.push(...batch.pieces);
      number = batch.first;
      ended = batch.end !== undefined;
    }
    expect(all.map(({ length }) => length)).toEqual([16_383, 16_384, 3_618]);
    expect(all.join('')).toBe(text);
    expect((await read(stored('finished', text), STORED_PIECE + 3))!.exhausted).toBe(true);
  });

  it('waits while another node writes', async () => {
    let reply = stored('streaming', '');
    const { promise, resolve } = Promise.withResolvers<void>();
    const cursor = (await storedCursor(
      { findReply: async () => reply },
      '1' as never,
      '2' as never,
      0,
      resolve,
    ))!;
    expect(cursor.take(10)).toBeNull();
    reply = stored('finished', 'at last');
    await promise;
    expect(cursor.take(10)).toMatchObject({ pieces: ['at last'], end: { status: 'finished' } });
    cursor.close();
  });
});
