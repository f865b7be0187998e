// Imported into a server whose memory is measured. On SIGUSR2: a full collection, then what is held after it, in bytes,
// into a file of the folder after the `?`.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc');
const folder = decodeURIComponent(new URL(import.meta.url).search.slice(1));
process.on('SIGUSR2', () => {
  collect();
  const { heapUsed, external } = process.memoryUsage();
  writeFileSync(join(folder, `parley-bench-${process.pid}`), String(heapUsed + external));
});
