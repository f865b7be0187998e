import { lookup as lookupName } from 'node:dns';
import { lookup } from 'node:dns/promises';
import { BlockList, isIP, type LookupFunction } from 'node:net';
import { badInput } from './errors';

/** Addresses that are nobody's business to have us call: this host, its networks, and their metadata services (RFC 6890). */
const PRIVATE = new BlockList();
for (const [base, prefix] of [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.168.0.0', 16],
  ['198.18.0.0', 15],
  ['224.0.0.0', 3],
] as const) {
  PRIVATE.addSubnet(base, prefix, 'ipv4');
}
for (const [base, prefix] of [
  // ::, ::1, and with an IPv4 address inside, whichever that is: compatible, translated, NAT64, 6to4.
  ['::', 96],
  ['::ffff:0:0:0', 96],
  ['64:ff9b::', 96],
  ['64:ff9b:1::', 48],
  ['2002::', 16],
  ['fc00::', 7],
  ['fe80::', 10],
  ['fec0::', 10],
  ['ff00::', 8],
] as const) {
  PRIVATE.addSubnet(base, prefix, 'ipv6');
}

export function isPrivateAddress(address: string): boolean {
  const plain = address.replace(/^::ffff:(?=\d+\.)/i, '');
  return PRIVATE.check(plain, isIP(plain) === 6 ? 'ipv6' : 'ipv4');
}

/** 127.0.0.0/8 and ::1: this machine itself. */
export function isLoopback(address: string): boolean {
  const plain = address.replace(/^::ffff:(?=\d+\.)/i, '');
  return plain === '::1' || /^127\.\d+\.\d+\.\d+$/.test(plain);
}

/** The host of a URL, without the brackets of an IPv6 address. */
export const hostOf = (url: string): string => new URL(url).hostname.replace(/^\[|\]$/g, '');

/**
 * BAD_INPUT, naming `field`, when the URL's host is, or resolves to, an address that is not allowed: a tenant could
 * otherwise read our network through us.
 */
export async function refuseAddresses(
  field: string,
  url: string,
  refused: (address: string) => boolean = isPrivateAddress,
): Promise<void> {
  const host = hostOf(url);
  const addresses = isIP(host)
    ? [host]
    : await lookup(host, { all: true }).then(
        (found) => found.map(({ address }) => address),
        () => [],
      );
  if (addresses.length === 0) throw badInput(field, "its host's name can not be resolved");
  if (addresses.some(refused)) throw badInput(field, 'must not lead to a private address');
}

/** What a connection fails with when its host's name leads to refused addresses only. */
export class RefusedAddressError extends Error {
  constructor() {
    super('leads to a private address');
    this.name = 'RefusedAddressError';
  }
}

/**
 * For the `connect` of an HTTP client: decides anew with every connection, whatever the name resolved to before. A host
 * that is an address itself is never looked up; its user checks that.
 */
export function guardedLookup(refused: (address: string) => boolean): LookupFunction {
  return (host, options, callback) => {
    lookupName(host, { ...options, all: true }, (error, found) => {
      const addresses = error ? [] : found.filter(({ address }) => !refused(address));
      const [first] = addresses;
      if (!first) callback(error ?? new RefusedAddressError(), '');
      else if (options.all) callback(null, addresses);
      else callback(null, first.address, first.family);
    });
  };
}
