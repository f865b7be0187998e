import { AppError, type ApiKeyId, type Principal, type Scope, type TenantId } from '../common';
import { addressAllowed } from './allowed-addresses';
import type { StoredKey } from './api-keys.repository';
import type { TokenUse, UserToken } from './user-tokens';

/** What an open connection or an answer under way rests on. */
export interface Grant {
  readonly tenantId: TenantId;
  readonly keyId: ApiKeyId;
  /** Of the key's secret that was shown. */
  readonly generation: number;
  /** Any one of these, of the key. */
  readonly scopes: readonly Scope[];
  /** Where the key was shown from; null: it was not, a user's token stands for it. */
  readonly address: string | null;
  /** Of that token, epoch ms. */
  readonly issuedAt: number;
}

const SCOPE_OF: Readonly<Record<TokenUse, Scope>> = { im: 'im', channel: 'dialogue' };

/** Null for the platform's root key, which ends with its process. */
export function grantOf(
  { tenantId, keyId, keyGeneration }: Principal,
  scopes: readonly Scope[],
  address: string,
): Grant | null {
  return keyId && { tenantId, keyId, generation: keyGeneration, scopes, address, issuedAt: 0 };
}

/** A token stands as long as its key could be asked for it. Null for one of the root key. */
export function tokenGrant({ tenantId, keyId, generation, use, issuedAt }: UserToken): Grant | null {
  return keyId && { tenantId, keyId, generation, scopes: [SCOPE_OF[use]], address: null, issuedAt };
}

/** Why a key does not carry this any more; null: it does, as long as its tenant is active. `key` null: there is none. */
export function refusalOf(grant: Grant, key: StoredKey | null, now = Date.now()): AppError | null {
  const refused = (message: string): AppError => new AppError('UNAUTHENTICATED', { message });
  if (!key || key.revoked) return refused('This key was revoked.');
  if (key.expiresAt <= now) return refused('This key has expired.');
  if (!generationStands(grant.generation, key, now))
    return refused('This key was rotated: use its new secret.');
  if (grant.address === null && grant.issuedAt < key.tokensFrom)
    return refused('Tokens of that time are not valid any more: get another.');
  if (grant.address !== null && !addressAllowed(grant.address, key.allowedAddresses))
    return refused('This key may not be used from that address any more.');
  return grant.scopes.some((scope) => key.scopes.has(scope)) ? null : new AppError('FORBIDDEN');
}

/** A newer one than is known here is one that was let in a moment ago. */
function generationStands(generation: number, key: StoredKey, now: number): boolean {
  return generation >= key.generation || (generation === key.generation - 1 && key.previousUntil > now);
}
