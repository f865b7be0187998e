import type { AddressInfo } from 'node:net';
import { NestFactory } from '@nestjs/core';
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { DataSourceOptions } from 'typeorm';
import { AppModule, errorFilter, type Foundations } from './app.module';
import { assistantEntities } from './assistants';
import { answerPreflights, forgiveEmptyBodies, nameRequest, nameRequests } from './common/http';
import { applicationDataSource, NodeRegistry } from './database';
import { serveDocs } from './docs';
import { FairShares, shareFairly } from './fairness';
import { admitUploads, FORM_LIMITS, refuseForms, takeLongBodies } from './forms';
import { messageEntities } from './messages';
import { modelServiceEntities } from './model-services';
import { createLogger, PinoLogger, Readiness } from './observability';
import { SocketServer } from './realtime';
import { Authenticator, credentialsOf, tenancyEntities } from './tenancy';

export const entities: DataSourceOptions['entities'] = [
  ...tenancyEntities,
  ...messageEntities,
  ...assistantEntities,
  ...modelServiceEntities,
];

export interface RegisteredRoute {
  readonly method: string;
  readonly url: string;
}

export interface App {
  readonly nest: NestFastifyApplication;
  /** Every HTTP route there is, for the walk of the rival tenant. */
  readonly routes: readonly RegisteredRoute[];
  /** `http://host:port`, the port being the real one. */
  readonly url: string;
  close(): Promise<void>;
}

export interface AppSettings extends Omit<Foundations, 'dataSource'> {
  readonly databaseUrl: string;
}

/** Builds the application on a migrated database and listens. Whoever calls it owns the process and its signals. */
export async function startApp({ databaseUrl, ...foundations }: AppSettings): Promise<App> {
  const { env } = foundations.config;
  const dataSource = await applicationDataSource({
    url: databaseUrl,
    poolSize: env.DATABASE_POOL_SIZE,
    entities,
  }).initialize();
  const adapter = new FastifyAdapter({
    bodyLimit: env.BODY_LIMIT_BYTES,
    forceCloseConnections: true,
    return503OnClosing: true,
    requestTimeout: 30_000,
    multipart: { limits: FORM_LIMITS },
    // A published sample of the assistant platform writes //api/…
    routerOptions: { ignoreDuplicateSlashes: true, maxParamLength: 512 },
    // A path that can't be read ends before there is a route.
    frameworkErrors: (error: Error, request: FastifyRequest, reply: FastifyReply) => {
      nameRequest(reply);
      errorFilter.answer(error, request, reply);
    },
  });
  nameRequests(adapter.getInstance<FastifyInstance>());
  answerPreflights(adapter.getInstance<FastifyInstance>());
  forgiveEmptyBodies(adapter.getInstance<FastifyInstance>());
  refuseForms(adapter.getInstance<FastifyInstance>());
  takeLongBodies(adapter.getInstance<FastifyInstance>());
  const routes: RegisteredRoute[] = [];
  adapter.getInstance().addHook('onRoute', ({ method, url }) => {
    for (const one of [method].flat()) routes.push({ method: one, url });
  });
  const nest = await NestFactory.create<NestFastifyApplication>(
    AppModule.with({ ...foundations, dataSource }),
    adapter,
    {
      logger: new PinoLogger(createLogger(env.LOG_LEVEL)),
      abortOnError: false,
    },
  );
  const authenticator = nest.get(Authenticator);
  admitUploads(adapter.getInstance<FastifyInstance>(), (request) =>
    authenticator.authenticate(credentialsOf(request)),
  );
  shareFairly(adapter.getInstance<FastifyInstance>(), nest.get(FairShares), async (request) => {
    const credentials = credentialsOf(request);
    if (credentials.apiKey === undefined) return undefined;
    // What is wrong with a key the guard says.
    const principal = await authenticator.authenticate(credentials).catch(() => undefined);
    return principal?.tenantId;
  });
  await nest.get(NodeRegistry).join();
  serveDocs(nest);
  nest.get(SocketServer).attach(nest.getHttpServer());
  try {
    await nest.listen({ port: env.PORT, host: env.HOST });
  } catch (error) {
    await nest.close();
    throw error;
  }
  const { port } = nest.getHttpServer().address() as AddressInfo;
  const host = env.HOST === '0.0.0.0' || env.HOST === '::' ? 'localhost' : env.HOST;
  const url = `http://${host.includes(':') ? `[${host}]` : host}:${port}`;
  const close = (): Promise<void> => {
    nest.get(Readiness).stopping = true;
    return nest.close();
  };
  return { nest, routes, url, close };
}
