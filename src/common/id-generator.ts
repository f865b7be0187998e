import type { Id } from './ids';

/** 2024-01-01T00:00:00Z: 41 bits of milliseconds from here last until 2093. */
const EPOCH_MS = 1_704_067_200_000;
const SLOT_BITS = 10n;
const SEQUENCE_BITS = 12n;
const MAX_SEQUENCE = 4095;
const ID_UNITS_A_MS = 2 ** 22;
export const MAX_NODE_SLOT = 1023;

/** When an id was made, in epoch milliseconds. */
export function timeOfId(id: string): number {
  // The bits that a double drops are far below the milliseconds.
  return Math.floor(Number(id) / ID_UNITS_A_MS) + EPOCH_MS;
}

/** The smallest id that can have been made at that time or later. */
export function idAtTime(ms: number): string {
  return (BigInt(Math.max(0, Math.floor(ms) - EPOCH_MS)) << (SLOT_BITS + SEQUENCE_BITS)).toString();
}

/**
 * Time-ordered 64-bit ids: 41 bits of milliseconds, 10 of the node's slot, 12 of a counter. Unique as long as no two
 * live processes share a slot, which the node registry sees to. A clock that steps back is waited out by counting on
 * from the newest millisecond used.
 */
export class IdGenerator {
  private lastMs = 0;
  private sequence = 0;

  constructor(
    private slot = 0,
    private readonly now: () => number = Date.now,
  ) {}

  useSlot(slot: number): void {
    if (!Number.isInteger(slot) || slot < 0 || slot > MAX_NODE_SLOT)
      throw new RangeError('node slot out of range');
    this.slot = slot;
  }

  next<T extends Id<string>>(): T {
    const ms = this.now() - EPOCH_MS;
    if (ms > this.lastMs) {
      this.lastMs = ms;
      this.sequence = 0;
    } else if (this.sequence === MAX_SEQUENCE) {
      // Borrow the next millisecond rather than block: ordering stays, the clock catches up.
      this.lastMs += 1;
      this.sequence = 0;
    } else {
      this.sequence += 1;
    }
    const id =
      (BigInt(this.lastMs) << (SLOT_BITS + SEQUENCE_BITS)) |
      (BigInt(this.slot) << SEQUENCE_BITS) |
      BigInt(this.sequence);
    return id.toString() as T;
  }
}
