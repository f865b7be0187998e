import { Catch, HttpException, Logger, type ArgumentsHost, type ExceptionFilter } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { AppError, type ErrorCode } from '../errors';

/** How one wire shows a failure. The first whose `prefix` fits the path is asked. */
export interface ErrorShape {
  readonly prefix: RegExp;
  readonly render: (error: AppError) => {
    status: number;
    body: unknown;
    contentType?: string;
    headers?: Readonly<Record<string, string>>;
  };
}

const PLAIN: Pick<ErrorShape, 'render'> = {
  render: ({ status, message, code }) => ({ status, body: { error: message, code } }),
};

const BY_STATUS: Readonly<Record<number, ErrorCode>> = {
  400: 'BAD_INPUT',
  401: 'UNAUTHENTICATED',
  403: 'FORBIDDEN',
  404: 'NOT_FOUND',
  408: 'BODY_TOO_SLOW',
  409: 'CONFLICT',
  413: 'BODY_TOO_LARGE',
  // An id longer than any there is.
  414: 'NOT_FOUND',
  415: 'UNSUPPORTED_MEDIA_TYPE',
  429: 'RATE_LIMITED',
  503: 'OVERLOADED',
};

/** Whatever was thrown, as an AppError that may be shown. What we did not throw ourselves says nothing of its insides. */
export function toAppError(thrown: unknown): AppError {
  if (thrown instanceof AppError) return thrown;
  const status =
    thrown instanceof HttpException
      ? thrown.getStatus()
      : ((thrown as { statusCode?: number } | null)?.statusCode ?? 500);
  const code = BY_STATUS[status];
  if (!code) return new AppError('INTERNAL', { cause: thrown });
  if (code === 'BAD_INPUT') {
    const about = (thrown as Error).message;
    const message = /json/i.test(about) ? 'body: is not valid JSON' : 'The request could not be read.';
    return new AppError(code, { cause: thrown, message });
  }
  if (code === 'NOT_FOUND') return new AppError(code, { cause: thrown, message: 'No such path.' });
  return new AppError(code, { cause: thrown });
}

/** The last word on every HTTP failure: the wire's own shape, the right status, no stack. */
@Catch()
export class ErrorFilter implements ExceptionFilter {
  private readonly logger = new Logger('http');

  constructor(private readonly shapes: readonly ErrorShape[]) {}

  catch(thrown: unknown, host: ArgumentsHost): void {
    const http = host.switchToHttp();
    this.answer(thrown, http.getRequest<FastifyRequest>(), http.getResponse<FastifyReply>());
  }

  answer(thrown: unknown, request: FastifyRequest, reply: FastifyReply): void {
    const error = toAppError(thrown);
    if (error.code === 'INTERNAL')
      this.logger.error({ err: error.cause ?? error, path: pathOf(request) }, 'unexpected');
    if (reply.sent || reply.raw.headersSent) {
      reply.raw.destroy();
      return;
    }
    const shape = this.shapes.find(({ prefix }) => prefix.test(pathOf(request)));
    const { status, body, contentType, headers } = (shape ?? PLAIN).render(error);
    if (error.retryAfterSeconds !== undefined)
      void reply.header('retry-after', String(Math.ceil(error.retryAfterSeconds)));
    void reply.headers({ ...error.headers, ...headers });
    void reply
      .status(status)
      .header('content-type', contentType ?? 'application/json; charset=utf-8')
      .send(JSON.stringify(body));
  }
}

function pathOf(request: FastifyRequest): string {
  return request.url.split('?', 1)[0]!.replace(/\/{2,}/g, '/');
}
