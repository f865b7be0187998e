import type { LookupAddress, LookupOptions } from 'node:dns';
import { isIP, type LookupFunction } from 'node:net';
import { buildConnector } from 'undici';

/** What a connection fails with when it would lead to a refused address. */
export class RefusedAddressError extends Error {
  constructor() {
    super('leads to a private address');
    this.name = 'RefusedAddressError';
  }
}

/** As `dns.lookup` with `all`. */
export type NameLookup = (
  host: string,
  options: LookupOptions & { readonly all: true },
  callback: (error: NodeJS.ErrnoException | null, addresses: LookupAddress[]) => void,
) => void;

/** The host of a URL, without the brackets of an IPv6 address; null: it is no URL. */
export const hostOf = (url: string): string | null =>
  URL.parse(url)?.hostname.replace(/^\[|\]$/g, '') ?? null;

/**
 * The way of an HTTP client to its connections. Decides anew with every one of them, whatever the name resolved to
 * before, and whether the host is a name or an address itself. A name is refused as a whole when one of its addresses
 * is: who controls it could otherwise leave it to chance which one is taken.
 */
export function guardedConnector(
  refused: (address: string) => boolean,
  lookup: NameLookup,
  options: { readonly timeout: number; readonly allowH2: boolean },
): buildConnector.connector {
  const connect = buildConnector({ ...options, lookup: guardedLookup(refused, lookup) });
  return (target, callback) => {
    // An address is never looked up.
    if (isIP(target.hostname) && refused(target.hostname)) callback(new RefusedAddressError(), null);
    else connect(target, callback);
  };
}

function guardedLookup(refused: (address: string) => boolean, lookup: NameLookup): LookupFunction {
  return (host, options, callback) => {
    lookup(host, { ...options, all: true }, (error, addresses) => {
      const [first] = addresses ?? [];
      if (error || !first) callback(error ?? new Error(`${host} has no address`), '');
      else if (addresses.some(({ address }) => refused(address))) callback(new RefusedAddressError(), '');
      else if (options.all) callback(null, addresses);
      else callback(null, first.address, first.family);
    });
  };
}
