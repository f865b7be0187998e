// node bench/run.mjs builds|devices|dialogue|fairness|im|openai|stalled|strangers|usage|webhooks [--json] [--only <section>,…] [--cpu-prof <folder>]
//   openai: [--kinds <kind>,…], im and usage: [--rows <n>], builds: --against <folder> [--rounds <n>]
// Exit code 0 unless something breaks: a missed target is printed, not an error.
import { availableParallelism, loadavg } from 'node:os';
import { parseArgs } from 'node:util';
import { table } from './figures.mjs';
import { stopAll } from './processes.mjs';
import * as builds from './builds.mjs';
import * as devices from './devices.mjs';
import * as dialogue from './dialogue.mjs';
import * as fairness from './fairness.mjs';
import * as im from './im.mjs';
import * as openai from './openai.mjs';
import * as stalled from './stalled.mjs';
import * as strangers from './strangers.mjs';
import * as usage from './usage.mjs';
import * as webhooks from './webhooks.mjs';

const BENCHES = { builds, devices, dialogue, fairness, im, openai, stalled, strangers, usage, webhooks };

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    json: { type: 'boolean' },
    only: { type: 'string' },
    'cpu-prof': { type: 'string' },
    kinds: { type: 'string', default: openai.KIND_NAMES.join(',') }, // of `openai`
    against: { type: 'string' }, // of `builds`: the folder of the other build
    rounds: { type: 'string', default: '8' }, // of `builds`
    rows: { type: 'string', default: '5000000' }, // of `im history`, and of the ledger in `usage`
    short: { type: 'boolean' }, // of `fairness`
  },
});
const bench = positionals.length === 1 && Object.hasOwn(BENCHES, positionals[0]) && BENCHES[positionals[0]];
const only = values.only?.split(',') ?? bench.SECTIONS;
const kinds = values.kinds.split(',');
const manyRows = Number(values.rows);
if (
  !bench ||
  only.some((name) => !bench.SECTIONS.includes(name)) ||
  kinds.some((name) => !openai.KIND_NAMES.includes(name)) ||
  !(manyRows >= im.FEW_ROWS)
) {
  const rows = ` [--rows <${im.FEW_ROWS} or more>]`;
  const further = {
    openai: ` [--kinds ${openai.KIND_NAMES}]`,
    im: rows,
    usage: rows,
    builds: ' --against <folder> [--rounds <n>]',
    fairness: ' [--short]',
  };
  for (const [name, { SECTIONS }] of Object.entries(BENCHES)) {
    console.error(
      `usage: run.mjs ${name} [--json] [--only ${SECTIONS.join(',')}] [--cpu-prof <folder>]${further[name] ?? ''}`,
    );
  }
  process.exit(2);
}

const began = performance.now();
const say = (text) =>
  process.stderr.write(`${((performance.now() - began) / 1000).toFixed(1).padStart(6)} s  ${text}\n`);

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => void stopAll().finally(() => process.exit(130)));
}
const [load] = loadavg();
if (load > availableParallelism() / 4)
  say(`this machine is busy (load ${load.toFixed(1)}): times will be too long`);
try {
  const rows = await bench.measure({
    only,
    profileDir: values['cpu-prof'],
    kinds,
    manyRows,
    against: values.against,
    rounds: Number(values.rounds),
    short: values.short,
    say,
  });
  say('stopping');
  await stopAll();
  console.log(values.json ? JSON.stringify(rows, null, 2) : table(rows));
  process.exit(0);
} catch (error) {
  console.error(error);
  await stopAll();
  process.exit(1);
}
