// `npm test`: the whole gate. Ends with `N passed, N failed` alone on a line, from jest's own result.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const steps = [
  ['format', ['prettier', '--check', '--log-level', 'warn', '.']],
  ['lint', ['eslint', '--max-warnings', '0', '.']],
  ['types', ['tsc', '--noEmit', '-p', 'tsconfig.json']],
  ['layering', ['depcruise', '--output-type', 'err', 'src']],
];
const jestOnly = process.argv.includes('--jest-only');
const checksOnly = process.argv.includes('--checks-only');
let failedStep = false;
if (!jestOnly) {
  for (const [name, [command, ...args]] of steps) {
    process.stderr.write(`${name} …\n`);
    const { status } = spawnSync(command, args, { stdio: 'inherit', shell: process.platform === 'win32' });
    if (status !== 0) {
      process.stderr.write(`${name} failed\n`);
      failedStep = true;
    }
  }
}
if (checksOnly) process.exit(failedStep ? 1 : 0);
const folder = mkdtempSync(join(tmpdir(), 'parley-test-'));
const outputFile = join(folder, 'result.json');
const { status } = spawnSync(
  'node',
  [
    '--experimental-vm-modules',
    '--disable-warning=ExperimentalWarning',
    'node_modules/jest/bin/jest.js',
    '--json',
    `--outputFile=${outputFile}`,
    '--maxWorkers=2',
  ],
  { stdio: ['ignore', 'ignore', 'inherit'] },
);
let result = null;
try {
  result = JSON.parse(readFileSync(outputFile, 'utf8'));
} catch {
  process.stderr.write('jest wrote no result\n');
}
rmSync(folder, { recursive: true, force: true });
const failed =
  (result?.numFailedTests ?? 0) +
  (result?.numRuntimeErrorTestSuites ?? 0) +
  (failedStep ? 1 : 0) +
  (result ? 0 : 1);
process.stdout.write(`${result?.numPassedTests ?? 0} passed, ${failed} failed\n`);
process.exit(failed > 0 || status !== 0 ? 1 : 0);
