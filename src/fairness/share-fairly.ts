import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { TenantId } from '../common';
import type { FairShares, Ticket } from './fair-shares';

declare module 'fastify' {
  interface FastifyRequest {
    ticket?: Ticket;
  }
}

/**
 * What waits for something that is no work of this process: a provider, a reader, a batch of the log. It has its place for
 * a moment only.
 */
const ASKS: readonly [method: string | null, path: RegExp][] = [
  [null, /^\/+(api\/v1|v1)\/(chat|embeddings|images|audio)\//],
  [null, /^\/+(api\/)?copywriting\/dialogue\/sse\//],
  ['POST', /^\/+(api\/)?copywriting\//],
  ['POST', /^\/+api\/v1\/im\/messages/],
];
/** A refused client that asks again at once gets one answer in so long: it said so in its `retry-after`. */
const REFUSAL_MS = 1_000;
/** Between two refusals: what their clients send next does not come at once. */
const BETWEEN_REFUSALS_MS = 10;
/** Refusals that are held back; further ones are told at once, and their connections closed. */
const MAX_REFUSALS = 500;

/**
 * Puts every request of a known tenant under {@link FairShares}: counted from its head on, before its body is read, and
 * worked on in its turn, once the body is there. Added after what finds out who is calling.
 */
export function shareFairly(
  server: FastifyInstance,
  shares: FairShares,
  tenantOf: (request: FastifyRequest) => TenantId | undefined | Promise<TenantId | undefined>,
): void {
  let refusals = 0;
  let next = 0;
  const refuse = async (reply: FastifyReply, error: unknown): Promise<never> => {
    if (refusals < MAX_REFUSALS) {
      const now = performance.now();
      next = Math.max(next + BETWEEN_REFUSALS_MS, now + REFUSAL_MS);
      refusals += 1;
      await new Promise((resolve) => setTimeout(resolve, next - now).unref());
      refusals -= 1;
    } else void reply.header('connection', 'close');
    throw error;
  };

  server.addHook('onRequest', async (request, reply) => {
    const { raw } = reply;
    const tenantId = await tenantOf(request);
    // Who left while the key was looked up closes nothing any more.
    if (tenantId === undefined || raw.destroyed) return;
    const bodyBytes = bodyBytesOf(request);
    let ticket: Ticket;
    try {
      ticket = shares.enter(tenantId, raw, { bodyBytes, asks: asks(request) });
    } catch (error) {
      return refuse(reply, error);
    }
    request.ticket = ticket;
    if (bodyBytes === null) {
      request.measureBody = (bytes) => {
        try {
          shares.bodyCame(ticket, bytes);
          return undefined;
        } catch (error) {
          return refuse(reply, error);
        }
      };
    }
    raw.once('close', () => shares.leave(ticket));
  });

  server.addHook('preValidation', (request, _reply, done) => {
    const { ticket } = request;
    if (ticket) shares.work(ticket, done);
    else done();
  });
}

function asks({ url, method }: FastifyRequest): boolean {
  return ASKS.some(([only, path]) => (only === null || only === method) && path.test(url));
}

const inChunks = ({ headers }: FastifyRequest): boolean => headers['transfer-encoding'] !== undefined;

/**
 * What is going to be parsed: neither a form, which is read piece by piece, nor a body over the limit, which is not read.
 * Routes that take a file in their JSON have a bound of their own.
 */
function bodyBytesOf(request: FastifyRequest): number | null {
  const { headers, routeOptions } = request;
  const { maxBodyBytes } = routeOptions.config as { maxBodyBytes?: number };
  if (maxBodyBytes !== undefined || headers['content-type']?.startsWith('multipart/')) return 0;
  if (inChunks(request)) return null;
  const bytes = Number(headers['content-length'] ?? 0);
  return bytes > routeOptions.bodyLimit ? 0 : bytes;
}
