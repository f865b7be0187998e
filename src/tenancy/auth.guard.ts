import { Injectable, type CanActivate, type ExecutionContext } from '@nestjs/common';
import { Reflector } from '@nestjs/core';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { AppError, type Principal, type Scope } from '../common';
import { PUBLIC, SCOPES_REQUIRED } from '../common/http';
import { AccessWatch } from './access-watch';
import { Authenticator, type Credentials } from './authenticator';
import { grantOf } from './grant';

/** One guard for every HTTP route, closed by default: no decorator on a route means the platform's root key alone. */
@Injectable()
export class AuthGuard implements CanActivate {
  constructor(
    private readonly authenticator: Authenticator,
    private readonly reflector: Reflector,
    private readonly access: AccessWatch,
  ) {}

  async canActivate(context: ExecutionContext): Promise<boolean> {
    const request = context.switchToHttp().getRequest<FastifyRequest>();
    const targets = [context.getHandler(), context.getClass()];
    const credentials = credentialsOf(request);
    if (this.reflector.getAllAndOverride<boolean>(PUBLIC, targets) && credentials.apiKey === undefined)
      return true;
    const principal = await this.authenticator.authenticate(credentials);
    request.principal = principal;
    admitOrigin(request.headers.origin, principal, context.switchToHttp().getResponse<FastifyReply>());
    if (this.reflector.getAllAndOverride<boolean>(PUBLIC, targets)) return true;
    const scopes = this.reflector.getAllAndOverride<Scope[] | undefined>(SCOPES_REQUIRED, targets) ?? [];
    if (!principal.scopes.has('platform') && !scopes.some((scope) => principal.scopes.has(scope))) {
      throw new AppError('FORBIDDEN');
    }
    request.hold = (lost) => this.access.hold(grantOf(principal, scopes, credentials.address), lost);
    return true;
  }
}

/** The tenant's allow-list of browser origins. Access rests on the key; the list keeps foreign pages from using one they got hold of. */
function admitOrigin(origin: string | undefined, { allowedOrigins }: Principal, reply: FastifyReply): void {
  if (origin === undefined) return;
  if (allowedOrigins.length > 0 && !allowedOrigins.includes(origin)) throw new AppError('ORIGIN_NOT_ALLOWED');
  void reply.header('access-control-allow-origin', origin).header('vary', 'origin');
}

/** `x-api-key`, else `Authorization`; `tenant-id`, where an OpenAI SDK asks its `organization`; `user-id`. */
export function credentialsOf(request: FastifyRequest): Credentials {
  return {
    apiKey: header(request, 'x-api-key') ?? header(request, 'authorization'),
    tenantId: header(request, 'tenant-id') ?? organization(request),
    userId: header(request, 'user-id'),
    address: request.ip,
  };
}

function organization(request: FastifyRequest): string | undefined {
  return /^\/+(api\/+)?v1\//.test(request.url) ? header(request, 'openai-organization') : undefined;
}

function header(request: FastifyRequest, name: string): string | undefined {
  const value = request.headers[name];
  const text = Array.isArray(value) ? value[0] : value;
  // Header bytes arrive as Latin-1; ids of users are UTF-8 like all text.
  return text === undefined ? undefined : Buffer.from(text, 'latin1').toString('utf8').trim();
}
