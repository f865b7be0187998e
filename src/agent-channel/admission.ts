import { Injectable } from '@nestjs/common';
import { AppError, isLoopback, type Principal } from '../common';
import { headerText, userIdOf } from '../common/http';
import { Config } from '../config';
import { HandshakeRefused, type Handshake } from '../realtime';
import {
  AccessWatch,
  Authenticator,
  DemoTenant,
  limitsOf,
  TenantsRepository,
  UserTokens,
  type ConnectionLimits,
  type UserToken,
} from '../tenancy';

export interface Admitted {
  readonly principal: Principal;
  readonly token: UserToken | null;
  readonly limits: ConnectionLimits;
  readonly address: string;
}

const DEMO_USER = 'demo';
/** A JWT; no key of ours holds a dot. */
const TOKEN = /^[\w-]+\.[\w-]+\.[\w-]+$/;

/** Who may open the agent channel (protocols/agent-channel.md, "Connecting"). */
@Injectable()
export class Admission {
  constructor(
    private readonly config: Config,
    private readonly authenticator: Authenticator,
    private readonly tokens: UserTokens,
    private readonly access: AccessWatch,
    private readonly tenants: TenantsRepository,
    private readonly demo: DemoTenant,
  ) {}

  /** Throws HandshakeRefused: 400, 401, 403. */
  async admit(handshake: Handshake): Promise<Admitted> {
    try {
      const { principal, token } = await this.identify(handshake);
      const settings = await this.tenants.settings(principal.tenantId);
      if (!settings?.active) throw new AppError('TENANT_SUSPENDED');
      const { origin } = handshake.headers;
      const { allowedOrigins } = settings;
      if (origin !== undefined && allowedOrigins.length > 0 && !allowedOrigins.includes(origin)) {
        throw new AppError('ORIGIN_NOT_ALLOWED');
      }
      return { principal, token, limits: limitsOf(this.config, settings), address: handshake.address };
    } catch (error) {
      if (!(error instanceof AppError)) throw error;
      const { status, message, code, retryAfterSeconds } = error;
      throw new HandshakeRefused(status, { error: message, code }, retryAfterSeconds);
    }
  }

  /** Of several credentials each has to be good; the key is who is calling, else the token. */
  private async identify({
    url,
    headers,
    address,
  }: Handshake): Promise<Pick<Admitted, 'principal' | 'token'>> {
    const own = headerText(headers, 'x-api-key');
    const { authorization } = headers;
    const bearer =
      authorization === undefined ? undefined : (/^Bearer\s+(\S+)$/i.exec(authorization)?.[1] ?? '');
    const given = url.searchParams.get('token') ?? undefined;
    if ((own ?? bearer ?? given) === undefined) return this.local(headers, address);
    const asked = { tenantId: headerText(headers, 'tenant-id'), userId: userIdOf(headers), address };
    const found: Pick<Admitted, 'principal' | 'token'>[] = [];
    for (const apiKey of [own, bearer]) {
      if (apiKey === undefined) continue;
      if (apiKey === bearer && apiKey !== own && TOKEN.test(apiKey)) found.push(await this.byToken(apiKey));
      else
        found.push({ principal: await this.authenticator.authenticate({ apiKey, ...asked }), token: null });
    }
    // A key in an address would end in logs: there only tokens count.
    if (given !== undefined) found.push(await this.byToken(given));
    const first = found[0]!;
    if (found.some(({ principal }) => principal.tenantId !== first.principal.tenantId))
      throw new AppError('UNAUTHENTICATED');
    if (!first.principal.scopes.has('dialogue') && !first.principal.scopes.has('platform'))
      throw new AppError('FORBIDDEN');
    return first;
  }

  private async byToken(given: string): Promise<{ principal: Principal; token: UserToken }> {
    const token = await this.tokens.read(given, ['im', 'channel']);
    if (!token || this.access.isRevoked(token)) throw invalid();
    if (!(await this.authenticator.tokenStands(token))) throw invalid();
    const { tenantId, userId, keyId } = token;
    const principal: Principal = {
      tenantId,
      keyId,
      keyGeneration: token.generation,
      keyName: userId,
      scopes: new Set(['dialogue']),
      userId,
      endUser: true,
      allowedOrigins: [],
    };
    return { principal, token };
  }

  /** The quickstart lets this very machine in; no foreign page, and nobody who came through a proxy. */
  private async local(
    headers: Handshake['headers'],
    address: string,
  ): Promise<Pick<Admitted, 'principal' | 'token'>> {
    const { apiKey } = this.demo;
    const forwarded = headers.forwarded ?? headers['x-forwarded-for'] ?? headers['x-real-ip'] ?? headers.via;
    const local = isLoopback(address) && forwarded === undefined && ownPage(headers.origin);
    if (apiKey === undefined || !local) throw new AppError('UNAUTHENTICATED');
    return {
      principal: await this.authenticator.authenticate({ apiKey, userId: DEMO_USER, address }),
      token: null,
    };
  }
}

function ownPage(origin: string | undefined): boolean {
  if (origin === undefined) return true;
  const host = URL.parse(origin)?.hostname.replace(/^\[|\]$/g, '');
  return host !== undefined && (host === 'localhost' || isLoopback(host));
}

function invalid(): AppError {
  return new AppError('UNAUTHENTICATED', { message: 'A valid token or API key is required.' });
}
