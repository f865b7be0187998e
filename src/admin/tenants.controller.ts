import { Body, Controller, Delete, Get, HttpCode, Param, Patch, Post, Query, UsePipes } from '@nestjs/common';
import { ApiBody, ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import { badInput, type ApiKeyId, type TenantId } from '../common';
import { Scopes, validation } from '../common/http';
import { Database } from '../database';
import {
  ApiKeysRepository,
  Authenticator,
  appKeyOf,
  AuditLogRepository,
  formatApiKey,
  TenantsRepository,
  type ApiKey,
} from '../tenancy';
import { Op, Operator, pathId } from './operator';
import { CreateApiKey, CreateTenant, PageQuery, RotateApiKey, UpdateApiKey, UpdateTenant } from './requests';

/** Tenants are the platform's; their keys also the tenant's own operator's. */
@ApiTags('admin')
@ApiSecurity('x-api-key')
@Scopes('platform')
@UsePipes(validation('refused'))
@Controller('api/admin/tenants')
export class TenantsController {
  constructor(
    private readonly database: Database,
    private readonly tenants: TenantsRepository,
    private readonly keys: ApiKeysRepository,
    private readonly auditLog: AuditLogRepository,
    private readonly authenticator: Authenticator,
  ) {}

  @Get()
  @ApiOperation({ summary: 'Tenants' })
  list(@Op() operator: Operator, @Query() query: PageQuery) {
    return this.database.transaction(operator.scope, (tx) => this.tenants.list(tx, query));
  }

  @Post()
  @ApiOperation({ summary: 'Create a tenant' })
  create(@Op() operator: Operator, @Body() input: CreateTenant) {
    return this.database.transaction(operator.scope, async (tx) => {
      const after = await this.tenants.create(tx, input);
      await this.auditLog.record(tx, operator.about(after.id).audit('create', 'tenant', { after }));
      return after;
    });
  }

  @Get(':id')
  @ApiOperation({ summary: 'A tenant' })
  get(@Op() operator: Operator, @Param('id') id: string) {
    return this.database.transaction(operator.scope, (tx) => this.tenants.get(tx, pathId(id)));
  }

  @Patch(':id')
  @ApiOperation({ summary: 'Change a tenant' })
  update(@Op() operator: Operator, @Param('id') id: string, @Body() change: UpdateTenant) {
    const tenantId = pathId<TenantId>(id);
    return this.database.transaction(operator.scope, async (tx) => {
      const before = await this.tenants.get(tx, tenantId);
      const after = await this.tenants.update(tx, tenantId, change);
      await this.auditLog.record(tx, operator.about(tenantId).audit('update', 'tenant', { before, after }));
      return after;
    });
  }

  @Get(':id/api-keys')
  @Scopes('admin')
  @ApiOperation({ summary: "A tenant's keys" })
  listKeys(@Op() operator: Operator, @Param('id') id: string, @Query() query: PageQuery) {
    const tenantId = pathId<TenantId>(id);
    return this.database.transaction(operator.about(tenantId).scope, (tx) =>
      this.keys.list(tx, tenantId, query),
    );
  }

  @Post(':id/api-keys')
  @Scopes('admin')
  @ApiOperation({ summary: 'Create a key; the answer is the only place its secret ever stands' })
  createKey(@Op() whoever: Operator, @Param('id') id: string, @Body() input: CreateApiKey) {
    const tenantId = pathId<TenantId>(id);
    const operator = whoever.about(tenantId);
    refusePlatform(input.scopes);
    return this.database.transaction(operator.scope, async (tx) => {
      await this.tenants.get(tx, tenantId);
      const { key: after, secret } = await this.keys.create(tx, tenantId, input);
      await this.auditLog.record(tx, operator.audit('create', 'api-key', { after }));
      return shownOnce(after, secret);
    });
  }

  @Get(':id/api-keys/:keyId')
  @Scopes('admin')
  @ApiOperation({ summary: 'A key' })
  getKey(@Op() operator: Operator, @Param('id') id: string, @Param('keyId') keyId: string) {
    const tenantId = pathId<TenantId>(id);
    return this.database.transaction(operator.about(tenantId).scope, (tx) =>
      this.keys.get(tx, tenantId, pathId(keyId)),
    );
  }

  @Patch(':id/api-keys/:keyId')
  @Scopes('admin')
  @ApiOperation({ summary: 'Change a key' })
  updateKey(
    @Op() whoever: Operator,
    @Param('id') id: string,
    @Param('keyId') keyId: string,
    @Body() change: UpdateApiKey,
  ) {
    const tenantId = pathId<TenantId>(id);
    const apiKeyId = pathId<ApiKeyId>(keyId);
    const operator = whoever.about(tenantId);
    refusePlatform(change.scopes ?? []);
    return this.changeKey(operator, apiKeyId, async (tx) => {
      const before = await this.keys.get(tx, tenantId, apiKeyId);
      const after = await this.keys.update(tx, tenantId, apiKeyId, change);
      await this.auditLog.record(tx, operator.audit('update', 'api-key', { before, after }));
      return after;
    });
  }

  @Delete(':id/api-keys/:keyId')
  @Scopes('admin')
  @ApiOperation({ summary: 'Revoke a key: it stops working on every node within a second' })
  revokeKey(@Op() whoever: Operator, @Param('id') id: string, @Param('keyId') keyId: string) {
    const tenantId = pathId<TenantId>(id);
    const apiKeyId = pathId<ApiKeyId>(keyId);
    const operator = whoever.about(tenantId);
    return this.changeKey(operator, apiKeyId, async (tx) => {
      const before = await this.keys.get(tx, tenantId, apiKeyId);
      const after = await this.keys.revoke(tx, tenantId, apiKeyId);
      await this.auditLog.record(tx, operator.audit('revoke', 'api-key', { before, after }));
      return after;
    });
  }

  @Post(':id/api-keys/:keyId/rotate')
  @HttpCode(200)
  @Scopes('admin')
  @ApiOperation({ summary: 'A new secret for a key; the old one stops working, at once or after an overlap' })
  @ApiBody({ type: RotateApiKey, required: false })
  rotateKey(
    @Op() whoever: Operator,
    @Param('id') id: string,
    @Param('keyId') keyId: string,
    @Body() input: RotateApiKey,
  ) {
    const tenantId = pathId<TenantId>(id);
    const apiKeyId = pathId<ApiKeyId>(keyId);
    const operator = whoever.about(tenantId);
    return this.changeKey(operator, apiKeyId, async (tx) => {
      const { key: after, secret } = await this.keys.rotate(tx, tenantId, apiKeyId, input?.overlapSeconds);
      await this.auditLog.record(tx, operator.audit('rotate', 'api-key', { after }));
      return shownOnce(after, secret);
    });
  }

  private async changeKey<T>(
    operator: Operator,
    keyId: ApiKeyId,
    work: Parameters<typeof this.database.transaction<T>>[1],
  ): Promise<T> {
    const result = await this.database.transaction(operator.scope, work);
    this.authenticator.forget(keyId);
    return result;
  }
}

/** The platform's scope belongs to the root key: a tenant's key with it would reach every tenant. */
function refusePlatform(scopes: readonly string[]): void {
  if (scopes.includes('platform')) throw badInput('scopes', "platform is the root key's alone");
}

function shownOnce(key: ApiKey, secret: string) {
  return { ...key, key: formatApiKey({ id: key.id, secret }), appKey: appKeyOf(key.id), appSecret: secret };
}
