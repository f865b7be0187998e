import type { MessageId, TenantId } from '../common';
import {
  StreamLog,
  type Aside,
  type PlacedAside,
  type StreamBatch,
  type StreamCursor,
  type StreamEnd,
} from './stream-log';

export interface StreamLogLimits {
  /** How long a finished reply is kept piece by piece. */
  readonly retentionMs: number;
  /** Memory for finished replies; past it the oldest go first, and readers of those get the stored text. */
  readonly maxBytes: number;
}

const NO_ASIDES: readonly PlacedAside[] = [];
/** Bookkeeping of one kept reply beside its text, roughly. */
const OVERHEAD_BYTES = 512;

/** Replies in this process's memory. While one is written its pieces stand apart; once finished they are one text and its cuts. */
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

  open(tenantId: TenantId, replyId: MessageId): void {
    this.streams.set(replyId, new ReplyStream(tenantId, replyId));
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

class ReplyStream {
  private pieces: string[] = [];
  private text = '';
  /** End of each piece in `text`, once finished. */
  private cuts: Uint32Array | undefined;
  private length = 0;
  private asides: PlacedAside[] | undefined;
  private asideChars = 0;
  private readonly waiting = new Set<() => void>();
  ended: StreamEnd | undefined;
  endedAt = 0;
  bytes = 0;

  constructor(
    readonly tenantId: TenantId,
    readonly replyId: MessageId,
  ) {}

  append(pieces: readonly string[]): void {
    if (this.ended) return;
    for (const piece of pieces) {
      this.pieces.push(piece);
      this.length += piece.length;
    }
    this.wakeAll();
  }

  aside(aside: Aside): void {
    if (this.ended) return;
    (this.asides ??= []).push({ after: this.pieces.length, aside });
    this.asideChars += JSON.stringify(aside).length;
    this.wakeAll();
  }

  finish(end: StreamEnd, now: number): void {
    const cuts = new Uint32Array(this.pieces.length);
    let at = 0;
    for (let i = 0; i < cuts.length; i += 1) {
      at += this.pieces[i]!.length;
      cuts[i] = at;
    }
    this.text = this.pieces.join('');
    this.cuts = cuts;
    this.pieces = [];
    this.bytes = (this.text.length + this.asideChars) * 2 + cuts.byteLength + OVERHEAD_BYTES;
    this.ended = end;
    this.endedAt = now;
    this.wakeAll();
  }

  cursor(after: number, wake: () => void, withAsides: boolean): StreamCursor {
    let position = Math.min(after, this.count);
    let offset = this.offsetOf(position);
    // Someone who has seen the end event (number count + 1) has nothing left to get.
    let done = this.ended !== undefined && after > this.count;
    let nextAside = after === 0 ? 0 : (this.asides?.findLastIndex((one) => one.after < position) ?? -1) + 1;
    return {
      take: (maxPieces) => {
        if (done) return null;
        const pieces = this.slice(position, position + maxPieces);
        const reached = position + pieces.length;
        const end = reached === this.count ? this.ended : undefined;
        const asides = withAsides ? this.asidesFrom(nextAside, reached) : NO_ASIDES;
        if (pieces.length === 0 && !end && asides.length === 0) {
          this.waiting.add(wake);
          return null;
        }
        const batch: StreamBatch = {
          first: position + 1,
          offset,
          pieces,
          ...(asides.length > 0 && { asides }),
          ...(end && { end }),
        };
        nextAside += asides.length;
        position = reached;
        for (const piece of pieces) offset += piece.length;
        done = end !== undefined;
        return batch;
      },
      get exhausted() {
        return done;
      },
      close: () => this.waiting.delete(wake),
    };
  }

  private asidesFrom(index: number, reached: number): readonly PlacedAside[] {
    if (!this.asides || index >= this.asides.length) return NO_ASIDES;
    const rest = this.asides.slice(index);
    const beyond = rest.findIndex(({ after }) => after > reached);
    return beyond < 0 ? rest : rest.slice(0, beyond);
  }

  private get count(): number {
    return this.cuts ? this.cuts.length : this.pieces.length;
  }

  private slice(from: number, to: number): readonly string[] {
    if (!this.cuts) return this.pieces.slice(from, to);
    const pieces: string[] = [];
    for (let i = from; i < Math.min(to, this.cuts.length); i += 1) {
      pieces.push(this.text.slice(i === 0 ? 0 : this.cuts[i - 1], this.cuts[i]));
    }
    return pieces;
  }

  private offsetOf(position: number): number {
    if (position === 0) return 0;
    if (this.cuts) return this.cuts[position - 1]!;
    let offset = 0;
    for (let i = 0; i < position; i += 1) offset += this.pieces[i]!.length;
    return offset;
  }

  private wakeAll(): void {
    if (this.waiting.size === 0) return;
    const waiting = [...this.waiting];
    this.waiting.clear();
    for (const wake of waiting) wake();
  }
}
