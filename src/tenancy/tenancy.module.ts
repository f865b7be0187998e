import { Global, Module } from '@nestjs/common';
import { AccessWatch } from './access-watch';
import { ApiKeysRepository } from './api-keys.repository';
import { AuditLogRepository } from './audit-log.repository';
import { Authenticator } from './authenticator';
import { DemoTenant } from './demo-tenant';
import { TenantsRepository } from './tenants.repository';

/** Tenancy: sole owner of tenants, API keys and the audit log. Promises that whoever passes it is who they say, within a second of any change. */
@Global()
@Module({
  providers: [
    TenantsRepository,
    ApiKeysRepository,
    AuditLogRepository,
    Authenticator,
    AccessWatch,
    DemoTenant,
  ],
  exports: [TenantsRepository, ApiKeysRepository, AuditLogRepository, Authenticator, AccessWatch, DemoTenant],
})
export class TenancyModule {}
