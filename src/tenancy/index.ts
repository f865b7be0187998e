export { appKeyOf, formatApiKey, parseAppKey } from './api-key';
export * from './access-watch';
export * from './api-keys.repository';
export * from './audit-log.repository';
export * from './auth.guard';
export * from './authenticator';
export * from './connection-limits';
export * from './demo-tenant';
export * from './grant';
export * from './root-key';
export * from './tenancy.module';
export * from './tenants.repository';
export * from './user-tokens';
import { ApiKeyEntity } from './api-key.entity';
import { AuditLogEntity } from './audit-log.entity';
import { TenantEntity } from './tenant.entity';

/** For the DataSource alone. */
export const tenancyEntities = [TenantEntity, ApiKeyEntity, AuditLogEntity];
