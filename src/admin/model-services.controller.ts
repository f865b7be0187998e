import { Body, Controller, Delete, Get, Param, Patch, Post, Query, UsePipes } from '@nestjs/common';
import { ApiHeader, ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import type { EntityManager } from 'typeorm';
import { AppError, badInput, type ModelServiceId, type ProviderId } from '../common';
import { Scopes, validation } from '../common/http';
import { Database } from '../database';
import { ModelProvidersRepository, ModelServicesRepository } from '../model-services';
import { AuditLogRepository } from '../tenancy';
import { Op, Operator, pathId } from './operator';
import { CreateModelPrice, CreateModelService, PageQuery, parseTime, UpdateModelService } from './requests';

/** Prices come whole: a `limit` or `cursor` that is sent is refused rather than passed over. */
class NoQuery {}

/** With the root key and no `tenant-id`: services shared by the platform; else a tenant's own. */
@ApiTags('admin')
@ApiSecurity('x-api-key')
@ApiHeader({ name: 'tenant-id', required: false })
@Scopes('admin')
@UsePipes(validation('refused'))
@Controller('api/admin/model-services')
export class ModelServicesController {
  constructor(
    private readonly database: Database,
    private readonly services: ModelServicesRepository,
    private readonly providers: ModelProvidersRepository,
    private readonly auditLog: AuditLogRepository,
  ) {}

  @Get()
  @ApiOperation({ summary: 'Model services' })
  list(@Op() operator: Operator, @Query() query: PageQuery) {
    return this.database.transaction(operator.scope, (tx) =>
      this.services.list(tx, operator.tenantId, query),
    );
  }

  @Post()
  @ApiOperation({ summary: 'Create a model service' })
  create(@Op() operator: Operator, @Body() input: CreateModelService) {
    return this.database.transaction(operator.scope, async (tx) => {
      await this.checkProvider(tx, operator, input.providerId);
      const after = await this.services.create(tx, operator.tenantId, typed(input));
      await this.auditLog.record(tx, operator.audit('create', 'model-service', { after }));
      return after;
    });
  }

  @Get(':id')
  @ApiOperation({ summary: 'A model service' })
  get(@Op() operator: Operator, @Param('id') id: string) {
    return this.database.transaction(operator.scope, (tx) =>
      this.services.get(tx, operator.tenantId, pathId(id)),
    );
  }

  @Patch(':id')
  @ApiOperation({ summary: 'Change a model service' })
  update(@Op() operator: Operator, @Param('id') id: string, @Body() change: UpdateModelService) {
    const serviceId = pathId<ModelServiceId>(id);
    return this.database.transaction(operator.scope, async (tx) => {
      const before = await this.services.get(tx, operator.tenantId, serviceId);
      if (change.providerId !== undefined) await this.checkProvider(tx, operator, change.providerId);
      const after = await this.services.update(tx, operator.tenantId, serviceId, typed(change));
      await this.auditLog.record(tx, operator.audit('update', 'model-service', { before, after }));
      return after;
    });
  }

  @Delete(':id')
  @ApiOperation({ summary: 'Delete a model service; what it answered stays' })
  delete(@Op() operator: Operator, @Param('id') id: string) {
    return this.database.transaction(operator.scope, async (tx) => {
      const before = await this.services.delete(tx, operator.tenantId, pathId(id));
      await this.auditLog.record(tx, operator.audit('delete', 'model-service', { before }));
      return before;
    });
  }

  @Get(':id/prices')
  @ApiOperation({ summary: 'Prices with the dates they hold from, newest first, those to come included' })
  listPrices(@Op() operator: Operator, @Param('id') id: string, @Query() _: NoQuery) {
    return this.database.transaction(operator.scope, async (tx) => ({
      data: await this.services.listPrices(tx, operator.tenantId, pathId(id)),
      nextCursor: null,
    }));
  }

  @Post(':id/prices')
  @ApiOperation({ summary: 'A price that holds from a date to come' })
  addPrice(@Op() operator: Operator, @Param('id') id: string, @Body() price: CreateModelPrice) {
    const serviceId = pathId<ModelServiceId>(id);
    return this.database.transaction(operator.scope, async (tx) => {
      const after = await this.services.addPrice(tx, operator.tenantId, serviceId, price);
      await this.auditLog.record(
        tx,
        operator.audit('create', 'model-price', { after: { id: serviceId, ...after } }),
      );
      return after;
    });
  }

  @Delete(':id/prices/:effectiveFrom')
  @ApiOperation({ summary: 'Take back a price whose date has not come' })
  removePrice(
    @Op() operator: Operator,
    @Param('id') id: string,
    @Param('effectiveFrom') effectiveFrom: string,
  ) {
    const serviceId = pathId<ModelServiceId>(id);
    const date = parseTime(effectiveFrom);
    if (!date) throw new AppError('NOT_FOUND');
    return this.database.transaction(operator.scope, async (tx) => {
      const before = await this.services.removePrice(tx, operator.tenantId, serviceId, date);
      await this.auditLog.record(
        tx,
        operator.audit('delete', 'model-price', { before: { id: serviceId, ...before } }),
      );
      return before;
    });
  }

  /** A service stands on a provider of the same owner: a tenant must not spend the platform's credential on a model of its choice. */
  private async checkProvider(tx: EntityManager, operator: Operator, providerId: string): Promise<void> {
    const found = await this.providers
      .get(tx, operator.tenantId, providerId as ProviderId)
      .catch((error: unknown) => {
        if (error instanceof AppError && error.code === 'NOT_FOUND') return null;
        throw error;
      });
    if (!found) throw badInput('providerId', 'is not a provider of this owner');
  }
}

function typed<T extends { providerId?: string }>(input: T): T & { providerId: ProviderId } {
  return input as T & { providerId: ProviderId };
}
