import type { TenantId } from '../common';

/**
 * What a database transaction may see: row-level security reads it from `app.tenants`, `app.platform` and `app.key`.
 * Nothing declared is nothing seen.
 */
export interface Scope {
  readonly tenants: readonly TenantId[];
  /** Tables of the platform itself: tenants, nodes, replies in progress, the audit log. Never what anybody said. */
  readonly platform: boolean;
  /** The one API key that a look-up by its public id may see before its tenant is known. */
  readonly keyId?: string;
}

export const tenantScope = (tenantId: TenantId): Scope => ({ tenants: [tenantId], platform: false });
export const tenantsScope = (tenants: Iterable<TenantId>): Scope => ({
  tenants: [...new Set(tenants)],
  platform: false,
});
/** For operators: the platform's tables, and a tenant's own where one is named. */
export const platformScope = (...tenants: TenantId[]): Scope => ({ tenants, platform: true });
export const keyScope = (keyId: string): Scope => ({ tenants: [], platform: false, keyId });

/** One statement text that opens a transaction under the scope. Only digits reach it: SET takes no parameters. */
export function beginUnder(scope: Scope): string {
  const ids = [...scope.tenants, ...(scope.keyId === undefined ? [] : [scope.keyId])];
  if (!ids.every((id) => /^\d{1,19}$/.test(id))) throw new TypeError('a scope holds decimal ids only');
  let sql = 'BEGIN';
  if (scope.tenants.length > 0) sql += `;SET LOCAL app.tenants='${scope.tenants.join(',')}'`;
  if (scope.platform) sql += `;SET LOCAL app.platform='on'`;
  if (scope.keyId !== undefined) sql += `;SET LOCAL app.key='${scope.keyId}'`;
  return sql;
}
