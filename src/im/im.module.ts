import { Module } from '@nestjs/common';
import { ObservabilityModule } from '../observability';
import { RepliesModule } from '../replies';
import { Arrivals } from './arrivals';
import { Broadcaster } from './broadcaster';
import { BroadcastsController } from './broadcasts.controller';
import { Contacts } from './contacts';
import { Delivery } from './delivery';
import { DeviceMarks } from './device-marks';
import { ImGateway } from './gateway';
import { GroupsController } from './groups.controller';
import { Hub } from './hub';
import { MessagesController } from './messages.controller';
import { ImMetrics } from './im-metrics';
import { Messenger } from './messenger';
import { OnlineGroups } from './online-groups';
import { Presence } from './presence';
import { Publisher } from './publisher';
import { TokenIssuer } from './token-issuer';
import { TokensController } from './tokens.controller';
import { UsersController } from './users.controller';
import { WebhooksController } from './webhooks.controller';

/** The IM wire: `/chat` and the REST beside it. Owns connections and what is on its way to them; what was said is the log's. */
@Module({
  imports: [ObservabilityModule, RepliesModule],
  controllers: [
    TokensController,
    MessagesController,
    BroadcastsController,
    GroupsController,
    UsersController,
    WebhooksController,
  ],
  providers: [
    Publisher,
    Delivery,
    OnlineGroups,
    Presence,
    Arrivals,
    Hub,
    DeviceMarks,
    Messenger,
    Contacts,
    Broadcaster,
    ImGateway,
    TokenIssuer,
    ImMetrics,
  ],
})
export class ImModule {}
