import type { BatchFormat, StreamBatch, StreamCursor } from '../realtime';

/** Events of an answer that nobody keeps, on their way to its one reader, who takes them as fast as it can write. */
export class EventQueue implements StreamCursor {
  wake = (): void => undefined;
  private events: string[] = [];
  private ended = false;
  private waiting = false;

  push(event: string): void {
    if (event === '') return;
    this.events.push(event);
    this.tell();
  }

  end(event: string): void {
    this.events.push(event);
    this.ended = true;
    this.tell();
  }

  take(maxPieces: number): StreamBatch | null {
    if (this.events.length === 0) {
      this.waiting = true;
      return null;
    }
    const all = this.events.length <= maxPieces;
    const pieces = all ? this.events : this.events.splice(0, maxPieces);
    if (all) this.events = [];
    return { first: 0, offset: 0, pieces };
  }

  get exhausted(): boolean {
    return this.ended && this.events.length === 0;
  }

  close(): void {
    this.events = [];
    this.wake = () => undefined;
  }

  private tell(): void {
    if (!this.waiting) return;
    this.waiting = false;
    this.wake();
  }
}

/** The queue holds events as they are written. */
export const asWritten: BatchFormat = ({ pieces }) => (pieces.length === 1 ? pieces[0]! : pieces.join(''));
