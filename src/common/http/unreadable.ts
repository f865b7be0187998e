import type { FastifyInstance } from 'fastify';
import { badInput } from '../errors';

/**
 * NUL in a path's or a query's parameter is BAD_INPUT, before a handler sees it: no id, name or cursor has one, and
 * PostgreSQL's text can't hold it.
 */
export function refuseNul(server: FastifyInstance): void {
  server.addHook('preValidation', (request, _reply, done) => {
    done(nulIn(request.params) ?? nulIn(request.query));
  });
}

function nulIn(parameters: unknown): Error | undefined {
  for (const [name, value] of Object.entries((parameters ?? {}) as Record<string, unknown>)) {
    const texts: unknown[] = Array.isArray(value) ? value : [value];
    if (texts.some((text) => typeof text === 'string' && text.includes('\0')))
      return badInput(name, 'must not contain NUL');
  }
  return undefined;
}
