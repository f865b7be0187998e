import { Global, Module } from '@nestjs/common';
import { Config } from '../config';
import { ObservabilityModule } from '../observability';
import { FairShares } from './fair-shares';
import { FairnessMetrics } from './fairness-metrics';
import { ReplySlots } from './tenant-slots';

/** Fairness: what each tenant may have of this process while others want some of it, too. Knows no wire and no table. */
@Global()
@Module({
  imports: [ObservabilityModule],
  providers: [
    FairnessMetrics,
    {
      provide: FairShares,
      inject: [Config],
      useFactory: ({ env }: Config) =>
        new FairShares({
          requests: env.TENANT_MAX_REQUESTS,
          atWork: env.TENANT_REQUESTS_AT_WORK,
          // Sockets and the log of messages find a connection, whatever REST does.
          allAtWork: Math.max(1, Math.floor(env.DATABASE_POOL_SIZE / 2)),
          largeBytesPerSecond: env.TENANT_LARGE_BODY_BYTES_PER_SECOND,
        }),
    },
    {
      provide: ReplySlots,
      inject: [Config],
      useFactory: ({ env }: Config) =>
        new ReplySlots('replies', env.MAX_CONCURRENT_REPLIES, env.TENANT_MAX_REPLIES),
    },
  ],
  exports: [FairShares, ReplySlots],
})
export class FairnessModule {}
