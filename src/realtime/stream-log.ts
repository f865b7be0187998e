import type { MessageId, TenantId } from '../common';
import type { ReplyText } from './reply-text';

/** How a reply ended, as its readers are told. */
export interface StreamEnd {
  readonly status: 'finished' | 'stopped' | 'interrupted' | 'failed';
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly totalTokens: number;
  readonly credits: number;
  /** Why the model stopped, as its provider says: `stop`, `length` … Absent once only the stored text is left. */
  readonly finishReason?: string;
  readonly error?: { readonly code: number; readonly message: string };
}

/** What happens beside the text of a reply, for readers that show it: thoughts, and the tools that were called. */
export type Aside =
  | { readonly type: 'think'; readonly content: string }
  | { readonly type: 'tool'; readonly id: string; readonly tool: string; readonly args: unknown }
  | {
      readonly type: 'tool_result';
      readonly id: string;
      readonly tool: string;
      readonly content: string;
      readonly isError: boolean;
    };

export interface PlacedAside {
  /** The number of the piece it came after; 0: before the first. */
  readonly after: number;
  readonly aside: Aside;
}

export interface StreamBatch {
  /** Number of `pieces[0]`: a reply's pieces count 1, 2, 3 … */
  readonly first: number;
  /** UTF-16 units of the reply before `pieces[0]`. */
  readonly offset: number;
  readonly pieces: readonly string[];
  /** Only for a reader that asked for them; each stands after the piece it names, or before `pieces[0]`. */
  readonly asides?: readonly PlacedAside[];
  /** Set once, with the last batch; its number is the last piece's plus one. */
  readonly end?: StreamEnd;
}

/** One reader's place in a reply. Pull, not push: a reader that can't write now just doesn't take. */
export interface StreamCursor {
  /**
   * What has come since the last take, at most `maxPieces`, and no more once they have `maxChars` UTF-16 units together;
   * null when there is nothing now.
   */
  take(maxPieces: number, maxChars?: number): StreamBatch | null;
  /** True once the end was taken, or was before the place the reader asked for: nothing will ever come. */
  readonly exhausted: boolean;
  close(): void;
}

/**
 * The pieces of replies, in order, for any number of readers at any place. Keyed by the reply's own id: a stream
 * keyed by its conversation would hand one reply's pieces to another's readers.
 */
export abstract class StreamLog {
  /**
   * Must come before the reply's work is dispatched, or the first reader misses the first pieces. What is appended from
   * now on stands in the text that is returned, for who writes the reply to read: a second copy would cost as much.
   */
  abstract open(tenantId: TenantId, replyId: MessageId): ReplyText;
  abstract append(replyId: MessageId, pieces: readonly string[]): void;
  abstract aside(replyId: MessageId, aside: Aside): void;
  abstract end(replyId: MessageId, end: StreamEnd): void;
  /**
   * A reader placed after piece number `after` (0: the start). `wake` is called when there is something to take
   * after a take that returned null; with `asides` what happens beside the text is told, too. Resolves to null for a reply this log does not (or no longer) hold for that tenant.
   */
  abstract read(
    tenantId: TenantId,
    replyId: MessageId,
    after: number,
    wake: () => void,
    asides?: boolean,
  ): Promise<StreamCursor | null>;
}
