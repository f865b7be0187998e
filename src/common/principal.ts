import type { ApiKeyId, TenantId } from './ids';

export const SCOPES = ['platform', 'admin', 'dialogue', 'im', 'models', 'usage'] as const;
export type Scope = (typeof SCOPES)[number];

/** Who is calling, whatever wire they came in on. */
export interface Principal {
  readonly tenantId: TenantId;
  /** Null for the platform's root key, which belongs to no tenant. */
  readonly keyId: ApiKeyId | null;
  /** Which of the key's secrets was shown, by its number; 0 where there is no key. */
  readonly keyGeneration: number;
  readonly keyName: string;
  readonly scopes: ReadonlySet<Scope>;
  /** The tenant's own id of the end user; the key's id when nobody is named. */
  readonly userId: string;
  /** True for a user's own token: it reaches what is this user's. A key is the tenant's server and reaches the whole tenant. */
  readonly endUser: boolean;
  /** Browser origins whose pages may call; empty: any. */
  readonly allowedOrigins: readonly string[];
}
