import { Controller, Get, Query, UsePipes } from '@nestjs/common';
import { ApiHeader, ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import type { Principal } from '../common';
import { Caller, Scopes, validation } from '../common/http';
import { ModelServicesRepository } from '../model-services';
import { list } from './envelope';
import { pageOf } from './paging';
import { modelServiceRow } from './records';
import { ModelListQuery } from './requests';

const SERVICES = {
  pageSize: 200,
  columns: { orderNum: 'order_num', name: 'name' },
  orderBy: 'order_num',
  descending: false,
} as const;

@ApiTags('assistant platform')
@ApiSecurity('x-api-key')
@ApiHeader({ name: 'tenant-id', required: false })
@Scopes('dialogue', 'models')
@UsePipes(validation('ignored'))
@Controller(['api/copywriting/user-model', 'copywriting/user-model'])
export class ModelListController {
  constructor(private readonly services: ModelServicesRepository) {}

  @Get('model-list')
  @ApiOperation({ summary: 'Model services the caller may use' })
  async modelList(@Caller() { tenantId }: Principal, @Query() query: ModelListQuery) {
    const { total, rows } = await this.services.listUsable(tenantId, {
      ...pageOf(query, SERVICES),
      ...(query.modelServiceType !== undefined && { type: query.modelServiceType }),
    });
    return list(total, rows.map(modelServiceRow));
  }
}
