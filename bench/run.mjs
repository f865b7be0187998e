// node bench/run.mjs dialogue [--json] [--only memory,sql,first,burst,paced] [--cpu-prof <folder>]
// Exit code 0 unless something breaks: a missed target is printed, not an error.
import { availableParallelism, loadavg } from 'node:os';
import { parseArgs } from 'node:util';
import { dialogue, SECTIONS } from './dialogue.mjs';
import { stopAll } from './processes.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { json: { type: 'boolean' }, only: { type: 'string' }, 'cpu-prof': { type: 'string' } },
});
const only = values.only?.split(',') ?? SECTIONS;
if (positionals.join() !== 'dialogue' || only.some((name) => !SECTIONS.includes(name))) {
  console.error(`usage: run.mjs dialogue [--json] [--only ${SECTIONS.join(',')}] [--cpu-prof <folder>]`);
  process.exit(2);
}

const began = performance.now();
const say = (text) =>
  process.stderr.write(`${((performance.now() - began) / 1000).toFixed(1).padStart(6)} s  ${text}\n`);

function table(rows) {
  const number = (value, digits, unit) =>
    value === undefined ? '-' : `${value.toFixed(digits)}${unit ? ` ${unit}` : ''}`;
  const cells = [
    ['figure', 'parley', 'baseline', 'ratio', 'target', ''],
    ...rows.map(({ figure, unit, parley, baseline, ratio, target, digits, ok }) => [
      figure,
      number(parley, digits, unit),
      number(baseline, digits, unit),
      number(ratio, 2, ''),
      target === undefined
        ? ''
        : `≤ ${number(target, ratio === undefined ? 0 : 1, ratio === undefined ? unit : '')}`,
      target === undefined ? '' : ok ? 'ok' : 'MISS',
    ]),
  ];
  const widths = cells[0].map((_, column) => Math.max(...cells.map((line) => line[column].length)));
  return cells
    .map((line) =>
      line
        .map((cell, column) =>
          column === 0 || column === 5 ? cell.padEnd(widths[column]) : cell.padStart(widths[column]),
        )
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => void stopAll().finally(() => process.exit(130)));
}
const [load] = loadavg();
if (load > availableParallelism() / 4)
  say(`this machine is busy (load ${load.toFixed(1)}): times will be too long`);
try {
  const rows = await dialogue({ only, profileDir: values['cpu-prof'], say });
  say('stopping');
  await stopAll();
  console.log(values.json ? JSON.stringify(rows, null, 2) : table(rows));
  process.exit(0);
} catch (error) {
  console.error(error);
  await stopAll();
  process.exit(1);
}
