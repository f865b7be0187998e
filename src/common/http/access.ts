import type { Type } from '@nestjs/common';
import { MetadataScanner, ModulesContainer, Reflector } from '@nestjs/core';
import { RouteConfig, type NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyInstance } from 'fastify';
import type { Scope } from '../principal';
import { PUBLIC, SCOPES_REQUIRED } from './decorators';

/** Who may call a route. */
export interface RouteAccess {
  /** Without a credential, too. */
  readonly isPublic: boolean;
  /** Any one of them lets a caller in. */
  readonly scopes: readonly Scope[];
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Absent: the platform's root key alone. */
    access?: RouteAccess;
  }
}

/** Of a route that says nothing: the platform's root key alone. */
export const CLOSED: RouteAccess = { isPublic: false, scopes: [] };
export const OPEN: RouteAccess = { isPublic: true, scopes: [] };

type Handlers = Record<string, object>;

/**
 * Writes what the decorators of a controller and its handlers say of access into the routes' own configuration, where
 * it can be read before there is a body. To be called before Nest makes its routes.
 */
export function publishAccess(nest: NestFastifyApplication): void {
  const scanner = new MetadataScanner();
  const controllers = new Set<Type>();
  for (const { controllers: ofModule } of nest.get(ModulesContainer).values())
    for (const { metatype } of ofModule.values()) if (metatype) controllers.add(metatype as Type);
  for (const controller of controllers) {
    const handlers = controller.prototype as Handlers;
    for (const name of scanner.getAllMethodNames(handlers)) publish(controller, handlers, name);
  }
}

const reflector = new Reflector();
const { KEY: CONFIG } = RouteConfig({});

function publish(controller: Type, handlers: Handlers, name: string): void {
  const handler = handlers[name]!;
  const targets = [handler as () => void, controller];
  const access: RouteAccess = {
    isPublic: reflector.getAllAndOverride<boolean | undefined>(PUBLIC, targets) ?? false,
    scopes: reflector.getAllAndOverride<Scope[] | undefined>(SCOPES_REQUIRED, targets) ?? [],
  };
  const config = (Reflect.getMetadata(CONFIG, handler) ?? {}) as { access?: RouteAccess };
  // A handler that two controllers inherit has one configuration.
  if (config.access && JSON.stringify(config.access) !== JSON.stringify(access))
    throw new Error(`${controller.name}.${name} is inherited by controllers with different access`);
  RouteConfig({ ...config, access })(handlers, name, { value: handler });
}

/** Bodies of routes that are open to strangers weigh at most so much. */
export function boundStrangers(server: FastifyInstance, maxBytes: number): void {
  server.addHook('onRoute', (route) => {
    const { access } = route.config ?? {};
    if (access?.isPublic) route.bodyLimit = Math.min(route.bodyLimit ?? maxBytes, maxBytes);
  });
}
