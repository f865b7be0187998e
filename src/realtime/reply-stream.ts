import type { MessageId, TenantId } from '../common';
import { ReplyText } from './reply-text';
import type { Aside, PlacedAside, StreamBatch, StreamCursor, StreamEnd } from './stream-log';

/** Bookkeeping of one kept reply beside its text, roughly. */
const OVERHEAD_BYTES = 512;
const NO_ASIDES: readonly PlacedAside[] = [];
/** With one take, of those at one place; one may be as large as what a tool gave. */
const ASIDES_A_TAKE = 64;

/** One reply in memory: its pieces, what happened beside them, and who waits for more. */
export class ReplyStream {
  readonly text = new ReplyText();
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
    for (const piece of pieces) this.text.push(piece);
    this.wakeAll();
  }

  aside(aside: Aside): void {
    if (this.ended) return;
    (this.asides ??= []).push({ after: this.text.count, aside });
    this.asideChars += JSON.stringify(aside).length;
    this.wakeAll();
  }

  finish(end: StreamEnd, now: number): void {
    this.text.seal();
    this.bytes = (this.text.length + this.asideChars) * 2 + this.text.overheadBytes + OVERHEAD_BYTES;
    this.ended = end;
    this.endedAt = now;
    this.wakeAll();
  }

  cursor(after: number, wake: () => void, withAsides: boolean): StreamCursor {
    const { text } = this;
    let position = Math.min(after, text.count);
    let offset = text.offsetOf(position);
    // Someone who has seen the end event (number count + 1) has nothing left to get.
    let done = this.ended !== undefined && after > text.count;
    let nextAside = after === 0 ? 0 : (this.asides?.findLastIndex((one) => one.after < position) ?? -1) + 1;
    return {
      take: (maxPieces, maxChars = Infinity) => {
        if (done) return null;
        let pieces = text.pieces(position, maxPieces, maxChars);
        let reached = position + pieces.length;
        const asides = withAsides ? this.asidesFrom(nextAside, reached) : NO_ASIDES;
        const more = this.asides?.[nextAside + asides.length];
        if (withAsides && more && more.after <= reached) {
          // There are more of them than one take brings: the text goes no further than they do.
          pieces = pieces.slice(0, more.after - position);
          reached = more.after;
        }
        const cut = withAsides && more !== undefined && more.after <= reached;
        const end = reached === text.count && !cut ? this.ended : undefined;
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
    const rest = this.asides.slice(index, index + ASIDES_A_TAKE);
    const beyond = rest.findIndex(({ after }) => after > reached);
    return beyond < 0 ? rest : rest.slice(0, beyond);
  }

  private wakeAll(): void {
    if (this.waiting.size === 0) return;
    const waiting = [...this.waiting];
    this.waiting.clear();
    for (const wake of waiting) wake();
  }
}
