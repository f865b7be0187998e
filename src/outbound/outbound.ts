import { lookup as systemLookup } from 'node:dns';
import { isIP } from 'node:net';
import { promisify } from 'node:util';
import type { OnApplicationShutdown } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { Agent, fetch as fetchWith, request as requestWith, type Dispatcher } from 'undici';
import { badInput } from '../common';
import type { Config } from '../config';
import { guardedConnector, hostOf, type NameLookup } from './guard';
import { allowsAll, refuses, type OutboundPolicy } from './policies';

/** How a pool's connections behave. Milliseconds; 0: no limit. */
export interface PoolOptions {
  readonly connectMs: number;
  /** Until the headers, and between two reads of the body. */
  readonly silenceMs: number;
  readonly maxResponseBytes?: number;
  /** Default true. Aborting a request of HTTP/1.1 is destroying a socket; one of HTTP/2 would be other requests' too. */
  readonly allowH2?: boolean;
}

export type RequestOptions = Pick<Dispatcher.RequestOptions, 'headers' | 'body' | 'method'> & {
  readonly signal?: AbortSignal;
};

const MAX_POOLS = 64;
const MAX_HEADER_BYTES = 65_536;

/**
 * The only way from here to anybody else's server. Every connection is checked as it is made, against the policy of
 * now; redirects are answers like any other; the environment's proxies are not used. Connections are kept open and
 * used again under the same policy only: what one may reach, another may not find open.
 */
export class Outbound implements OnApplicationShutdown {
  private readonly pools = new LRUCache<string, Agent>({
    max: MAX_POOLS,
    dispose: (agent) => void agent.close(),
  });

  /** `lookup`: how names are resolved. */
  constructor(
    private readonly config: Config,
    private readonly lookup: NameLookup = systemLookup,
  ) {}

  async onApplicationShutdown(): Promise<void> {
    const agents = [...this.pools.values()];
    await Promise.all(agents.map((agent) => agent.destroy()));
  }

  /**
   * BAD_INPUT naming `field` when the URL leads to an address that is refused: for who writes it down to know at once.
   * What counts is the check at connect.
   */
  async check(policy: OutboundPolicy, field: string, url: string): Promise<void> {
    if (allowsAll(this.config, policy)) return;
    const host = hostOf(url);
    if (host === null) throw badInput(field, 'must be a URL');
    const addresses = isIP(host) ? [{ address: host }] : await this.resolved(host);
    if (addresses.length === 0) throw badInput(field, "its host's name can not be resolved");
    if (addresses.some(({ address }) => this.refuses(policy, address)))
      throw badInput(field, 'must not lead to a private address');
  }

  /** Ask for it anew for every request: a pool that was long unused may be closed. */
  pool(policy: OutboundPolicy, options: PoolOptions): Dispatcher {
    const { connectMs, silenceMs, maxResponseBytes = 0, allowH2 = true } = options;
    const key = `${policy}/${connectMs}/${silenceMs}/${maxResponseBytes}/${allowH2}`;
    let agent = this.pools.get(key);
    if (!agent) {
      agent = new Agent({
        connect: guardedConnector((address) => this.refuses(policy, address), this.lookup, {
          timeout: connectMs,
          allowH2,
        }),
        headersTimeout: silenceMs,
        bodyTimeout: silenceMs,
        pipelining: 1,
        allowH2,
        maxHeaderSize: MAX_HEADER_BYTES,
        ...(maxResponseBytes > 0 && { maxResponseSize: maxResponseBytes }),
      });
      this.pools.set(key, agent);
    }
    return agent;
  }

  request(
    policy: OutboundPolicy,
    url: string | URL,
    options: RequestOptions,
    pool: PoolOptions,
  ): Promise<Dispatcher.ResponseData> {
    return requestWith(url, { ...options, dispatcher: this.pool(policy, pool) });
  }

  /** As the web's fetch, for libraries that want one. */
  async fetch(
    policy: OutboundPolicy,
    url: string | URL,
    init: RequestInit,
    pool: PoolOptions,
  ): Promise<Response> {
    const answer = await fetchWith(String(url), {
      method: init.method ?? 'GET',
      headers: Object.fromEntries(new Headers(init.headers)),
      body: (init.body as string | null | undefined) ?? null,
      signal: init.signal ?? null,
      redirect: 'manual',
      dispatcher: this.pool(policy, pool),
    });
    return new Response(answer.body as ReadableStream<Uint8Array> | null, {
      status: answer.status,
      headers: [...answer.headers],
    });
  }

  refuses(policy: OutboundPolicy, address: string): boolean {
    return refuses(this.config, policy, address);
  }

  private resolved(host: string): Promise<readonly { readonly address: string }[]> {
    return promisify(this.lookup)(host, { all: true }).catch(() => []);
  }
}
