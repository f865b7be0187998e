import { createServer, type RequestListener, type Server as HttpServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Logger } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { DataSourceOptions } from 'typeorm';
import { AppModule, errorFilter, type Foundations } from './app.module';
import { assistantEntities } from './assistants';
import { jsonBoundsOf, Shutdown } from './common';
import {
  answerPreflights,
  Bodies,
  type BodyLimits,
  boundBodies,
  boundStrangers,
  continueBodies,
  forgiveEmptyBodies,
  giveUpSlowReaders,
  nameClients,
  nameRequest,
  nameRequests,
  publishAccess,
  readProxyHeaders,
  refuseNul,
  Strangers,
  TrustedProxies,
  Turns,
} from './common/http';
import type { Environment } from './config';
import { NodeRegistry, openApplicationDataSource } from './database';
import { serveDocs } from './docs';
import { FairShares, shareFairly } from './fairness';
import { countLongBodies, FORM_LIMITS, refuseForms, takeLongBodies } from './forms';
import { messageEntities } from './messages';
import { modelServiceEntities } from './model-services';
import { createLogger, PinoLogger } from './observability';
import { asksForSocket, SocketServer } from './realtime';
import { AccessWatch, admitAgain, admitRequests, Authenticator, tenancyEntities } from './tenancy';

export const entities: DataSourceOptions['entities'] = [
  ...tenancyEntities,
  ...messageEntities,
  ...assistantEntities,
  ...modelServiceEntities,
];

const PROXY_COMPLAINT_MS = 60_000;
/** Requests of one connection that are not answered yet. */
const STRANGER_REQUESTS_AT_ONCE = 4;
const REQUESTS_AT_ONCE = 16;

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

export interface AppSettings extends Omit<Foundations, 'dataSource' | 'strangers'> {
  readonly databaseUrl: string;
}

/**
 * Headers have to be there after 15 s, of a connection's first request from its first moment; bodies have limits of
 * their own, and Node's for whole requests would cut off who sends a large file over a slow line.
 */
const SERVER = {
  headersTimeout: 15_000,
  requestTimeout: 0,
  keepAliveTimeout: 72_000,
  connectionsCheckingInterval: 5_000,
  shouldUpgradeCallback: asksForSocket,
};

function bodyLimitsOf(env: Environment): BodyLimits {
  return {
    strangers: {
      atOnce: env.STRANGER_BODIES,
      perAddress: env.STRANGER_BODIES_PER_ADDRESS,
      seconds: env.STRANGER_BODY_SECONDS,
    },
    known: { seconds: env.BODY_SECONDS, bytesPerSecond: env.BODY_MIN_BYTES_PER_SECOND },
  };
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
  const strangers = new Strangers({
    connections: env.STRANGER_CONNECTIONS,
    connectionsPerAddress: env.STRANGER_CONNECTIONS_PER_ADDRESS,
    proxies,
  });
  const turns = new Turns({
    atOnce: (socket) => (strangers.has(socket) ? STRANGER_REQUESTS_AT_ONCE : REQUESTS_AT_ONCE),
    unreadMs: env.STREAM_SLOW_READER_SECONDS * 1_000,
  });
  const adapter = new FastifyAdapter({
    // For `x-forwarded-host` and `x-forwarded-proto`; the client's address is found by nameClients.
    trustProxy: proxies.any && ((address: string) => proxies.trusts(address)),
    bodyLimit: env.BODY_LIMIT_BYTES,
    forceCloseConnections: true,
    return503OnClosing: true,
    serverFactory: (handler: RequestListener) => {
      const server = createServer(SERVER, turns.inTurn(handler));
      turns.serve(server, handler);
      strangers.guard(server);
      return server;
    },
    multipart: { limits: FORM_LIMITS },
    // A published sample of the assistant platform writes //api/…
    routerOptions: { ignoreDuplicateSlashes: true, maxParamLength: 512 },
    // A path that can't be read ends before there is a route.
    frameworkErrors: (error: Error, request: FastifyRequest, reply: FastifyReply) => {
      nameRequest(reply);
      errorFilter.answer(error, request, reply);
    },
  });
  const server = adapter.getInstance<FastifyInstance>();
  nameClients(server, proxies);
  nameRequests(server);
  answerPreflights(server);
  forgiveEmptyBodies(server);
  giveUpSlowReaders(server, env.STREAM_SLOW_READER_SECONDS * 1_000);
  refuseForms(server);
  refuseNul(server);
  takeLongBodies(server);
  boundStrangers(server, env.STRANGER_BODY_BYTES);
  boundBodies(adapter, jsonBoundsOf(env), env.BODY_LIMIT_BYTES);
  const routes: RegisteredRoute[] = [];
  server.addHook('onRoute', ({ method, url }) => {
    for (const one of [method].flat()) routes.push({ method: one, url });
  });
  const nest = await NestFactory.create<NestFastifyApplication>(
    AppModule.with({ ...foundations, dataSource, strangers }),
    adapter,
    {
      logger: new PinoLogger(createLogger(env.LOG_LEVEL)),
      abortOnError: false,
    },
  );
  if (proxies.everybody)
    new Logger('proxies').warn(
      'TRUST_PROXY names every address there is: any client may say who it is, and no limit or allow-list of addresses holds; name the proxies alone',
    );
  publishAccess(nest);
  const bodies = new Bodies(bodyLimitsOf(env));
  bodies.attach(server);
  admitRequests(server, nest.get(Authenticator), nest.get(AccessWatch), strangers, bodies);
  shareFairly(server, nest.get(FairShares), (request) => request.principal?.tenantId);
  countLongBodies(server);
  continueBodies(server);
  admitAgain(server, nest.get(Authenticator), nest.get(AccessWatch));
  await nest.get(NodeRegistry).join();
  serveDocs(nest);
  const http: HttpServer = nest.getHttpServer();
  nest.get(SocketServer).attach(http, (request) => proxies.addressOf(request));
  const endUnread = env.PROXY_PROTOCOL === 'on' ? readProxiesOf(http, proxies) : () => undefined;
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
    nest.get(Shutdown).begin();
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
