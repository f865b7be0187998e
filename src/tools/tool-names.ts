import { createHash } from 'node:crypto';

const MAX_NAME_CHARS = 64;
const MARK_CHARS = 7;

/**
 * The name of a source's tool that a model sees. When it is too long or already taken it gets a mark made of both
 * names, so that it does not depend on what else is there. Null when even that is taken: the source named it twice.
 */
export function toolName(source: string, tool: string, taken: ReadonlySet<string>): string | null {
  const plain = `${source}_${tool}`.replace(/[^A-Za-z0-9_-]/g, '_');
  if (plain.length <= MAX_NAME_CHARS && !taken.has(plain)) return plain;
  const mark = createHash('sha256')
    .update(JSON.stringify([source, tool]))
    .digest('hex');
  const name = `${plain.slice(0, MAX_NAME_CHARS - MARK_CHARS)}_${mark.slice(0, MARK_CHARS - 1)}`;
  return taken.has(name) ? null : name;
}
