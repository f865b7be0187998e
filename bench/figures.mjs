// What the measurements have in common: the arithmetic, and the table they are told in.

const sorted = (values) => [...values].sort((a, b) => a - b);
export const percentile = (values, p) => {
  const all = sorted(values);
  return all[Math.min(all.length - 1, Math.ceil((p / 100) * all.length) - 1)];
};
export const median = (values) => {
  const all = sorted(values);
  const half = all.length >> 1;
  return all.length % 2 ? all[half] : (all[half - 1] + all[half]) / 2;
};
export const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Collects rows; `judged` (the ratio, if nothing else is said) has to be at most, or with `atLeast` at least, `target`. */
export function rowsOf() {
  const rows = [];
  const row = (
    figure,
    unit,
    parley,
    baseline,
    { ratio, target, atLeast = false, digits = 1, judged = ratio } = {},
  ) => {
    const ok = target === undefined ? undefined : atLeast ? judged >= target : judged <= target;
    rows.push({ figure, unit, parley, baseline, ratio, target, atLeast, digits, ok });
  };
  return { rows, row };
}

export function table(rows) {
  const number = (value, digits, unit) =>
    value === undefined ? '-' : `${value.toFixed(digits)}${unit ? ` ${unit}` : ''}`;
  const aim = ({ target, atLeast, ratio, unit }) => {
    if (target === undefined) return '';
    const text =
      ratio === undefined ? number(target, 0, unit) : number(target, Number.isInteger(target * 10) ? 1 : 2);
    return `${atLeast ? '≥' : '≤'} ${text}`;
  };
  const cells = [
    ['figure', 'parley', 'baseline', 'ratio', 'target', ''],
    ...rows.map((row) => [
      row.figure,
      number(row.parley, row.digits, row.unit),
      number(row.baseline, row.digits, row.unit),
      number(row.ratio, 2),
      aim(row),
      row.ok === undefined ? '' : row.ok ? 'ok' : 'MISS',
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
