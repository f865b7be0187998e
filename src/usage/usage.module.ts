import { Global, Module } from '@nestjs/common';
import { QuotaKeeper } from './quota-keeper';
import { Quotas } from './quotas';
import { UsageRollUp } from './roll-up';
import { UsageReport } from './usage-report';

/** Usage: sole owner of the ledger, of what is added up from it, and of the counts that quotas are kept by. Others write to it by its statements, in their own transactions. */
@Global()
@Module({
  providers: [Quotas, QuotaKeeper, UsageRollUp, UsageReport],
  exports: [Quotas, UsageRollUp, UsageReport],
})
export class UsageModule {}
