import { Injectable, type CanActivate, type ExecutionContext } from '@nestjs/common';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { AppError, type Principal } from '../common';
import { CLOSED, headerText, userIdOf, type Bodies, type RouteAccess, type Strangers } from '../common/http';
import type { AccessWatch } from './access-watch';
import type { Authenticator, Credentials } from './authenticator';
import { grantOf } from './grant';

declare module 'fastify' {
  interface FastifyRequest {
    /** When its key let it in, by `performance.now()`. */
    admittedAt?: number;
  }
}

/**
 * So long an admission stands by itself. With the age of what is remembered of a key it stays within the second that is
 * promised for the end of access.
 */
const ADMITTED_MS = 100;

/**
 * Who is it, before what does he say: every request is let in or refused by its headers alone, before a byte of its
 * body is kept. A path that is none ends here as well, and so does a body of a stranger that is one too many.
 */
export function admitRequests(
  server: FastifyInstance,
  authenticator: Authenticator,
  watch: AccessWatch,
  strangers: Strangers,
  bodies: Bodies,
): void {
  server.addHook('onRequest', async (request, reply) => {
    const { raw } = request;
    strangers.locate(raw);
    if (request.is404) throw new AppError('NOT_FOUND', { message: 'No such path.' });
    const { access = CLOSED } = request.routeOptions.config;
    const credentials = credentialsOf(request);
    if (access.isPublic && credentials.apiKey === undefined) return bodies.begin(request, reply, true);
    const principal = await authenticator.authenticate(credentials);
    strangers.recognise(raw.socket);
    letIn(request, reply, principal, watch);
    request.admittedAt = performance.now();
    bodies.begin(request, reply, false);
  });
}

/**
 * A request whose body took its time, or that waited for its turn, is asked again who it is, right before it is worked
 * on: its key may have ended since. Added after what lets requests wait.
 */
export function admitAgain(server: FastifyInstance, authenticator: Authenticator, watch: AccessWatch): void {
  server.addHook('preValidation', (request, reply, done) => {
    const { admittedAt } = request;
    if (admittedAt === undefined || performance.now() - admittedAt < ADMITTED_MS) return done();
    authenticator
      .authenticate(credentialsOf(request))
      .then((principal) => letIn(request, reply, principal, watch))
      .then(() => done(), done);
  });
}

/** ORIGIN_NOT_ALLOWED, FORBIDDEN. */
function letIn(request: FastifyRequest, reply: FastifyReply, principal: Principal, watch: AccessWatch): void {
  const { access = CLOSED } = request.routeOptions.config;
  request.principal = principal;
  admitOrigin(request.headers.origin, principal, reply);
  if (!mayEnter(access, principal)) throw new AppError('FORBIDDEN');
  const scopes = [...access.scopes, 'platform' as const];
  request.hold = (lost) => watch.hold(grantOf(principal, scopes, request.ip), lost);
}

/** Closed by default: what says nothing of itself is the platform's alone, and nobody reaches a handler but through the door. */
@Injectable()
export class AuthGuard implements CanActivate {
  canActivate(context: ExecutionContext): boolean {
    const { principal, routeOptions } = context.switchToHttp().getRequest<FastifyRequest>();
    const { access = CLOSED } = routeOptions.config;
    if (principal ? mayEnter(access, principal) : access.isPublic) return true;
    throw new AppError('UNAUTHENTICATED');
  }
}

function mayEnter({ isPublic, scopes }: RouteAccess, { scopes: held }: Principal): boolean {
  return isPublic || held.has('platform') || scopes.some((scope) => held.has(scope));
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
    apiKey: headerText(request.headers, 'x-api-key') ?? headerText(request.headers, 'authorization'),
    tenantId: headerText(request.headers, 'tenant-id') ?? organization(request),
    userId: userIdOf(request.headers),
    address: request.ip,
  };
}

function organization(request: FastifyRequest): string | undefined {
  return /^\/+(api\/+)?v1\//.test(request.url)
    ? headerText(request.headers, 'openai-organization')
    : undefined;
}
