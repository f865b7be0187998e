import { Body, Controller, Get, HttpCode, Param, Post, Query, Req, UsePipes } from '@nestjs/common';
import { ApiHeader, ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import type { FastifyRequest } from 'fastify';
import { AssistantsRepository, type Contact } from '../assistants';
import { AppError, type Principal } from '../common';
import { Caller, Scopes, validation } from '../common/http';
import { DialoguesRepository, SessionsRepository, type DialogueMessage, type Session } from '../messages';
import { onlyUserOf, ReplyEngine, tenantOf } from '../replies';
import { credentialsOf } from '../tenancy';
import { AgentSessionsQuery, ClearSessionRequest, isSessionName } from './requests';
import { Sessions } from './sessions';

/** Sessions of users with agents, as the tenant's server sees and clears them (protocols/agent-channel.md). */
@ApiTags('agents')
@ApiSecurity('x-api-key')
@ApiSecurity('bearer')
@ApiHeader({ name: 'tenant-id', required: false, description: 'needed with the root key' })
@ApiHeader({ name: 'user-id', required: false, description: 'whose sessions; absent: the key’s own' })
@Scopes('dialogue')
@UsePipes(validation('ignored'))
@Controller('api/v1/sessions')
export class SessionsController {
  constructor(
    private readonly assistants: AssistantsRepository,
    private readonly sessions: SessionsRepository,
    private readonly dialogues: DialoguesRepository,
    private readonly open: Sessions,
    private readonly replies: ReplyEngine,
  ) {}

  @Get()
  @ApiOperation({ summary: "A user's sessions with an agent, newest first; without `user-id` every user's" })
  async list(
    @Caller() principal: Principal,
    @Req() request: FastifyRequest,
    @Query() { agentId, page, size }: AgentSessionsQuery,
  ) {
    const { assistantId } = await this.agent(principal, agentId);
    const { total, rows } = await this.sessions.list(principal.tenantId, {
      assistantId,
      userId: credentialsOf(request).userId ? principal.userId : null,
      offset: (page - 1) * size,
      limit: size,
    });
    return { data: rows.map((row) => sessionRecord(agentId, row)), total, page, size };
  }

  @Post('clear')
  @HttpCode(200)
  @ApiOperation({
    summary: 'Stop what is being written in a session and free its name; its dialogue stays',
  })
  async clear(@Caller() principal: Principal, @Body() { agentId, sessionKey: name }: ClearSessionRequest) {
    const { assistantId } = await this.agent(principal, agentId);
    const { tenantId, userId } = principal;
    const key = { tenantId, userId, assistantId, name };
    const dialogueId = await this.sessions.find(key, onlyUserOf(principal));
    const freed = await this.sessions.forget(key);
    this.open.forget(principal, assistantId, name);
    // Last: who waits for the reply's end to say something finds the name free then.
    if (dialogueId) await this.replies.stop(principal, dialogueId);
    return { success: true, message: told(name, freed, dialogueId === name) };
  }

  @Get(':sessionId/messages')
  @ApiOperation({ summary: "A session's messages, oldest first; by its name or its dialogue's id" })
  async messages(
    @Caller() principal: Principal,
    @Param('sessionId') name: string,
    @Query() { agentId, page, size }: AgentSessionsQuery,
  ) {
    const { assistantId } = await this.agent(principal, agentId);
    const { tenantId, userId } = principal;
    const dialogueId = isSessionName(name)
      ? await this.sessions.find({ tenantId, userId, assistantId, name }, onlyUserOf(principal))
      : null;
    const found =
      dialogueId &&
      (await this.dialogues.listMessages(tenantId, dialogueId, {
        orderBy: 'id',
        descending: false,
        offset: (page - 1) * size,
        limit: size,
      }));
    if (!found) throw new AppError('NOT_FOUND', { message: 'No such session.' });
    return { data: found.rows.map(messageRecord), total: found.total, page, size };
  }

  /** Also one that was never published, or is not any more. */
  private async agent(principal: Principal, slug: string): Promise<Contact> {
    const contact = await this.assistants.findContact(tenantOf(principal), { slug });
    if (!contact) throw new AppError('NOT_FOUND', { message: `No agent ${slug}.` });
    return contact;
  }
}

function told(name: string, freed: boolean, isDialogue: boolean): string {
  if (freed) return `The session ${name} is cleared: its name begins a new dialogue.`;
  return isDialogue
    ? `${name} is a dialogue's id: what was being written is stopped, and the id leads to that dialogue as before.`
    : `There is no session ${name}: nothing to clear.`;
}

const sessionRecord = (agentId: string, session: Session) => ({
  id: session.name,
  dialogueId: session.dialogueId,
  agentId,
  userId: session.userId,
  title: session.title,
  messageCount: session.messages,
  createdAt: session.createdAt.getTime(),
  updatedAt: session.updatedAt.getTime(),
});

const messageRecord = ({ id, role, content, status, createdAt }: DialogueMessage) => ({
  id,
  role,
  content,
  status,
  createdAt: createdAt.getTime(),
});
