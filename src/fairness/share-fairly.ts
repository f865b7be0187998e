import type { FastifyInstance, FastifyRequest } from 'fastify';
import { AppError, type TenantId } from '../common';
import type { FairShares, Ticket } from './fair-shares';

declare module 'fastify' {
  interface FastifyRequest {
    ticket?: Ticket;
    /** Of a body in chunks: what had come before it, its first packet perhaps among it. */
    bytesBefore?: number;
  }
}

/** Where a provider is asked, or a stream is opened: what such a request waits for is not this process's work. */
const ASKS = /^\/+((api\/v1|v1)\/(chat|embeddings|images|audio)\/?|(api\/)?copywriting\/.*\/sse\/)/;
const GENERATES = /^\/+((api\/)?copywriting\/)/;
/** A refused client that asks again at once gets one answer in so long: it said so in its `retry-after`. */
const REFUSAL_MS = 1_000;
/** Refusals that are held back; further ones are told at once. */
const MAX_REFUSALS = 1_000;

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
  const refuse = async (error: unknown): Promise<never> => {
    if (refusals < MAX_REFUSALS) {
      refusals += 1;
      await new Promise((resolve) => setTimeout(resolve, REFUSAL_MS).unref());
      refusals -= 1;
    }
    throw error;
  };

  server.addHook('onRequest', async (request, { raw }) => {
    const tenantId = await tenantOf(request);
    // Who left while the key was looked up closes nothing any more.
    if (tenantId === undefined || raw.destroyed) return;
    let ticket: Ticket;
    try {
      ticket = shares.enter(tenantId, raw, { bodyBytes: bodyBytesOf(request), asks: asks(request) });
    } catch (error) {
      return refuse(error);
    }
    request.ticket = ticket;
    if (inChunks(request)) request.bytesBefore = request.socket.bytesRead;
    raw.once('close', () => shares.leave(ticket));
  });

  server.addHook('preValidation', (request, _reply, done) => {
    const { ticket, bytesBefore } = request;
    if (!ticket) return done();
    if (bytesBefore !== undefined) shares.bodyCame(ticket, request.socket.bytesRead - bytesBefore);
    shares.work(ticket, done);
  });
}

function asks({ url, method }: FastifyRequest): boolean {
  return ASKS.test(url) || (method === 'POST' && GENERATES.test(url));
}

const inChunks = ({ headers }: FastifyRequest): boolean => headers['transfer-encoding'] !== undefined;

const bodyBytesOf = (request: FastifyRequest): number | null =>
  inChunks(request) ? null : Number(request.headers['content-length'] ?? 0);
