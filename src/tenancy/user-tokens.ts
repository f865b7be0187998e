import { hkdfSync, webcrypto } from 'node:crypto';
import { jwtVerify, SignJWT } from 'jose';
import { asId, type ApiKeyId, type TenantId } from '../common';

/** What a user's app connects with: self-contained, so that connecting touches no table. */
export interface UserToken {
  readonly tenantId: TenantId;
  readonly userId: string;
  /** The device kind, e.g. `pc`. */
  readonly client: string;
  /** The key it was asked for with; null for the root key. It falls with its key. */
  readonly keyId: ApiKeyId | null;
  /** Of the key's secret that it was asked for with; 0 for the root key. */
  readonly generation: number;
  /** What it was made for. */
  readonly use: TokenUse;
  /** Epoch ms; a revocation at this time or later undoes it. */
  readonly issuedAt: number;
  /** Epoch ms. */
  readonly expiresAt: number;
}

/** What a token opens: `im` both sockets, `channel` the agent channel alone. */
export type TokenUse = 'im' | 'channel';

/** As of a token that says nothing of it: made before secrets had numbers. */
const FIRST_GENERATION = 1;
const ALGORITHM = 'HS256';
const AUDIENCES: Readonly<Record<TokenUse, string>> = { im: 'parley:user', channel: 'parley:channel' };
const MAX_TOKEN_CHARS = 4_096;

/** Signs and reads user tokens: JWTs (RFC 7519) under a key derived from the installation's secret. */
export class UserTokens {
  /** Imported once: `jose` would do it for every token. */
  private readonly key: Promise<webcrypto.CryptoKey>;
  private readonly previousKey: Promise<webcrypto.CryptoKey> | undefined;

  /** Tokens that were signed under `previous` are read, too. */
  constructor(secretKey: string, previous?: string) {
    this.key = imported(secretKey);
    this.previousKey = previous === undefined ? undefined : imported(previous);
  }

  async sign(
    {
      tenantId,
      userId,
      client,
      keyId,
      generation = FIRST_GENERATION,
      issuedAt,
      expiresAt,
    }: Omit<UserToken, 'use' | 'generation'> & { readonly generation?: number },
    use: TokenUse = 'im',
  ): Promise<string> {
    return new SignJWT({ ten: tenantId, cli: client, kid: keyId, gen: generation, at: issuedAt })
      .setProtectedHeader({ alg: ALGORITHM, typ: 'JWT' })
      .setSubject(userId)
      .setAudience(AUDIENCES[use])
      .setExpirationTime(Math.ceil(expiresAt / 1_000))
      .sign(await this.key);
  }

  /** Null for anything that is not a token of ours for one of these uses, or an expired one. */
  async read(token: string, uses: readonly TokenUse[] = ['im']): Promise<UserToken | null> {
    if (token.length > MAX_TOKEN_CHARS) return null;
    const found = await readUnder(await this.key, token, uses);
    return found ?? (this.previousKey ? readUnder(await this.previousKey, token, uses) : null);
  }
}

function imported(secretKey: string): Promise<webcrypto.CryptoKey> {
  const derived = hkdfSync('sha256', secretKey, '', AUDIENCES.im, 32);
  return webcrypto.subtle.importKey('raw', derived, { name: 'HMAC', hash: 'SHA-256' }, false, [
    'sign',
    'verify',
  ]);
}

async function readUnder(
  key: webcrypto.CryptoKey,
  token: string,
  uses: readonly TokenUse[],
): Promise<UserToken | null> {
  try {
    const { payload } = await jwtVerify(token, key, {
      algorithms: [ALGORITHM],
      audience: uses.map((use) => AUDIENCES[use]),
    });
    return {
      tenantId: asId<TenantId>(payload.ten)!,
      userId: payload.sub!,
      client: payload.cli as string,
      keyId: asId<ApiKeyId>(payload.kid),
      generation: (payload.gen as number | undefined) ?? FIRST_GENERATION,
      use: payload.aud === AUDIENCES.channel ? 'channel' : 'im',
      issuedAt: payload.at as number,
      expiresAt: payload.exp! * 1_000,
    };
  } catch {
    // Not signed by us, or over: for who shows it the two are the same.
    return null;
  }
}
