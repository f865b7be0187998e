import { applyDecorators, Controller } from '@nestjs/common';
import { ApiHeader, ApiSecurity, ApiTags } from '@nestjs/swagger';
import type { FastifyRequest } from 'fastify';
import { AppError, asId } from '../common';
import { Scopes } from '../common/http';

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

/**
 * `https://host:port` as the client wrote it. A trusted proxy says so in `x-forwarded-proto` and `x-forwarded-host`
 * (TRUST_PROXY), of which Fastify takes the last; what is neither a scheme nor a host is not believed.
 */
export function originOf({ headers, protocol, host }: FastifyRequest): string {
  const scheme = protocol === 'https' ? 'https' : 'http';
  return `${scheme}://${HOST.test(host) ? host : (headers.host ?? '')}`;
}
