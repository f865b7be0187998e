import { Body, Controller, Delete, Get, HttpCode, Param, Patch, Post, Query, UsePipes } from '@nestjs/common';
import { ApiHeader, ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import { AssistantsRepository, type AssistantVersion } from '../assistants';
import { badInput, type AssistantId, type ModelServiceId, type TenantId } from '../common';
import { Scopes, validation } from '../common/http';
import { Database } from '../database';
import { ModelServicesRepository, SERVICE_TYPE } from '../model-services';
import { AuditLogRepository } from '../tenancy';
import { ToolSources } from '../tools';
import { Op, Operator, pathId } from './operator';
import { CreateAssistant, CreateAssistantVersion, PageQuery, UpdateAssistant } from './requests';

@ApiTags('admin')
@ApiSecurity('x-api-key')
@ApiHeader({ name: 'tenant-id', required: false, description: 'needed with the root key' })
@Scopes('admin')
@UsePipes(validation('refused'))
@Controller('api/admin/assistants')
export class AssistantsController {
  constructor(
    private readonly database: Database,
    private readonly assistants: AssistantsRepository,
    private readonly services: ModelServicesRepository,
    private readonly auditLog: AuditLogRepository,
    private readonly tools: ToolSources,
  ) {}

  @Get()
  @ApiOperation({ summary: 'Assistants' })
  list(@Op() operator: Operator, @Query() query: PageQuery) {
    const tenantId = operator.requiredTenant();
    return this.database.transaction(operator.scope, (tx) => this.assistants.list(tx, tenantId, query));
  }

  @Post()
  @ApiOperation({ summary: 'Create an assistant' })
  create(@Op() operator: Operator, @Body() input: CreateAssistant) {
    const tenantId = operator.requiredTenant();
    return this.database.transaction(operator.scope, async (tx) => {
      const after = await this.assistants.create(tx, tenantId, input);
      await this.auditLog.record(tx, operator.audit('create', 'assistant', { after }));
      return after;
    });
  }

  @Get(':id')
  @ApiOperation({ summary: 'An assistant' })
  get(@Op() operator: Operator, @Param('id') id: string) {
    const tenantId = operator.requiredTenant();
    return this.database.transaction(operator.scope, (tx) => this.assistants.get(tx, tenantId, pathId(id)));
  }

  @Patch(':id')
  @ApiOperation({ summary: 'Change an assistant' })
  update(@Op() operator: Operator, @Param('id') id: string, @Body() change: UpdateAssistant) {
    const tenantId = operator.requiredTenant();
    const assistantId = pathId<AssistantId>(id);
    return this.database.transaction(operator.scope, async (tx) => {
      const before = await this.assistants.get(tx, tenantId, assistantId);
      const after = await this.assistants.update(tx, tenantId, assistantId, change);
      await this.auditLog.record(tx, operator.audit('update', 'assistant', { before, after }));
      return after;
    });
  }

  @Delete(':id')
  @ApiOperation({ summary: 'Delete an assistant and its versions; dialogues held with it stay' })
  delete(@Op() operator: Operator, @Param('id') id: string) {
    const tenantId = operator.requiredTenant();
    return this.database.transaction(operator.scope, async (tx) => {
      const before = await this.assistants.delete(tx, tenantId, pathId(id));
      await this.auditLog.record(tx, operator.audit('delete', 'assistant', { before }));
      return before;
    });
  }

  @Get(':id/versions')
  @ApiOperation({ summary: "An assistant's versions; the documents of their tools are shown as true" })
  listVersions(@Op() operator: Operator, @Param('id') id: string, @Query() query: PageQuery) {
    const tenantId = operator.requiredTenant();
    return this.database.transaction(operator.scope, async (tx) => {
      const assistant = await this.assistants.get(tx, tenantId, pathId(id));
      const page = await this.assistants.listVersions(tx, tenantId, assistant.id, query);
      return { ...page, data: page.data.map((version) => this.shown(version, 'brief')) };
    });
  }

  @Post(':id/versions')
  @ApiOperation({
    summary: 'Create a version; it can be used by its id at once, and by the slug once published',
  })
  async createVersion(
    @Op() operator: Operator,
    @Param('id') id: string,
    @Body() input: CreateAssistantVersion,
  ) {
    const tenantId = operator.requiredTenant();
    const assistantId = pathId<AssistantId>(id);
    await this.checkService(tenantId, input.modelServiceId as ModelServiceId);
    const { tools, ...rest } = input;
    const sources = tools && (await this.tools.check(tools));
    return this.database.transaction(operator.scope, async (tx) => {
      const after = await this.assistants.createVersion(tx, tenantId, assistantId, {
        ...rest,
        modelServiceId: input.modelServiceId as ModelServiceId,
        ...(sources && { tools: this.tools.seal(sources, assistantId) }),
      });
      const audit = { after: this.shown(after, 'brief') };
      await this.auditLog.record(tx, operator.audit('create', 'assistant-version', audit));
      return this.shown(after, 'whole');
    });
  }

  @Get(':id/versions/:versionId')
  @ApiOperation({ summary: 'A version' })
  getVersion(@Op() operator: Operator, @Param('id') id: string, @Param('versionId') versionId: string) {
    const tenantId = operator.requiredTenant();
    return this.database.transaction(operator.scope, async (tx) =>
      this.shown(await this.assistants.getVersion(tx, tenantId, pathId(id), pathId(versionId)), 'whole'),
    );
  }

  @Post(':id/versions/:versionId/publish')
  @HttpCode(200)
  @ApiOperation({ summary: "Publish a version: it answers from now on under the assistant's slug" })
  publish(@Op() operator: Operator, @Param('id') id: string, @Param('versionId') versionId: string) {
    const tenantId = operator.requiredTenant();
    return this.database.transaction(operator.scope, async (tx) => {
      const after = await this.assistants.publish(tx, tenantId, pathId(id), pathId(versionId));
      const audit = { after: this.shown(after, 'brief') };
      await this.auditLog.record(tx, operator.audit('publish', 'assistant-version', audit));
      return this.shown(after, 'whole');
    });
  }

  private async checkService(tenantId: TenantId, id: ModelServiceId): Promise<void> {
    const service = await this.services.resolve(tenantId, id);
    if (service?.type !== SERVICE_TYPE.text) {
      throw badInput('modelServiceId', 'is not a text model service this tenant may use');
    }
  }

  /** The headers of tools are shown to nobody, once they are stored. */
  private shown(version: AssistantVersion, detail: 'whole' | 'brief') {
    return { ...version, tools: this.tools.shown(version.tools, version.assistantId, detail) };
  }
}
