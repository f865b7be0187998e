import { parseExact } from '../common';

/** What is left of a recalled message: who, where, and the sender's own id of it. */
export function tombstone(frame: string): string {
  const { type, source, target, msgType, msg } = parseExact(frame);
  const { msgId, timestamp } = (msg ?? {}) as Record<string, unknown>;
  return JSON.stringify({ type, source, target, msgType, msg: { msgId, timestamp } });
}
