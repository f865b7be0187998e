import type { FastifyInstance } from 'fastify';
import { AppError } from './common';
import { hasBody } from './common/http';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Takes `multipart/form-data`; every other route refuses it. */
    takesForm?: boolean;
    /** Longer bodies than BODY_LIMIT_BYTES, up to so many bytes: a file may be in the JSON. 32 at once in a process. */
    maxBodyBytes?: number;
  }
}

/** Of a form with a file, for the adapter's `multipart`. A longer file is cut there, and its reader refuses it. */
export const FORM_LIMITS = {
  files: 1,
  fileSize: 26_214_400,
  fields: 20,
  fieldSize: 32_768,
  fieldNameSize: 100,
} as const;

/** Each is in memory twice, as it came and as it goes out: up to 60 MiB. */
const MAX_LONG_BODIES_AT_ONCE = 32;
const EITHER = 'Send JSON or a form: Content-Type application/json or multipart/form-data.';
const READABLE_TYPE = /^\s*(multipart\/form-data|application\/(json|x-www-form-urlencoded))/i;

/** The parser of forms is the whole server's; only routes that ask for it get what it parsed. */
export function refuseForms(server: FastifyInstance): void {
  server.addHook('preValidation', (request, _reply, done) => {
    const refused = request.isMultipart?.() && !request.routeOptions.config.takesForm;
    done(refused ? new AppError('UNSUPPORTED_MEDIA_TYPE') : undefined);
  });
}

/** For routes that say so themselves. */
export function takeLongBodies(server: FastifyInstance): void {
  server.addHook('onRoute', (route) => {
    const { maxBodyBytes } = (route.config ?? {}) as { maxBodyBytes?: number };
    if (maxBodyBytes !== undefined) route.bodyLimit = maxBodyBytes;
  });
}

/** Of who was let in: no more long bodies at once than memory has room for. */
export function countLongBodies(server: FastifyInstance): void {
  let longBodies = 0;
  server.addHook('onRequest', (request, { raw }, done) => {
    const { takesForm, maxBodyBytes } = request.routeOptions.config;
    // Who left while the key was looked up closes nothing any more.
    if (maxBodyBytes === undefined || raw.destroyed) return done();
    if (takesForm && hasBody(request.headers) && !READABLE_TYPE.test(request.headers['content-type'] ?? ''))
      return done(new AppError('UNSUPPORTED_MEDIA_TYPE', { message: EITHER }));
    if (longBodies >= MAX_LONG_BODIES_AT_ONCE)
      return done(new AppError('OVERLOADED', { retryAfterSeconds: 1 }));
    longBodies += 1;
    raw.once('close', () => (longBodies -= 1));
    done();
  });
}
