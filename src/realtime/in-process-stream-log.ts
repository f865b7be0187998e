import type { MessageId, TenantId } from '../common';
import { ReplyStream } from './reply-stream';
import type { ReplyText } from './reply-text';
import { StreamLog, type Aside, type StreamCursor, type StreamEnd } from './stream-log';

export interface StreamLogLimits {
  /** How long a finished reply is kept piece by piece. */
  readonly retentionMs: number;
  /** Memory for finished replies; past it the oldest go first, and readers of those get the stored text. */
  readonly maxBytes: number;
}

/** Replies in this process's memory. */
export class InProcessStreamLog extends StreamLog {
  private readonly streams = new Map<MessageId, ReplyStream>();
  private readonly finished = new Set<ReplyStream>(); // in order of their end
  private finishedBytes = 0;
  private readonly timer: NodeJS.Timeout;

  constructor(
    private readonly limits: StreamLogLimits,
    private readonly now: () => number = Date.now,
  ) {
    super();
    this.timer = setInterval(() => this.prune(), Math.min(10_000, limits.retentionMs)).unref();
  }

  open(tenantId: TenantId, replyId: MessageId): ReplyText {
    const stream = new ReplyStream(tenantId, replyId);
    this.streams.set(replyId, stream);
    return stream.text;
  }

  append(replyId: MessageId, pieces: readonly string[]): void {
    this.streams.get(replyId)?.append(pieces);
  }

  aside(replyId: MessageId, aside: Aside): void {
    this.streams.get(replyId)?.aside(aside);
  }

  end(replyId: MessageId, end: StreamEnd): void {
    const stream = this.streams.get(replyId);
    if (!stream || stream.ended) return;
    stream.finish(end, this.now());
    this.finished.add(stream);
    this.finishedBytes += stream.bytes;
    this.prune();
  }

  read(
    tenantId: TenantId,
    replyId: MessageId,
    after: number,
    wake: () => void,
    asides = false,
  ): Promise<StreamCursor | null> {
    const stream = this.streams.get(replyId);
    const ours = stream?.tenantId === tenantId ? stream : null;
    return Promise.resolve(ours && ours.cursor(after, wake, asides));
  }

  /** Drops what is too old or too much. Cursors that are open on a dropped reply keep it alive until they close. */
  prune(): void {
    const oldest = this.now() - this.limits.retentionMs;
    for (const stream of this.finished) {
      if (stream.endedAt > oldest && this.finishedBytes <= this.limits.maxBytes) break;
      this.finished.delete(stream);
      this.streams.delete(stream.replyId);
      this.finishedBytes -= stream.bytes;
    }
  }

  close(): void {
    clearInterval(this.timer);
  }
}
