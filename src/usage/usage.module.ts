import { Global, Module } from '@nestjs/common';
import { Metering } from './metering';
import { Quotas } from './quotas';
import { UsageRollUp } from './roll-up';
import { UsageKeeper } from './usage-keeper';
import { UsageReport } from './usage-report';

/** Usage: sole owner of the ledger, of what is added up from it, and of the counts that quotas are kept by. Others write to it by its statements, in their own transactions. */
@Global()
@Module({
  providers: [Quotas, Metering, UsageKeeper, UsageRollUp, UsageReport],
  exports: [Quotas, Metering, UsageRollUp, UsageReport],
})
export class UsageModule {}
