import { createHash } from 'node:crypto';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import { DocumentBuilder, SwaggerModule } from '@nestjs/swagger';
import type { FastifyInstance } from 'fastify';
import { OPEN } from './common/http';

const PATH = '/docs/openapi.json';

/** OpenAPI at /docs/openapi.json, readable at /docs. Made at the first look, so that a server nobody asks pays nothing. */
export function serveDocs(nest: NestFastifyApplication): void {
  const server: FastifyInstance = nest.getHttpAdapter().getInstance();
  // Swagger's routes are not Nest's: no decorator says that strangers may read them.
  server.addHook('onRoute', (route) => {
    if (/^\/docs(\/|$|-)/.test(route.url)) route.config = { ...route.config, access: OPEN };
  });
  let made: { readonly bytes: Buffer; readonly etag: string } | undefined;
  server.get(PATH, (request, reply) => {
    made ??= documentOf(nest);
    void reply.header('etag', made.etag).header('cache-control', 'no-cache');
    const known = (request.headers['if-none-match'] ?? '').split(',').map((tag) => tag.trim());
    if (known.includes(made.etag) || known.includes(`W/${made.etag}`)) void reply.status(304).send();
    // One buffer for everybody: who does not read it holds no copy.
    else void reply.type('application/json').send(made.bytes);
  });
  // The page asks for the document itself; Swagger would put it, as a text of its own, into every answer.
  const page = { raw: false, swaggerUrl: PATH };
  SwaggerModule.setup('docs', nest, () => undefined as never, page);
}

function documentOf(nest: NestFastifyApplication): { bytes: Buffer; etag: string } {
  const document = SwaggerModule.createDocument(
    nest,
    new DocumentBuilder()
      .setTitle('Parley')
      .setDescription('People and AI assistants on one conversation core.')
      .setVersion('1')
      .addApiKey({ type: 'apiKey', name: 'x-api-key', in: 'header' }, 'x-api-key')
      .build(),
  );
  const bytes = Buffer.from(JSON.stringify(document));
  return { bytes, etag: `"${createHash('sha256').update(bytes).digest('base64url')}"` };
}
