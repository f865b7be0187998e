import type { Server as HttpServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Logger } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { DataSourceOptions } from 'typeorm';
import { AppModule, errorFilter, type Foundations } from './app.module';
import { assistantEntities } from './assistants';
import {
  answerPreflights,
  forgiveEmptyBodies,
  nameClients,
  nameRequest,
  nameRequests,
  readProxyHeaders,
  TrustedProxies,
} from './common/http';
import { NodeRegistry, openApplicationDataSource } from './database';
import { serveDocs } from './docs';
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

const PROXY_COMPLAINT_MS = 60_000;

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
  const dataSource = await openApplicationDataSource({
    url: databaseUrl,
    poolSize: env.DATABASE_POOL_SIZE,
    entities,
  });
  const proxies = new TrustedProxies(env.TRUST_PROXY);
  const adapter = new FastifyAdapter({
    // For `x-forwarded-host` and `x-forwarded-proto`; the client's address is found by nameClients.
    trustProxy: proxies.any && ((address: string) => proxies.trusts(address)),
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
  nameClients(adapter.getInstance<FastifyInstance>(), proxies);
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
  await nest.get(NodeRegistry).join();
  serveDocs(nest);
  const server: HttpServer = nest.getHttpServer();
  nest.get(SocketServer).attach(server, (request) => proxies.addressOf(request));
  const endUnread = env.PROXY_PROTOCOL === 'on' ? readProxiesOf(server, proxies) : () => undefined;
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
    endUnread();
    return nest.close();
  };
  return { nest, routes, url, close };
}

/** A proxy that sends no header is somebody's mistake in its configuration, or in TRUST_PROXY: told now and then, not each time. */
function readProxiesOf(server: HttpServer, proxies: TrustedProxies): () => void {
  const logger = new Logger('proxy-protocol');
  let toldAt = -PROXY_COMPLAINT_MS;
  return readProxyHeaders(server, {
    trusts: (address) => proxies.trusts(address),
    refused: (address, why) => {
      if (performance.now() - toldAt < PROXY_COMPLAINT_MS) return;
      toldAt = performance.now();
      logger.warn(`a connection from ${address} was refused: ${why}`);
    },
  });
}
