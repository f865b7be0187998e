import type { Flow } from '../model-services';
import type { BatchFormat, StreamBatch, StreamCursor } from '../realtime';

/** What one take brings, in UTF-16 units; one event may be more. */
const TAKE_CHARS = 65_536;

/**
 * Events of an answer that nobody keeps, on their way to its one reader, who takes them as fast as it can write. When
 * half of what may wait does wait there is no room: the model is read no further until the reader has caught up.
 * The rest is for what one read of the model may bring more.
 */
export class EventQueue implements StreamCursor, Flow {
  wake = (): void => undefined;
  private events: string[] = [];
  private chars = 0;
  private ended = false;
  private waiting = false;
  private closed = false;
  private roomy: PromiseWithResolvers<void> | undefined;

  /** ASCII but for what the model writes in other scripts: a unit is a byte, or up to three. */
  constructor(private readonly maxBytes: number) {}

  push(event: string): void {
    if (event === '' || this.closed) return;
    this.add(event);
    this.tell();
  }

  end(event: string): void {
    if (this.closed) return;
    this.add(event);
    this.ended = true;
    this.tell();
  }

  room(): Promise<void> | undefined {
    if (this.chars <= this.maxBytes / 2) return undefined;
    this.roomy ??= Promise.withResolvers<void>();
    return this.roomy.promise;
  }

  take(maxPieces: number): StreamBatch | null {
    if (this.events.length === 0) {
      this.waiting = true;
      return null;
    }
    let chars = 0;
    let count = 0;
    while (count < this.events.length && count < maxPieces && chars < TAKE_CHARS)
      chars += this.events[count++]!.length;
    const all = count === this.events.length;
    const pieces = all ? this.events : this.events.splice(0, count);
    if (all) this.events = [];
    this.chars -= chars;
    if (this.chars <= this.maxBytes / 2) this.makeRoom();
    return { first: 0, offset: 0, pieces };
  }

  get exhausted(): boolean {
    return this.ended && this.events.length === 0;
  }

  close(): void {
    this.closed = true;
    this.events = [];
    this.chars = 0;
    this.wake = () => undefined;
    this.makeRoom();
  }

  private add(event: string): void {
    this.events.push(event);
    this.chars += event.length;
  }

  private makeRoom(): void {
    this.roomy?.resolve();
    this.roomy = undefined;
  }

  private tell(): void {
    if (!this.waiting) return;
    this.waiting = false;
    this.wake();
  }
}

/** The queue holds events as they are written. */
export const asWritten: BatchFormat = ({ pieces }) => (pieces.length === 1 ? pieces[0]! : pieces.join(''));
