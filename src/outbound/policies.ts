import { AddressRanges, isLoopback, isPrivateAddress } from '../common';
import type { Config } from '../config';

/**
 * Whose wish a connection is, which decides where it may lead:
 * - `operator`: a provider of the platform's own. Anywhere.
 * - `provider`, `tool`: a tenant's provider, an assistant's tools. To private addresses as PRIVATE_PROVIDER_ADDRESSES says.
 * - `webhook`: as PRIVATE_WEBHOOK_ADDRESSES says.
 * - `media`: an address that a client or a provider names, of a recording or an image. Never to a private one.
 */
export type OutboundPolicy = 'operator' | 'provider' | 'tool' | 'webhook' | 'media';

/** Nothing is refused: no name has to be resolved to know it. */
export function allowsAll(config: Config, policy: OutboundPolicy): boolean {
  if (policy === 'operator') return true;
  if (policy === 'webhook') return config.privateWebhookAddresses === 'any';
  return policy !== 'media' && config.privateProviderAddresses;
}

/** Made once of the list as it was configured. */
const ranges = new WeakMap<Config, AddressRanges>();
function allowedBy(config: Config): AddressRanges {
  let allowed = ranges.get(config);
  if (!allowed) ranges.set(config, (allowed = new AddressRanges(config.env.PRIVATE_ADDRESSES_ALLOWED)));
  return allowed;
}

/** PRIVATE_ADDRESSES_ALLOWED, the installation's exceptions, is for what operators of tenants configure, not for what clients say. */
export function refuses(config: Config, policy: OutboundPolicy, address: string): boolean {
  if (allowsAll(config, policy) || !isPrivateAddress(address)) return false;
  if (policy === 'media') return true;
  if (policy === 'webhook' && config.privateWebhookAddresses === 'loopback' && isLoopback(address))
    return false;
  return !allowedBy(config).has(address);
}
