import type { FastifyInstance, FastifyRequest } from 'fastify';
import { AppError } from './common';

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
  server.addHook('preValidation', async (request) => {
    if (request.isMultipart?.() && !request.routeOptions.config.takesForm) {
      throw new AppError('UNSUPPORTED_MEDIA_TYPE');
    }
  });
}

/** For routes that say so themselves. */
export function takeLongBodies(server: FastifyInstance): void {
  server.addHook('onRoute', (route) => {
    const { maxBodyBytes } = (route.config ?? {}) as { maxBodyBytes?: number };
    if (maxBodyBytes !== undefined) route.bodyLimit = maxBodyBytes;
  });
}

/**
 * Before a byte of a file is read: no stranger's is, nor more at once than memory has room for. Every other route's key
 * is asked for by the guard, once the body is there.
 */
export function admitUploads(
  server: FastifyInstance,
  authenticate: (request: FastifyRequest) => Promise<unknown>,
): void {
  let longBodies = 0;
  server.addHook('onRequest', async (request, { raw }) => {
    const { takesForm, maxBodyBytes } = request.routeOptions.config;
    if (!takesForm && maxBodyBytes === undefined) return;
    await authenticate(request);
    if (maxBodyBytes === undefined) return;
    if (takesForm && hasBody(request) && !READABLE_TYPE.test(request.headers['content-type'] ?? ''))
      throw new AppError('UNSUPPORTED_MEDIA_TYPE', { message: EITHER });
    if (longBodies >= MAX_LONG_BODIES_AT_ONCE) throw new AppError('OVERLOADED', { retryAfterSeconds: 1 });
    // Who left while the key was looked up closes nothing any more.
    if (raw.destroyed) return;
    longBodies += 1;
    raw.once('close', () => (longBodies -= 1));
  });
}

const hasBody = ({ headers }: FastifyRequest): boolean =>
  headers['transfer-encoding'] !== undefined || (headers['content-length'] ?? '0') !== '0';
