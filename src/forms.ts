import type { FastifyInstance } from 'fastify';
import { AppError } from './common';
import { hasBody } from './common/http';
import { TenantSlots } from './fairness';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Takes `multipart/form-data`; every other route refuses it. */
    takesForm?: boolean;
    /** Longer bodies than BODY_LIMIT_BYTES, up to so many bytes: a file may be in the JSON. 32 at once in a process, 16 of a tenant. */
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

/** Of who was let in: no more long bodies at once than memory has room for, and half of them at most of one tenant. */
export function countLongBodies(server: FastifyInstance): void {
  const slots = new TenantSlots('recordings', MAX_LONG_BODIES_AT_ONCE);
  server.addHook('onRequest', (request, { raw }, done) => {
    const { takesForm, maxBodyBytes } = request.routeOptions.config;
    // Who left while the key was looked up closes nothing any more.
    if (maxBodyBytes === undefined || raw.destroyed) return done();
    if (takesForm && hasBody(request.headers) && !READABLE_TYPE.test(request.headers['content-type'] ?? ''))
      return done(new AppError('UNSUPPORTED_MEDIA_TYPE', { message: EITHER }));
    try {
      // Nobody comes so far without a key: no such route is open to all.
      raw.once('close', slots.take(request.principal!.tenantId));
    } catch (error) {
      return done(error as AppError);
    }
    done();
  });
}
