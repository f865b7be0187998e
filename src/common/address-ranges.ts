import { BlockList, isIP } from 'node:net';

/** `::ffff:10.0.0.7`, as a socket for both families names it, as 10.0.0.7; everything else as it is. */
export const plainAddress = (address: string): string => address.replace(/^::ffff:(?=\d+\.)/i, '');

/** An IP address, or a range as in 10.0.0.0/8. */
export function isAddressOrRange(text: string): boolean {
  const [base = '', prefix, ...more] = text.split('/');
  const family = isIP(base);
  if (family === 0 || base.includes('%') || more.length > 0) return false;
  return prefix === undefined || (/^\d{1,3}$/.test(prefix) && Number(prefix) <= (family === 4 ? 32 : 128));
}

/** Addresses and ranges; what is none of the two is in no range and holds no address. */
export class AddressRanges {
  private readonly list = new BlockList();

  constructor(entries: readonly string[]) {
    for (const entry of entries.filter(isAddressOrRange)) {
      const [base = '', prefix] = entry.split('/');
      const type = isIP(base) === 4 ? 'ipv4' : 'ipv6';
      if (prefix === undefined) this.list.addAddress(base, type);
      else this.list.addSubnet(base, Number(prefix), type);
    }
  }

  has(address: string): boolean {
    const plain = plainAddress(address);
    const family = isIP(plain);
    return family !== 0 && this.list.check(plain, family === 4 ? 'ipv4' : 'ipv6');
  }
}
