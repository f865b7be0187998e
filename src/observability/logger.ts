import type { LoggerService } from '@nestjs/common';
import { pino, type Logger } from 'pino';

/** Secrets have no business in a log line, wherever they stand in it. */
const REDACTED = [
  'apiKey',
  'rootKey',
  'appSecret',
  'authorization',
  'credentials',
  'headers',
  'secret',
  'password',
];

export function createLogger(level: string): Logger {
  return pino({
    level,
    redact: { paths: REDACTED.flatMap((name) => [name, `*.${name}`, `*.*.${name}`]), censor: '[redacted]' },
  });
}

/** Nest's logger interface on pino: JSON lines, one call one line. */
export class PinoLogger implements LoggerService {
  constructor(private readonly pino: Logger) {}

  log(message: unknown, ...rest: unknown[]): void {
    // Nest announces every module and route; that is for someone who debugs the start.
    const context = rest.at(-1);
    const chatter =
      typeof context === 'string' &&
      /^(InstanceLoader|RouterExplorer|RoutesResolver|NestFactory|NestApplication)$/.test(context);
    this.write(chatter ? 'debug' : 'info', message, rest);
  }
  error(message: unknown, ...rest: unknown[]): void {
    // A port that is taken: whoever started the server is told in one line of its own.
    this.write(rest.at(-1) === 'NestApplication' ? 'debug' : 'error', message, rest);
  }
  warn(message: unknown, ...rest: unknown[]): void {
    this.write('warn', message, rest);
  }
  debug(message: unknown, ...rest: unknown[]): void {
    this.write('debug', message, rest);
  }
  verbose(message: unknown, ...rest: unknown[]): void {
    this.write('trace', message, rest);
  }
  fatal(message: unknown, ...rest: unknown[]): void {
    this.write('fatal', message, rest);
  }

  private write(
    level: 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal',
    message: unknown,
    rest: unknown[],
  ): void {
    const texts = rest.filter((part) => typeof part === 'string');
    const context = texts.at(-1);
    const text = texts.length > 1 ? texts[0] : undefined;
    if (message instanceof Error) this.pino[level]({ context, err: message }, message.message);
    else if (typeof message === 'object' && message !== null) this.pino[level]({ context, ...message }, text);
    else this.pino[level]({ context, ...(text && { stack: text }) }, String(message));
  }
}
