import { Global, Module } from '@nestjs/common';
import { DeliveriesRepository } from './deliveries.repository';
import { WebhookDispatcher } from './webhook-dispatcher';
import { WebhookSender } from './webhook-sender';
import { WebhooksRepository } from './webhooks.repository';

/** Webhooks: sole owner of who is told of what, and of the outbox's deliveries. Promises each event at least once, signed, or a dead letter. */
@Global()
@Module({
  providers: [WebhooksRepository, DeliveriesRepository, WebhookSender, WebhookDispatcher],
  exports: [WebhooksRepository, WebhookSender],
})
export class WebhooksModule {}
