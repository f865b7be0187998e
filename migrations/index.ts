import { CreateFoundation1795219200000 } from './1795219200000-create-foundation';
import { CreateConversations1795300000000 } from './1795300000000-create-conversations';
import { CreateSessions1795400000000 } from './1795400000000-create-sessions';
import { CreateGenerations1795500000000 } from './1795500000000-create-generations';
import { CreateUsage1795600000000 } from './1795600000000-usage';
import { CreateOpenRequests1795700000000 } from './1795700000000-create-open-requests';
import { PrepareRetention1795800000000 } from './1795800000000-prepare-retention';
import { CreateUsageByDay1795900000000 } from './1795900000000-usage-by-day';
import { CreateGenerationImages1796000000000 } from './1796000000000-create-generation-images';
import { TenantLast1797000000000 } from './1797000000000-tenant-last';
import { CountBySide1798000000000 } from './1798000000000-count-by-side';
import { VacuumMessagesLess1799000000000 } from './1799000000000-vacuum-messages-less';
import { AnalyseMessagesAtAGlance1800000000000 } from './1800000000000-analyse-messages-at-a-glance';
import { CreateBroadcasts1803000000000 } from './1803000000000-create-broadcasts';
import { DevicesByUse1805000000000 } from './1805000000000-devices-by-use';
import { PastMemberships1805100000000 } from './1805100000000-past-memberships';
import { WebhookReceivers1806000000000 } from './1806000000000-webhook-receivers';
import { KeyGenerations1806100000000 } from './1806100000000-key-generations';
import { MaskProviderAddresses1807000000000 } from './1807000000000-mask-provider-addresses';

/** In order; a new migration is added at the end. */
export const migrations = [
  CreateFoundation1795219200000,
  CreateConversations1795300000000,
  CreateSessions1795400000000,
  CreateGenerations1795500000000,
  CreateUsage1795600000000,
  CreateOpenRequests1795700000000,
  PrepareRetention1795800000000,
  CreateUsageByDay1795900000000,
  CreateGenerationImages1796000000000,
  TenantLast1797000000000,
  CountBySide1798000000000,
  VacuumMessagesLess1799000000000,
  AnalyseMessagesAtAGlance1800000000000,
  CreateBroadcasts1803000000000,
  DevicesByUse1805000000000,
  PastMemberships1805100000000,
  WebhookReceivers1806000000000,
  KeyGenerations1806100000000,
  MaskProviderAddresses1807000000000,
];
