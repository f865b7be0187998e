import { TokenBucket } from '../common';

/** Frames over the rate that are answered with an error before the connection is closed. */
const FLOOD_PATIENCE = 100;
/** No frame that only says how far a client is, or that it is there, is longer. */
const CONTROL_BYTES = 512;

/**
 * What those frames cost, of a budget of their own that is as large as that of the others: a client that has much to
 * take in must not lose its right to send by saying so. `read` is a row that is written, the others touch memory.
 */
const CONTROL_COSTS = { ack: 1 / 20, ping: 1 / 20, read: 1 / 5 } as const;
export type ControlKind = keyof typeof CONTROL_COSTS;
const QUOTE = 0x22;
const LETTER_T = 0x74;
/** Of `ack`, `ping` and `read`. */
const FIRST_LETTERS: ReadonlySet<number> = new Set([0x61, 0x70, 0x72]);
const CONTROL = /"type"\s*:\s*"(ack|ping|read)"/;

export interface FrameLimits {
  readonly framesPerSecond: number;
  readonly framesBurst: number;
}

/**
 * What a frame seems to be, before it is parsed: what is parsed must have been paid for. Who handles it looks whether
 * it is, and takes it for an ordinary one if it is not.
 */
export function controlKind(data: Buffer): ControlKind | undefined {
  if (data.length > CONTROL_BYTES) return undefined;
  // Nearly every client writes the type first: then one byte says that it is none of these.
  if (data[1] === QUOTE && data[2] === LETTER_T && data[8] === QUOTE && !FIRST_LETTERS.has(data[9]!))
    return undefined;
  return CONTROL.exec(data.toString('latin1'))?.[1] as ControlKind | undefined;
}

/** How many frames one connection may send: each has its cost. */
export class FrameRate {
  private readonly frames: TokenBucket;
  private controls: TokenBucket | undefined;
  private refused = 0;

  constructor(private readonly limits: FrameLimits) {
    this.frames = new TokenBucket(limits.framesBurst, Date.now());
  }

  /** False: over the rate, and not to be handled. */
  admit(now: number, control?: ControlKind): boolean {
    const { framesPerSecond, framesBurst } = this.limits;
    if (control) this.controls ??= new TokenBucket(framesBurst, now);
    const bucket = control ? this.controls! : this.frames;
    if (bucket.take(now, framesBurst, framesPerSecond, control && CONTROL_COSTS[control])) {
      if (bucket.left > framesBurst / 2) this.refused = 0;
      return true;
    }
    this.refused += 1;
    return false;
  }

  /** It went on and on: the connection is to be closed. */
  get flooding(): boolean {
    return this.refused > FLOOD_PATIENCE;
  }
}
