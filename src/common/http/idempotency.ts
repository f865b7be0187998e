import type { FastifyRequest } from 'fastify';
import { badInput } from '../errors';

const MAX_IDEMPOTENCY_KEY_CHARS = 255;

/** Null when none is sent. BAD_INPUT for one that is too long or sent twice. */
export function idempotencyKeyOf({ headers }: FastifyRequest): string | null {
  const header = headers['idempotency-key'];
  if (header === undefined || header === '') return null;
  if (typeof header !== 'string' || header.length > MAX_IDEMPOTENCY_KEY_CHARS) {
    throw badInput('Idempotency-Key', `must be at most ${MAX_IDEMPOTENCY_KEY_CHARS} characters`);
  }
  return header;
}
