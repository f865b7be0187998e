import type { MessageId, TenantId } from '../common';
import type { DialoguesRepository, StoredReply } from '../messages';
import type { StreamBatch, StreamCursor } from '../realtime';

/** The number of a stored text that comes as one piece: past any piece that was streamed, so that a reader who drops after it gets only the end. */
export const STORED_PIECE = 2_000_000_000;
/** How often a reply that another node writes is looked at. */
const POLL_MS = 500;

/**
 * A reader of what Postgres holds, for a reply that the stream log does not: the whole text as one piece, and the
 * end. While another node still writes it, the reader waits. Null when there is no such reply.
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
  let exhausted = after > STORED_PIECE;
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
    take: (): StreamBatch | null => {
      if (exhausted || !stored) return null;
      if (stored.reply.status === 'streaming') {
        timer = setTimeout(() => void poll(), POLL_MS);
        return null;
      }
      exhausted = true;
      const { reply } = stored;
      const pieces = after < STORED_PIECE && reply.content ? [reply.content] : [];
      return {
        // Without a piece this is the end's own number.
        first: STORED_PIECE + (pieces.length > 0 ? 0 : 1),
        offset: 0,
        pieces,
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
