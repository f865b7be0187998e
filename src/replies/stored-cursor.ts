import { inPieces, MAX_PIECE_CHARS, type MessageId, type TenantId } from '../common';
import type { DialoguesRepository, StoredReply } from '../messages';
import type { StreamBatch, StreamCursor } from '../realtime';

/** The number of a stored text's first piece: past any piece that was streamed. The same text is always cut the same way, so that a reader who drops goes on after the piece it has. */
export const STORED_PIECE = 2_000_000_000;
/** How often a reply that another node writes is looked at. */
const POLL_MS = 500;

/**
 * A reader of what Postgres holds, for a reply that the stream log does not: the text in large pieces, and the end. While another node still writes it, the reader waits. Null when there is no such reply.
 */
export async function storedCursor(
  dialogues: Pick<DialoguesRepository, 'findReply'>,
  tenantId: TenantId,
  replyId: MessageId,
  after: number,
  wake: () => void,
): Promise<StreamCursor | null> {
  const first = await dialogues.findReply(tenantId, replyId);
  if (!first) return null;
  let stored: StoredReply | null = first;
  /** Pieces of the stored text that the reader has. */
  let had = Math.max(0, after - STORED_PIECE + 1);
  let pieces: readonly string[] | undefined;
  /** Its text in pieces once it has ended. */
  const cut = ({ reply }: StoredReply): readonly string[] =>
    (pieces ??= reply.content ? inPieces(reply.content) : []);
  // Without a piece the end has the number that it has after one.
  const endOf = (reply: StoredReply): number => Math.max(cut(reply).length, 1);
  let exhausted = first.reply.status !== 'streaming' && had > endOf(first);
  let timer: NodeJS.Timeout | undefined;
  let closed = false;

  const poll = async (): Promise<void> => {
    try {
      stored = await dialogues.findReply(tenantId, replyId);
    } catch {
      // The database is away: the reader goes on waiting, and so does the poll.
    }
    if (closed) return;
    // Erased meanwhile: nothing will ever come.
    if (!stored) exhausted = true;
    wake();
  };

  return {
    take: (maxPieces, maxChars = Infinity): StreamBatch | null => {
      if (exhausted || !stored) return null;
      if (stored.reply.status === 'streaming') {
        timer = setTimeout(() => void poll(), POLL_MS);
        return null;
      }
      const { reply } = stored;
      const all = cut(stored);
      exhausted = had > endOf(stored);
      if (exhausted) return null;
      const few = Math.min(maxPieces, Math.max(1, Math.ceil(maxChars / MAX_PIECE_CHARS)));
      const taken = all.slice(had, had + few);
      const before = all.slice(0, had);
      const batch = {
        first: STORED_PIECE + (taken.length > 0 ? had : endOf(stored)),
        offset: before.reduce((sum, { length }) => sum + length, 0),
        pieces: taken,
      };
      had += taken.length;
      if (had < all.length) return batch;
      exhausted = true;
      return {
        ...batch,
        end: {
          status: reply.status as Exclude<typeof reply.status, 'streaming'>,
          promptTokens: reply.promptTokens,
          completionTokens: reply.completionTokens,
          totalTokens: reply.totalTokens,
          credits: reply.credits,
          ...(reply.error && { error: reply.error }),
        },
      };
    },
    get exhausted() {
      return exhausted;
    },
    close: () => {
      closed = true;
      clearTimeout(timer);
    },
  };
}
