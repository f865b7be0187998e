import type { Principal } from '../common';

/**
 * Who may read, continue, watch and stop a dialogue, on every wire: the tenant's server (a key) any of its tenant, a
 * user's own token that user's. Returns the user whose dialogues a caller is confined to; null: any of the tenant's.
 */
export function onlyUserOf({ endUser, userId }: Principal): string | null {
  return endUser ? userId : null;
}
