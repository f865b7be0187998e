import { applyDecorators, Controller } from '@nestjs/common';
import { ApiHeader, ApiSecurity, ApiTags } from '@nestjs/swagger';
import type { FastifyRequest } from 'fastify';
import { AppError, asId, badInput } from '../common';
import { Scopes } from '../common/http';

const MAX_IDEMPOTENCY_KEY_CHARS = 255;
const HOST = /^(?:[\w.-]+|\[[\da-f:.]+\])(?::\d{1,5})?$/i;
/** A provider that keeps refusing for rate was already asked three times: a client should leave it alone for a while. */
export const PROVIDER_RATE_RETRY_SECONDS = 10;

/** A part of the assistant platform under `copywriting/<path>`, with and without `/api`, for keys with the scope `dialogue`. */
export function PlatformController(path = ''): ClassDecorator {
  return applyDecorators(
    ApiTags('assistant platform'),
    ApiSecurity('x-api-key'),
    ApiHeader({ name: 'tenant-id', required: false }),
    ApiHeader({ name: 'user-id', required: false }),
    Scopes('dialogue'),
    Controller([`api/copywriting${path}`, `copywriting${path}`]),
  );
}

/** An id of the path; what can't be one is an id nobody has. */
export function known<T extends string>(value: string): T {
  const id = asId(value);
  if (!id) throw new AppError('NOT_FOUND');
  return id as unknown as T;
}

/** Null when none is sent. BAD_INPUT for one that is too long or sent twice. */
export function idempotencyKeyOf({ headers }: FastifyRequest): string | null {
  const header = headers['idempotency-key'];
  if (header === undefined || header === '') return null;
  if (typeof header !== 'string' || header.length > MAX_IDEMPOTENCY_KEY_CHARS) {
    throw badInput('Idempotency-Key', `must be at most ${MAX_IDEMPOTENCY_KEY_CHARS} characters`);
  }
  return header;
}

/**
 * `https://host:port` as the client wrote it. A trusted proxy says so in `x-forwarded-proto` and `x-forwarded-host`
 * (TRUST_PROXY), of which Fastify takes the last; what is neither a scheme nor a host is not believed.
 */
export function originOf({ headers, protocol, host }: FastifyRequest): string {
  const scheme = protocol === 'https' ? 'https' : 'http';
  return `${scheme}://${HOST.test(host) ? host : (headers.host ?? '')}`;
}
