import type { FastifyInstance } from 'fastify';
import { AppError } from './common';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Takes `multipart/form-data`; every other route refuses it. */
    takesForm?: boolean;
    /** Longer bodies than BODY_LIMIT_BYTES, up to so many bytes: a file may be in the JSON. */
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
