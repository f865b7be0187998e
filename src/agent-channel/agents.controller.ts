import { Body, Controller, Delete, Get, Param, Post, Put, Query, Req, UsePipes } from '@nestjs/common';
import { ApiHeader, ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import type { FastifyRequest } from 'fastify';
import type { AssistantWithVersion } from '../assistants';
import { badInput, type Principal } from '../common';
import { Caller, Scopes, validation } from '../common/http';
import { tenantOf } from '../replies';
import { Agents, type Author } from './agents';
import { CreateAgentRequest, NumberedPage, UpdateAgentRequest } from './requests';

/** Agents: a tenant's assistants by their slugs (protocols/agent-channel.md, "REST beside it"). */
@ApiTags('agents')
@ApiSecurity('x-api-key')
@ApiSecurity('bearer')
@ApiHeader({ name: 'tenant-id', required: false, description: 'needed with the root key' })
@Scopes('admin')
@UsePipes(validation('ignored'))
@Controller('api/v1/agents')
export class AgentsController {
  constructor(private readonly agents: Agents) {}

  @Get()
  @Scopes('dialogue', 'admin')
  @ApiOperation({ summary: 'Agents, by id' })
  async list(@Caller() principal: Principal, @Query() { page, size }: NumberedPage) {
    const at = { offset: (page - 1) * size, limit: size };
    const { total, rows } = await this.agents.page(tenantOf(principal), at);
    return { data: rows.map(agentRecord), total, page, size };
  }

  @Post()
  @ApiOperation({ summary: 'Make an agent, which answers at once' })
  async create(
    @Caller() principal: Principal,
    @Req() request: FastifyRequest,
    @Body() input: CreateAgentRequest,
  ) {
    return agentRecord(await this.agents.create(authorOf(principal, request), input));
  }

  @Get(':agentId')
  @Scopes('dialogue', 'admin')
  @ApiOperation({ summary: 'An agent' })
  async get(@Caller() principal: Principal, @Param('agentId') id: string) {
    return agentRecord(await this.agents.get(tenantOf(principal), id));
  }

  @Put(':agentId')
  @ApiOperation({
    summary: 'Change what is given of an agent; it answers so at once, but for dialogues that have begun',
  })
  async change(
    @Caller() principal: Principal,
    @Req() request: FastifyRequest,
    @Param('agentId') id: string,
    @Body() input: UpdateAgentRequest,
  ) {
    if ((input.id ?? id) !== id) throw badInput('id', "is not the path's, and can't be changed");
    return agentRecord(await this.agents.change(authorOf(principal, request), id, input));
  }

  @Delete(':agentId')
  @ApiOperation({ summary: 'Delete an agent; dialogues held with it stay' })
  async delete(@Caller() principal: Principal, @Req() request: FastifyRequest, @Param('agentId') id: string) {
    await this.agents.delete(authorOf(principal, request), id);
    return { success: true };
  }
}

function authorOf(principal: Principal, { ip }: FastifyRequest): Author {
  return { principal, address: ip, tenantId: tenantOf(principal) };
}

const agentRecord = ({ assistant, version }: AssistantWithVersion) => ({
  id: assistant.slug,
  assistantId: assistant.id,
  name: assistant.name,
  description: assistant.description,
  avatar: assistant.avatar,
  prompt: version?.prompt ?? '',
  greeting: version?.greeting ?? '',
  suggestedQuestions: version?.suggestedQuestions ?? [],
  modelServiceId: version?.modelServiceId ?? null,
  parameters: version?.parameters ?? {},
  published: version !== null,
  versionId: version?.id ?? null,
  createdAt: assistant.createdAt.getTime(),
  updatedAt: assistant.updatedAt.getTime(),
});
