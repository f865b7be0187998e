import { Controller, Get, Param } from '@nestjs/common';
import { ApiHeader, ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import type { Principal } from '../common';
import { Caller, Scopes } from '../common/http';
import { ModelCatalogue, type ModelRecord } from './model-catalogue';
import { noSuchModel } from './models';

@ApiTags('openai')
@ApiSecurity('bearer')
@ApiHeader({ name: 'tenant-id', required: false })
@Scopes('dialogue', 'models')
@Controller(['v1/models', 'api/v1/models'])
export class ModelsController {
  constructor(private readonly catalogue: ModelCatalogue) {}

  @Get()
  @ApiOperation({ summary: 'Model services and agents the caller may use' })
  async list(@Caller() { tenantId }: Principal) {
    return { object: 'list', data: await this.catalogue.list(tenantId) };
  }

  /** A wildcard, as names may hold slashes. */
  @Get('*')
  @ApiOperation({ summary: 'A model service by name or id, or an agent' })
  async retrieve(@Caller() { tenantId }: Principal, @Param('*') id: string): Promise<ModelRecord> {
    const found = await this.catalogue.find(tenantId, id);
    if (!found) throw noSuchModel(id);
    return found;
  }
}
