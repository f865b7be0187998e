import { lookup } from 'node:dns';
import { Config } from '../../src/config';
import { Outbound, type NameLookup, type OutboundPolicy } from '../../src/outbound';

/** Connections of a test, whose servers are on this machine: refused is what it says. */
export class LocalOutbound extends Outbound {
  constructor(
    private readonly refused: (address: string, policy: OutboundPolicy) => boolean = () => false,
    env: Record<string, string> = {},
    resolve: NameLookup = lookup,
  ) {
    super(Config.load({ NODE_ENV: 'test', ...env }), resolve);
  }

  override refuses(policy: OutboundPolicy, address: string): boolean {
    return this.refused(address, policy);
  }
}

/** The names of a test: each with the addresses of its first look-up, of its second …, of its last one for ever. */
export class TestNames {
  private readonly names = new Map<string, string[][]>();
  readonly asked: string[] = [];

  set(host: string, ...turns: string[][]): this {
    this.names.set(host, turns);
    return this;
  }

  readonly lookup: NameLookup = (host, options, callback) => {
    const turns = this.names.get(host);
    if (!turns) {
      lookup(host, options, callback);
      return;
    }
    this.asked.push(host);
    const addresses = turns.length > 1 ? turns.shift()! : turns[0]!;
    callback(
      null,
      addresses.map((address) => ({ address, family: address.includes(':') ? 6 : 4 })),
    );
  };
}
