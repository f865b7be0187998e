import type { FastifyInstance } from 'fastify';
import { AppError, badInput } from '../errors';

/**
 * NUL in a parameter ends before a handler sees it, for PostgreSQL's text can't hold it: in a path it is NOT_FOUND, for
 * nothing has such a name, and in a query BAD_INPUT.
 */
export function refuseNul(server: FastifyInstance): void {
  server.addHook('preValidation', (request, _reply, done) => {
    if (nulIn(request.params) !== undefined) return done(new AppError('NOT_FOUND'));
    const field = nulIn(request.query);
    done(field === undefined ? undefined : badInput(field, 'must not contain NUL'));
  });
}

function nulIn(parameters: unknown): string | undefined {
  for (const [name, value] of Object.entries((parameters ?? {}) as Record<string, unknown>)) {
    const texts: unknown[] = Array.isArray(value) ? value : [value];
    if (texts.some((text) => typeof text === 'string' && text.includes('\0'))) return name;
  }
  return undefined;
}
