import { badInput, type Principal, type TenantId } from '../common';
import { NO_TENANT } from '../tenancy';

/** Whose agents and sessions this is about. BAD_INPUT when the root key names no tenant. */
export function tenantOf({ tenantId }: Principal): TenantId {
  if (tenantId === NO_TENANT) throw badInput('tenant-id', 'is needed with the root key');
  return tenantId;
}
