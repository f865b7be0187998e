import { createParamDecorator, type ExecutionContext } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import { hasUnusualNumbers, parseExact } from '../exact-json';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** {@link ExactBody} has every number of the body as it was written. */
    exactNumbers?: boolean;
  }
  interface FastifyRequest {
    /** The body's text, where a double does not hold all of its numbers. */
    exactText?: string;
  }
}

/** For the parser of JSON, with a body that it has taken: keeps its text where the route asks for its digits. */
export function keepDigits(request: FastifyRequest, body: string | Buffer): void {
  if (!request.routeOptions.config.exactNumbers) return;
  const text = body.toString().replace(/^\uFEFF/, '');
  if (hasUnusualNumbers(text)) request.exactText = text;
}

/**
 * The body's fields as they came: a number that a double does not hold is raw JSON, which `JSON.stringify` writes as it
 * was. To be used beside a checked `@Body()`, on a route with `exactNumbers`.
 */
export const ExactBody = createParamDecorator((_: unknown, context: ExecutionContext) => {
  const { exactText, body } = context.switchToHttp().getRequest<FastifyRequest>();
  return exactText === undefined ? (body ?? {}) : parseExact(exactText);
});
