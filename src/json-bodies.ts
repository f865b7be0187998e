import type { FastifyAdapter } from '@nestjs/platform-fastify';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { keepDigits } from './common/http';

type Done = (error: Error | null, body?: unknown) => void;

/** Bodies of JSON: as Fastify parses them, and with every digit for routes that ask for it. */
export function parseJsonBodies(adapter: FastifyAdapter, bodyLimit: number): void {
  const parse = adapter.getInstance<FastifyInstance>().getDefaultJsonParser('error', 'error');
  adapter.useBodyParser(
    'application/json',
    false,
    { bodyLimit },
    (request: FastifyRequest, body: Buffer, done: Done) => {
      void parse(request, body as unknown as string, (error: Error | null, parsed?: unknown) => {
        if (!error) keepDigits(request, body);
        done(error, parsed);
      });
    },
  );
}
