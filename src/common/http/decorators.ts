import { createParamDecorator, SetMetadata, type ExecutionContext } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import type { Principal, Scope } from '../principal';

declare module 'fastify' {
  interface FastifyRequest {
    principal?: Principal;
  }
}

export const PUBLIC = 'parley:public';
export const SCOPES_REQUIRED = 'parley:scopes';

/** No credential needed. One that is sent and wrong is refused all the same. */
export const Public = (): MethodDecorator & ClassDecorator => SetMetadata(PUBLIC, true);

/** Any one of these scopes lets a caller in; `platform` always does. A route that names none is the platform's alone. */
export const Scopes = (...scopes: Scope[]): MethodDecorator & ClassDecorator =>
  SetMetadata(SCOPES_REQUIRED, scopes);

/** Who is calling, as the guard found out. */
export const Caller = createParamDecorator((_: unknown, context: ExecutionContext): Principal => {
  const { principal } = context.switchToHttp().getRequest<FastifyRequest>();
  if (!principal) throw new Error('a public route has no caller');
  return principal;
});
