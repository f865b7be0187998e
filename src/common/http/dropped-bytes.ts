import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** So many bytes of buffers may lie dead before they are collected. */
const COLLECT_EVERY_BYTES = 8_388_608;

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as (options: { type: 'minor' }) => void;

let dropped = 0;

/**
 * Bytes were read and thrown away. They lie outside V8's heap, which therefore sees no reason to collect before there are
 * tens of megabytes of them; a short collection costs less than reading them did.
 */
export function noteDropped(bytes: number): void {
  dropped += bytes;
  if (dropped < COLLECT_EVERY_BYTES) return;
  dropped = 0;
  collect({ type: 'minor' });
}
