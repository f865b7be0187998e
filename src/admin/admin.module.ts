import { Module } from '@nestjs/common';
import { GenerationsModule } from '../generations';
import { RepliesModule } from '../replies';
import { RetentionModule } from '../retention';
import { AssistantsController } from './assistants.controller';
import { AuditLogController } from './audit-log.controller';
import { GenerationAppsController } from './generation-apps.controller';
import { DialoguesController } from './dialogues.controller';
import { ModelProvidersController } from './model-providers.controller';
import { ModelServicesController } from './model-services.controller';
import { TenantsController } from './tenants.controller';
import { UsageController } from './usage.controller';

/** The admin wire: REST over what storey 1 owns. Every write and its audit entry are one transaction. */
@Module({
  imports: [GenerationsModule, RepliesModule, RetentionModule],
  controllers: [
    TenantsController,
    ModelProvidersController,
    ModelServicesController,
    AssistantsController,
    GenerationAppsController,
    AuditLogController,
    UsageController,
    DialoguesController,
  ],
})
export class AdminModule {}
