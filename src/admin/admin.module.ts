import { Module } from '@nestjs/common';
import { AssistantsController } from './assistants.controller';
import { AuditLogController } from './audit-log.controller';
import { ModelProvidersController } from './model-providers.controller';
import { ModelServicesController } from './model-services.controller';
import { TenantsController } from './tenants.controller';

/** The admin wire: REST over what storey 1 owns. Every write and its audit entry are one transaction. */
@Module({
  controllers: [
    TenantsController,
    ModelProvidersController,
    ModelServicesController,
    AssistantsController,
    AuditLogController,
  ],
})
export class AdminModule {}
