import { pairStart, type MessageId } from '../common';
import { textFrame, type StreamBatch } from '../realtime';
import type { ReplyEngine } from '../replies';
import type { ChannelConnection } from './channel-connection';
import type { ShownReply } from './views';

/** A reply that is to be shown. */
export interface Wanted {
  readonly replyId: MessageId;
  readonly requestId?: string;
  readonly stream: boolean;
  /** UTF-16 units that the client has already. */
  readonly offset: number;
}

const PIECES_A_TAKE = 200;
/** UTF-16 units: what stands ready for a client that does not read. */
const CHARS_A_TAKE = 65_536;
/** Replies that were shown, so that a second hint of one shows it once. */
const MAX_REMEMBERED = 1_000;

/** What one connection is shown of one session: its replies, one after the other, each from its own place in the log. */
export class Feed {
  private readonly queue: (Wanted & { readonly resumed: boolean })[] = [];
  private readonly resuming = new Set<MessageId>();
  private readonly shown = new Set<MessageId>();
  private running = false;
  private closed = false;
  private wake = (): void => undefined;

  constructor(
    private readonly connection: ChannelConnection,
    private readonly replies: ReplyEngine,
    private readonly about: { readonly agentId: string; readonly sessionId: string },
    private readonly failed: (error: unknown) => void,
  ) {}

  /** A reply that has begun; a second time it is nothing new. */
  show(wanted: Wanted): void {
    if (this.shown.has(wanted.replyId)) return;
    this.again(wanted);
  }

  /** A reply that the client asks for itself: what there is of it by then is paid for. */
  resume(wanted: Wanted): void {
    this.resuming.add(wanted.replyId);
    this.connection.resuming += 1;
    this.again(wanted, true);
  }

  /** Whether a reply was resumed and has not been shown to its end. */
  isResuming(replyId: MessageId): boolean {
    return this.resuming.has(replyId);
  }

  private again(wanted: Wanted, resumed = false): void {
    this.shown.add(wanted.replyId);
    const [oldest] = this.shown;
    if (this.shown.size > MAX_REMEMBERED) this.shown.delete(oldest!);
    this.queue.push({ ...wanted, resumed });
    void this.run();
  }

  close(): void {
    this.closed = true;
    this.wake();
  }

  private async run(): Promise<void> {
    if (this.running) return;
    this.running = true;
    for (let next = this.queue.shift(); next && !this.closed; next = this.queue.shift()) {
      await this.follow(next, next.resumed).catch(this.failed);
      if (!next.resumed) continue;
      this.resuming.delete(next.replyId);
      this.connection.resuming -= 1;
    }
    this.running = false;
  }

  private async follow(
    { replyId, requestId, stream, offset: from }: Wanted,
    resumed: boolean,
  ): Promise<void> {
    const { connection } = this;
    const { view, principal } = connection;
    const shown: ShownReply = {
      ...this.about,
      messageId: replyId,
      stream,
      aside: { after: 0, count: 0 },
      ...(requestId !== undefined && { requestId }),
    };
    const cursor = await this.replies.read(principal.tenantId, replyId, 0, () => this.wake(), view.asides);
    if (!cursor) return;
    try {
      if (from === 0) connection.say(...view.begin(shown));
      let text = '';
      let offset = 0;
      let paid = resumed;
      for (;;) {
        const woken = new Promise<void>((resolve) => (this.wake = resolve));
        if (this.closed || !connection.open) return;
        const batch = cursor.take(PIECES_A_TAKE, CHARS_A_TAKE);
        if (!batch) {
          // It has all there was: what comes from here on is as new to it as to everybody.
          paid = false;
          if (cursor.exhausted) return;
          await woken;
          continue;
        }
        if (!stream) text += batch.pieces.join('');
        offset = batch.offset + batch.pieces.reduce((sum, { length }) => sum + length, 0);
        const frames = view.pieces(shown, after(batch, from));
        if (batch.end) frames.push(...this.sized(shown, view.end(shown, batch.end, offset, text)));
        for (const frame of frames) {
          // Frame by frame: what one take brings may be more than may wait.
          const bytes = textFrame(frame);
          if (connection.congested || !connection.fits(bytes.length)) await connection.writable(bytes.length);
          connection.write(bytes);
          if (paid) connection.replay.spend(bytes.length);
        }
        if (batch.end) return;
      }
    } finally {
      cursor.close();
    }
  }

  /** A whole reply that is larger than what may wait for a client can't be sent as one. */
  private sized(shown: ShownReply, frames: string[]): string[] {
    const { view, settings } = this.connection;
    if (shown.stream || frames.every((frame) => Buffer.byteLength(frame) <= settings.maxBufferedBytes / 2))
      return frames;
    const { agentId, sessionId, messageId, requestId } = shown;
    const message = 'the reply is too long for one frame; resume it to get it in pieces';
    const about = { agentId, sessionId, messageId, ...(requestId !== undefined && { requestId }) };
    return [view.error({ ...about, code: 'too_large', message })];
  }
}

/**
 * What of a batch comes after so many units of the reply; what happened beside the text right there is told again.
 * A place inside a surrogate pair counts as before it.
 */
export function after(batch: StreamBatch, from: number): StreamBatch {
  if (batch.offset >= from) return batch;
  let { offset } = batch;
  let skipped = 0;
  for (const piece of batch.pieces) {
    if (offset + piece.length > from) break;
    offset += piece.length;
    skipped += 1;
  }
  const pieces = batch.pieces.slice(skipped);
  const [cut] = pieces;
  let there = offset === from;
  if (cut !== undefined && offset < from) {
    const at = pairStart(cut, from - offset);
    pieces[0] = cut.slice(at);
    offset += at;
    there = at === 0;
  }
  const first = batch.first + skipped;
  const asides = batch.asides?.filter((one) => one.after >= (there ? first - 1 : first));
  return { ...batch, first, offset, pieces, ...(asides && { asides }) };
}
