import { AddressRanges } from '../common';

/** True when no list is set, or one of its addresses or CIDR ranges holds the peer's. */
export function addressAllowed(address: string, allowed: readonly string[]): boolean {
  return allowed.length === 0 || new AddressRanges(allowed).has(address);
}
