import { createHmac } from 'node:crypto';
import { Injectable } from '@nestjs/common';
import { Config } from '../config';
import { Outbound } from '../outbound';
import type { Delivery } from './deliveries.repository';

const CONNECT_MS = 5_000;
const MAX_ANSWER_BYTES = 16_384;
const ANSWER_MS = 1_000;

/** One attempt: signed and bounded in time. */
@Injectable()
export class WebhookSender {
  private readonly timeoutMs: number;
  private readonly pool: { connectMs: number; silenceMs: number };

  constructor(
    private readonly outbound: Outbound,
    { env }: Config,
  ) {
    this.timeoutMs = env.WEBHOOK_TIMEOUT_SECONDS * 1_000;
    this.pool = { connectMs: CONNECT_MS, silenceMs: this.timeoutMs };
  }

  /** BAD_INPUT for a URL that may not be called. */
  check(url: string): Promise<void> {
    return this.outbound.check('webhook', 'url', url);
  }

  /** Resolves when the receiver answered 2xx; rejects with an Error whose message says what happened instead. */
  async send(delivery: Delivery, secret: string): Promise<void> {
    const body = bodyOf(delivery);
    const timestamp = String(Math.floor(Date.now() / 1_000));
    const headers = {
      'content-type': 'application/json',
      'user-agent': 'Parley-Webhooks/1',
      'parley-event': delivery.event,
      'parley-delivery': delivery.id,
      'parley-attempt': String(delivery.attempt),
      'parley-timestamp': timestamp,
      'parley-signature': signature(secret, timestamp, body),
    };
    const signal = AbortSignal.timeout(this.timeoutMs);
    const { statusCode, body: answer } = await this.outbound.request(
      'webhook',
      delivery.url,
      { method: 'POST', headers, body, signal },
      this.pool,
    );
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
