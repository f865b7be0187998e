import { availableParallelism } from 'node:os';
import { setFlagsFromString } from 'node:v8';

/**
 * How V8 is to collect the garbage of this server, whose objects nearly all die within a batch's time. Imported before
 * everything else, so that it holds for however the server is started (docs/sizing.md, "Messages").
 */

// What outlived a few collections in a busy moment would be made in the old generation from then on, garbage and all:
// measured, 17 MB/s of it under a load of chat messages, and a full collection every few seconds.
setFlagsFromString('--no-allocation-site-pretenuring');
// A full collection, which stops everything for some 20 ms, when the old generation is three times what the last one
// left. By its own estimate V8 starts one as soon as it has grown by a young generation's size, which for a small heap
// is always.
setFlagsFromString('--heap-growing-percent=200');
// On two processors the helper threads take the place of Postgres and of the clients: the short collections waited for
// them three times as long as they worked.
if (availableParallelism() <= 2) setFlagsFromString('--no-parallel-scavenge');
