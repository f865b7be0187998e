import { randomUUID } from 'node:crypto';
import type { FastifyInstance, FastifyReply } from 'fastify';

const ALLOWED_HEADERS =
  'authorization, content-type, idempotency-key, last-event-id, openai-organization, openai-project, tenant-id, user-id, x-api-key, ' +
  // what the official OpenAI SDKs send of themselves
  'x-stainless-arch, x-stainless-lang, x-stainless-os, x-stainless-package-version, x-stainless-retry-count, ' +
  'x-stainless-runtime, x-stainless-runtime-version, x-stainless-timeout';
const MAX_AGE_SECONDS = 600;

/**
 * A browser's question before a request (CORS preflight). It carries no key, so no tenant's list can be asked: every
 * origin may send the request, and the request itself is refused if its tenant does not let that origin in.
 */
export function answerPreflights(server: FastifyInstance): void {
  server.addHook('onRequest', async (request, reply) => {
    const { origin, 'access-control-request-method': method } = request.headers;
    if (request.method !== 'OPTIONS' || origin === undefined || method === undefined) return;
    await reply
      .status(204)
      .headers({
        'access-control-allow-origin': origin,
        'access-control-allow-methods': 'GET, POST, PUT, PATCH, DELETE',
        'access-control-allow-headers': ALLOWED_HEADERS,
        'access-control-max-age': MAX_AGE_SECONDS,
        vary: 'origin',
      })
      .send();
  });
}

/** A body of no bytes is none, whatever its announced type: many clients send `Content-Type` with every request. */
export function forgiveEmptyBodies(server: FastifyInstance): void {
  server.addHook('onRequest', (request, _reply, done) => {
    const { headers } = request;
    if (headers['transfer-encoding'] === undefined && (headers['content-length'] ?? '0') === '0')
      delete headers['content-type'];
    done();
  });
}

/** `x-request-id` on every answer: what a client quotes when it asks what happened. */
export function nameRequests(server: FastifyInstance): void {
  server.addHook('onRequest', (_request, reply, done) => {
    nameRequest(reply);
    done();
  });
}

/** For what no hook sees. */
export function nameRequest(reply: FastifyReply): void {
  void reply.header('x-request-id', `req_${randomUUID().replaceAll('-', '')}`);
}
