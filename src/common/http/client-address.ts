import type { IncomingMessage } from 'node:http';
import { isIP } from 'node:net';
import type { FastifyInstance } from 'fastify';
import { AddressRanges, plainAddress } from '../address-ranges';

/** The proxies in front (TRUST_PROXY): what they say of a client is believed, what anybody else says is not. */
export class TrustedProxies {
  readonly any: boolean;
  /** Some entry is a range of all there is. */
  readonly everybody: boolean;
  private readonly ranges: AddressRanges;

  constructor(entries: readonly string[]) {
    this.any = entries.length > 0;
    this.everybody = entries.some((entry) => /\/0+$/.test(entry));
    this.ranges = new AddressRanges(entries);
  }

  trusts(address: string | undefined): boolean {
    return this.any && address !== undefined && this.ranges.has(address);
  }

  /**
   * The client's IP address, for allow-lists, limits and the audit log. Each proxy adds whom it saw at the right end of
   * `x-forwarded-for`, and what stands left of that the client may have written: the rightmost address that is no
   * proxy's is the client's. What can't be read is nobody's: the proxy that wrote it stands for its client.
   */
  addressOf({ socket, headers }: Pick<IncomingMessage, 'socket' | 'headers'>): string {
    let client = plainAddress(socket.remoteAddress ?? '');
    if (!this.trusts(client)) return client;
    const hops = String(headers['x-forwarded-for'] ?? '').split(',');
    for (let i = hops.length - 1; i >= 0; i -= 1) {
      const address = addressIn(hops[i]!);
      if (address === undefined) return client;
      client = address;
      if (!this.trusts(client)) return client;
    }
    return client;
  }
}

/** `1.2.3.4`, `1.2.3.4:567`, `2001:db8::1`, `[2001:db8::1]:567`; undefined for anything else. */
function addressIn(hop: string): string | undefined {
  const text = hop.trim();
  const bare =
    /^\[([^\]]+)\](?::\d{1,5})?$/.exec(text)?.[1] ?? /^(\d+\.\d+\.\d+\.\d+):\d{1,5}$/.exec(text)?.[1] ?? text;
  return isIP(bare) === 0 || bare.includes('%') ? undefined : plainAddress(bare);
}

/** `request.ip` as {@link TrustedProxies.addressOf} has it. To be called before any other hook is added. */
export function nameClients(server: FastifyInstance, proxies: TrustedProxies): void {
  if (!proxies.any) return; // then it is the peer's already
  server.addHook('onRequest', (request, _reply, done) => {
    Object.defineProperty(request, 'ip', { value: proxies.addressOf(request.raw) });
    done();
  });
}
