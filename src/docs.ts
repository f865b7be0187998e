import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import { DocumentBuilder, SwaggerModule } from '@nestjs/swagger';
import { OPEN } from './common/http';

/** OpenAPI at /docs/openapi.json, readable at /docs. Made at the first look, so that a server nobody asks pays nothing. */
export function serveDocs(nest: NestFastifyApplication): void {
  // Swagger's routes are not Nest's: no decorator says that strangers may read them.
  nest
    .getHttpAdapter()
    .getInstance()
    .addHook('onRoute', (route) => {
      if (/^\/docs(\/|$|-)/.test(route.url)) route.config = { ...route.config, access: OPEN };
    });
  const document = () =>
    SwaggerModule.createDocument(
      nest,
      new DocumentBuilder()
        .setTitle('Parley')
        .setDescription('People and AI assistants on one conversation core.')
        .setVersion('1')
        .addApiKey({ type: 'apiKey', name: 'x-api-key', in: 'header' }, 'x-api-key')
        .build(),
    );
  SwaggerModule.setup('docs', nest, document, { jsonDocumentUrl: 'docs/openapi.json' });
}
