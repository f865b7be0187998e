import { createParamDecorator, type ExecutionContext } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import { AppError, asId, badInput, type Id, type Principal, type TenantId } from '../common';
import { platformScope, tenantScope, type Scope } from '../database';
import { NO_TENANT, type AuditRecord } from '../tenancy';

/** Who administers, what they may see, and whose things they are about. */
export class Operator {
  /** Null: the root key with no `tenant-id` header, about the platform's own things. */
  readonly tenantId: TenantId | null;
  readonly platform: boolean;

  constructor(
    readonly principal: Principal,
    readonly address: string,
  ) {
    this.tenantId = principal.tenantId === NO_TENANT ? null : principal.tenantId;
    this.platform = principal.scopes.has('platform');
  }

  get scope(): Scope {
    if (this.platform) return this.tenantId ? platformScope(this.tenantId) : platformScope();
    return tenantScope(this.requiredTenant());
  }

  /** For what only a tenant has. BAD_INPUT when the root key names none. */
  requiredTenant(): TenantId {
    if (!this.tenantId)
      throw badInput('tenant-id', 'is needed with the root key: name the tenant this is about');
    return this.tenantId;
  }

  /** The same operator about the tenant of the path. NOT_FOUND for an operator of another tenant. */
  about(tenantId: TenantId): Operator {
    if (!this.platform && tenantId !== this.tenantId) throw new AppError('NOT_FOUND');
    return new Operator({ ...this.principal, tenantId }, this.address);
  }

  audit(
    action: AuditRecord['action'],
    resource: string,
    change: { before?: object & { id?: string }; after?: object & { id?: string } },
  ): AuditRecord {
    const resourceId = (change.after?.id ?? change.before?.id)!;
    const { principal, address, tenantId } = this;
    return { principal, address, tenantId, action, resource, resourceId, ...change };
  }
}

export const Op = createParamDecorator((_: unknown, context: ExecutionContext): Operator => {
  const { principal, ip } = context.switchToHttp().getRequest<FastifyRequest>();
  if (!principal) throw new Error('a public route has no operator');
  return new Operator(principal, ip);
});

/** An id of the path; what can't be one is an id nobody has. */
export function pathId<T extends Id<string>>(value: string): T {
  const id = asId<T>(value);
  if (!id) throw new AppError('NOT_FOUND');
  return id;
}
