import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ERRORS } from './errors';

const page = readFileSync(join(__dirname, '../../docs/errors.md'), 'utf8');
const anchorOf = (code: string): string => code.toLowerCase().replaceAll('_', '-');
const documented = [...page.matchAll(/^\| \[([A-Z_]+)\]\(#([a-z-]+)\) +\| (\d{3}) +\| (.+?) +\|$/gm)].map(
  ([, code, anchor, status, message]) => ({ code, anchor, status: Number(status), message }),
);

describe('docs/errors.md', () => {
  it('has the codes, statuses and texts of the table in errors.ts, in its order', () => {
    const table = Object.entries(ERRORS).map(([code, { status, message }]) => ({
      code,
      anchor: anchorOf(code),
      status,
      message,
    }));
    expect(documented).toEqual(table);
  });

  it.each(Object.entries(ERRORS))('says when %s comes and what to do', (code, { status }) => {
    const section = page.split(`\n## ${anchorOf(code)}\n`)[1]?.split('\n## ')[0] ?? '';
    expect(section).toContain(`\`${code}\`, ${status}.`);
    expect(section).toMatch(/\*\*When:\*\* \S/);
    expect(section).toMatch(/\*\*What to do:\*\* \S/);
  });

  it('has no section of a code that is gone', () => {
    const sections = [...page.matchAll(/^## (.+)$/gm)].map(([, heading]) => heading);
    expect(sections).toEqual(Object.keys(ERRORS).map(anchorOf));
  });
});
