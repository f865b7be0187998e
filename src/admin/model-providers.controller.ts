import { Body, Controller, Delete, Get, Param, Patch, Post, Query, UsePipes } from '@nestjs/common';
import { ApiHeader, ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import type { ProviderId } from '../common';
import { Scopes, validation } from '../common/http';
import { Database } from '../database';
import { ModelProvidersRepository, type ModelProviderInput } from '../model-services';
import { Outbound } from '../outbound';
import { AuditLogRepository } from '../tenancy';
import { Op, Operator, pathId } from './operator';
import { CreateProvider, PageQuery, UpdateProvider } from './requests';

/** With the root key and no `tenant-id`: providers shared by the platform; else a tenant's own. */
@ApiTags('admin')
@ApiSecurity('x-api-key')
@ApiHeader({ name: 'tenant-id', required: false })
@Scopes('admin')
@UsePipes(validation('refused'))
@Controller('api/admin/model-providers')
export class ModelProvidersController {
  constructor(
    private readonly database: Database,
    private readonly providers: ModelProvidersRepository,
    private readonly auditLog: AuditLogRepository,
    private readonly outbound: Outbound,
  ) {}

  @Get()
  @ApiOperation({ summary: 'Model providers' })
  list(@Op() operator: Operator, @Query() query: PageQuery) {
    return this.database.transaction(operator.scope, (tx) =>
      this.providers.list(tx, operator.tenantId, query),
    );
  }

  @Post()
  @ApiOperation({ summary: 'Create a model provider' })
  async create(@Op() operator: Operator, @Body() input: CreateProvider) {
    await this.checkAddress(operator, input);
    return this.database.transaction(operator.scope, async (tx) => {
      const after = await this.providers.create(tx, operator.tenantId, input);
      await this.auditLog.record(tx, operator.audit('create', 'model-provider', { after }));
      return after;
    });
  }

  @Get(':id')
  @ApiOperation({ summary: 'A model provider' })
  get(@Op() operator: Operator, @Param('id') id: string) {
    return this.database.transaction(operator.scope, (tx) =>
      this.providers.get(tx, operator.tenantId, pathId(id)),
    );
  }

  @Patch(':id')
  @ApiOperation({ summary: 'Change a model provider' })
  async update(@Op() operator: Operator, @Param('id') id: string, @Body() change: UpdateProvider) {
    const providerId = pathId<ProviderId>(id);
    await this.checkAddress(operator, change);
    return this.database.transaction(operator.scope, async (tx) => {
      const before = await this.providers.get(tx, operator.tenantId, providerId);
      const after = await this.providers.update(tx, operator.tenantId, providerId, change);
      await this.auditLog.record(tx, operator.audit('update', 'model-provider', { before, after }));
      return after;
    });
  }

  @Delete(':id')
  @ApiOperation({ summary: 'Delete a model provider that no service uses' })
  delete(@Op() operator: Operator, @Param('id') id: string) {
    return this.database.transaction(operator.scope, async (tx) => {
      const before = await this.providers.delete(tx, operator.tenantId, pathId(id));
      await this.auditLog.record(tx, operator.audit('delete', 'model-provider', { before }));
      return before;
    });
  }

  /** The platform's own providers may lead anywhere; a tenant's only outside, unless the installation allows it. */
  private async checkAddress({ tenantId }: Operator, { baseUrl }: ModelProviderInput): Promise<void> {
    if (baseUrl) await this.outbound.check(tenantId ? 'provider' : 'operator', 'baseUrl', baseUrl);
  }
}
