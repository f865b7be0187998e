import { badInput, type Principal, type TenantId } from '../common';
import { NO_TENANT } from '../tenancy';

/**
 * Who may read, continue, watch and stop a dialogue, on every wire: the tenant's server (a key) any of its tenant, a
 * user's own token that user's. Returns the user whose dialogues a caller is confined to; null: any of the tenant's.
 */
export function onlyUserOf({ endUser, userId }: Principal): string | null {
  return endUser ? userId : null;
}

/** Whose everything is that is said, kept and spent. BAD_INPUT for the platform's root key that names no tenant. */
export function tenantOf({ tenantId }: Principal): TenantId {
  if (tenantId === NO_TENANT) throw badInput('tenant-id', 'is needed with the root key');
  return tenantId;
}
