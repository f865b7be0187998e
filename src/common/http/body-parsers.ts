import { parse } from 'node:querystring';
import type { FastifyAdapter } from '@nestjs/platform-fastify';
import type { FastifyInstance } from 'fastify';
import { badInput } from '../errors';
import { keepDigits } from './exact-body';
import { excessIn, excessInFields, type JsonBounds } from '../json-bounds';

declare module 'fastify' {
  interface FastifyRequest {
    /** Of a body whose length was not announced: told it before the body is parsed. Returns what rejects where it may not be. */
    measureBody?: (bytes: number) => Promise<never> | undefined;
  }
}

type Done = (error: Error | null, body?: unknown) => void;

/** The parsers of every JSON body and every form without files: what holds too much is refused as text, before it is parsed. */
export function boundBodies(adapter: FastifyAdapter, bounds: JsonBounds, bodyLimit: number): void {
  const server = adapter.getInstance<FastifyInstance>();
  const parseJson = server.getDefaultJsonParser('error', 'error');
  adapter.useBodyParser('application/json', false, { bodyLimit }, (request, body, done) => {
    const refused = request.measureBody?.(body.length);
    if (refused) return void refused.catch(done);
    const text = body.toString();
    const excess = excessIn(text, bounds);
    if (excess !== null) return done(badInput('body', excess));
    void parseJson(request, text, (error: Error | null, parsed?: unknown) => {
      if (!error) keepDigits(request, text);
      done(error, parsed);
    });
  });
  adapter.useBodyParser('application/x-www-form-urlencoded', false, { bodyLimit }, (request, body, done) => {
    const refused = request.measureBody?.(body.length);
    if (refused) return void refused.catch(done);
    const text = body.toString();
    const excess = excessInFields(text, bounds);
    if (excess === null) parseFields(text, done as Done);
    else done(badInput('body', excess));
  });
}

function parseFields(text: string, done: Done): void {
  const fields = parse(text, '&', '=', { maxKeys: 0 });
  // An object without a prototype: copied onto another one it would become that one's.
  if (Object.hasOwn(fields, '__proto__')) done(badInput('body', 'must not have a field __proto__'));
  else done(null, fields);
}
