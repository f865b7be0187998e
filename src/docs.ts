import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import { Authenticator, credentialsOf } from './tenancy';
import { DocumentBuilder, SwaggerModule } from '@nestjs/swagger';

/** OpenAPI at /docs/openapi.json, readable at /docs. Made at the first look, so that a server nobody asks pays nothing. */
export function serveDocs(nest: NestFastifyApplication): void {
  // Swagger's routes are not Nest's, so the guard does not see them; a wrong credential is refused here, too.
  const authenticator = nest.get(Authenticator);
  nest
    .getHttpAdapter()
    .getInstance()
    .addHook('onRequest', async (request) => {
      if (!/^\/+docs/.test(request.url)) return;
      const credentials = credentialsOf(request);
      if (credentials.apiKey !== undefined) await authenticator.authenticate(credentials);
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
