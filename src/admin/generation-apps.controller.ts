import { Body, Controller, Delete, Get, Param, Patch, Post, Query, UsePipes } from '@nestjs/common';
import { ApiHeader, ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import {
  checkTemplate,
  GENERATION_TYPE,
  GenerationAppsRepository,
  type GenerationAppInput,
  type PromptVariable,
} from '../assistants';
import { badInput, type GenerationAppId, type ModelServiceId, type TenantId } from '../common';
import { Scopes, validation } from '../common/http';
import { Database } from '../database';
import { ModelServicesRepository, SERVICE_TYPE } from '../model-services';
import { AuditLogRepository } from '../tenancy';
import { CreateGenerationApp, UpdateGenerationApp, type VariableInput } from './generation-app-requests';
import { Op, Operator, pathId } from './operator';
import { PageQuery } from './requests';

const RESOURCE = 'generation-app';

@ApiTags('admin')
@ApiSecurity('x-api-key')
@ApiHeader({ name: 'tenant-id', required: false, description: 'needed with the root key' })
@Scopes('admin')
@UsePipes(validation('refused'))
@Controller('api/admin/generation-apps')
export class GenerationAppsController {
  constructor(
    private readonly database: Database,
    private readonly apps: GenerationAppsRepository,
    private readonly services: ModelServicesRepository,
    private readonly auditLog: AuditLogRepository,
  ) {}

  @Get()
  @ApiOperation({ summary: 'Generation apps' })
  list(@Op() operator: Operator, @Query() query: PageQuery) {
    const tenantId = operator.requiredTenant();
    return this.database.transaction(operator.scope, (tx) => this.apps.list(tx, tenantId, query));
  }

  @Post()
  @ApiOperation({ summary: 'Create a generation app' })
  async create(@Op() operator: Operator, @Body() input: CreateGenerationApp) {
    const tenantId = operator.requiredTenant();
    const { variables = [], description = '', parameters = {}, ...rest } = input;
    const modelServiceId = input.modelServiceId as ModelServiceId;
    const app = { ...rest, description, parameters, modelServiceId, variables: variables.map(variableOf) };
    await this.check(tenantId, app);
    return this.database.transaction(operator.scope, async (tx) => {
      const after = await this.apps.create(tx, tenantId, app);
      await this.auditLog.record(tx, operator.audit('create', RESOURCE, { after }));
      return after;
    });
  }

  @Get(':id')
  @ApiOperation({ summary: 'A generation app' })
  get(@Op() operator: Operator, @Param('id') id: string) {
    const tenantId = operator.requiredTenant();
    return this.database.transaction(operator.scope, (tx) => this.apps.get(tx, tenantId, pathId(id)));
  }

  @Patch(':id')
  @ApiOperation({ summary: 'Change a generation app; what it made stays as it is' })
  update(@Op() operator: Operator, @Param('id') id: string, @Body() change: UpdateGenerationApp) {
    const tenantId = operator.requiredTenant();
    const appId = pathId<GenerationAppId>(id);
    return this.database.transaction(operator.scope, async (tx) => {
      const before = await this.apps.get(tx, tenantId, appId, true);
      const app: GenerationAppInput = {
        type: change.type ?? before.type,
        name: change.name ?? before.name,
        description: change.description ?? before.description,
        promptTemplate: change.promptTemplate ?? before.promptTemplate,
        variables: change.variables?.map(variableOf) ?? before.variables,
        modelServiceId: (change.modelServiceId as ModelServiceId | undefined) ?? before.modelServiceId,
        parameters: change.parameters ?? before.parameters,
      };
      await this.check(tenantId, app);
      const after = await this.apps.update(tx, tenantId, appId, app);
      await this.auditLog.record(tx, operator.audit('update', RESOURCE, { before, after }));
      return after;
    });
  }

  @Delete(':id')
  @ApiOperation({ summary: 'Delete a generation app; what it made stays' })
  delete(@Op() operator: Operator, @Param('id') id: string) {
    const tenantId = operator.requiredTenant();
    return this.database.transaction(operator.scope, async (tx) => {
      const before = await this.apps.delete(tx, tenantId, pathId(id));
      await this.auditLog.record(tx, operator.audit('delete', RESOURCE, { before }));
      return before;
    });
  }

  /** All parts of an app together: a change of one can make another wrong. */
  private async check(tenantId: TenantId, app: GenerationAppInput): Promise<void> {
    checkTemplate(app.promptTemplate, app.variables);
    const isText = app.type === GENERATION_TYPE.text;
    const service = await this.services.resolve(tenantId, app.modelServiceId);
    if (service?.type === (isText ? SERVICE_TYPE.text : SERVICE_TYPE.image)) return;
    const kind = isText ? 'a text' : 'an image';
    throw badInput('modelServiceId', `is not ${kind} model service this tenant may use`);
  }
}

/** As it is stored and shown: nothing left out. */
function variableOf(input: VariableInput): PromptVariable {
  return {
    name: input.name,
    label: input.label ?? input.name,
    type: input.type,
    required: input.required ?? false,
    default: input.default ?? null,
    choices: input.choices ?? [],
    maxLength: input.maxLength ?? null,
  };
}
