import { createHmac } from 'node:crypto';
import { isIP } from 'node:net';
import { Injectable, type OnApplicationShutdown } from '@nestjs/common';
import { Agent, request } from 'undici';
import { AppError, guardedLookup, hostOf, isLoopback, isPrivateAddress, refuseAddresses } from '../common';
import { Config } from '../config';
import type { Delivery } from './deliveries.repository';

const CONNECT_MS = 5_000;
const MAX_ANSWER_BYTES = 16_384;
const ANSWER_MS = 1_000;

/** One attempt: signed, bounded in time, and never to an address inside our own network, whatever its name resolves to by then. */
@Injectable()
export class WebhookSender implements OnApplicationShutdown {
  private readonly agent: Agent;

  constructor(private readonly config: Config) {
    this.agent = new Agent({
      connect: { timeout: CONNECT_MS, lookup: guardedLookup((address) => this.refused(address)) },
      headersTimeout: this.timeoutMs,
      bodyTimeout: ANSWER_MS,
    });
  }

  private get timeoutMs(): number {
    return this.config.env.WEBHOOK_TIMEOUT_SECONDS * 1_000;
  }

  async onApplicationShutdown(): Promise<void> {
    await this.agent.destroy();
  }

  readonly refused = (address: string): boolean => {
    const allowed = this.config.privateWebhookAddresses;
    return allowed !== 'any' && isPrivateAddress(address) && !(allowed === 'loopback' && isLoopback(address));
  };

  /** BAD_INPUT for a URL that may not be called. */
  check(url: string): Promise<void> {
    return refuseAddresses('url', url, this.refused);
  }

  /** Resolves when the receiver answered 2xx; rejects with an Error whose message says what happened instead. */
  async send(delivery: Delivery, secret: string): Promise<void> {
    const body = bodyOf(delivery);
    const timestamp = String(Math.floor(Date.now() / 1_000));
    const host = hostOf(delivery.url);
    if (isIP(host) && this.refused(host)) throw new AppError('BAD_INPUT', { message: 'a private address' });
    const { statusCode, body: answer } = await request(delivery.url, {
      method: 'POST',
      dispatcher: this.agent,
      signal: AbortSignal.timeout(this.timeoutMs),
      headers: {
        'content-type': 'application/json',
        'user-agent': 'Parley-Webhooks/1',
        'parley-event': delivery.event,
        'parley-delivery': delivery.id,
        'parley-attempt': String(delivery.attempt),
        'parley-timestamp': timestamp,
        'parley-signature': signature(secret, timestamp, body),
      },
      body,
    });
    // What it says is nothing to us: the status has decided. Read, if it is short, so that the connection can go on.
    await answer
      .dump({ limit: MAX_ANSWER_BYTES, signal: AbortSignal.timeout(ANSWER_MS) })
      .catch(() => undefined);
    if (statusCode < 200 || statusCode > 299) throw new Error(`answered ${statusCode}`);
  }
}

/** `{"id","event","createdAt","data"}`; the same bytes at every attempt. */
function bodyOf({ id, event, eventId, createdAt, payload }: Delivery): string {
  return `{"id":"${id}","event":"${event}","eventId":${JSON.stringify(eventId)},"createdAt":${createdAt.getTime()},"data":${payload}}`;
}

/** `v1=` and the hex HMAC-SHA-256 of `<timestamp>.<body>`: without the time in it a caught delivery could be sent again later. */
export function signature(secret: string, timestamp: string, body: string): string {
  return `v1=${createHmac('sha256', secret).update(`${timestamp}.${body}`).digest('hex')}`;
}
