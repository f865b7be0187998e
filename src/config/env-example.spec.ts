import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { VARIABLES } from './variables';

const file = join(__dirname, '../../.env.example');

/** A comment that describes, then NAME=example; commented out where there is no default. */
const rendered = Object.entries(VARIABLES)
  .map(([name, { describe, example }]) => `# ${describe}\n${example === '' ? '# ' : ''}${name}=${example}\n`)
  .join('\n');

describe('.env.example', () => {
  it('lists every variable as src/config/variables.ts has it, and no other', () => {
    expect(readFileSync(file, 'utf8')).toBe(rendered);
  });

  it('holds examples that are accepted', () => {
    for (const { example, parse } of Object.values(VARIABLES)) {
      expect(() => parse(example === '' ? undefined : example)).not.toThrow();
    }
  });
});
