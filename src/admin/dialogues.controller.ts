import { Controller, Delete, Get, Param, Query, UsePipes } from '@nestjs/common';
import { ApiHeader, ApiOperation, ApiPropertyOptional, ApiSecurity, ApiTags } from '@nestjs/swagger';
import { IsOptional, IsString, MaxLength } from 'class-validator';
import { AppError, type AssistantId, type DialogueId, type TenantId } from '../common';
import { EmptyIsAbsent, IsEntityId, NoNul, Scopes, validation } from '../common/http';
import { Database } from '../database';
import { TextGenerations } from '../generations';
import { DialogueArchive } from '../messages';
import { ReplyEngine } from '../replies';
import { Eraser, type Erased } from '../retention';
import { AuditLogRepository } from '../tenancy';
import { Op, Operator, pathId } from './operator';
import { PageQuery } from './requests';

const MAX_USER_ID_CHARS = 128;
const DIALOGUES_AT_ONCE = 1_000;

class DialoguesQuery extends PageQuery {
  @ApiPropertyOptional()
  @EmptyIsAbsent()
  @IsOptional()
  @IsString()
  @MaxLength(MAX_USER_ID_CHARS)
  @NoNul()
  userId?: string;

  @ApiPropertyOptional()
  @EmptyIsAbsent()
  @IsOptional()
  @IsEntityId()
  assistantId?: string;
}

/** What a tenant's users have said to assistants, and its erasure. */
@ApiTags('admin')
@ApiSecurity('x-api-key')
@ApiHeader({ name: 'tenant-id', required: false, description: 'needed with the root key' })
@Scopes('admin')
@UsePipes(validation('refused'))
@Controller('api/admin')
export class DialoguesController {
  constructor(
    private readonly database: Database,
    private readonly dialogues: DialogueArchive,
    private readonly eraser: Eraser,
    private readonly replies: ReplyEngine,
    private readonly texts: TextGenerations,
    private readonly auditLog: AuditLogRepository,
  ) {}

  @Get('dialogues')
  @ApiOperation({ summary: 'Dialogues, newest first' })
  list(@Op() operator: Operator, @Query() query: DialoguesQuery) {
    const tenantId = operator.requiredTenant();
    const { assistantId, ...rest } = query;
    const filter = { ...rest, ...(assistantId && { assistantId: assistantId as AssistantId }) };
    return this.database.transaction(operator.scope, (tx) => this.dialogues.list(tx, tenantId, filter));
  }

  @Get('dialogues/:id')
  @ApiOperation({ summary: 'A dialogue' })
  get(@Op() operator: Operator, @Param('id') id: string) {
    const tenantId = operator.requiredTenant();
    return this.database.transaction(operator.scope, (tx) => this.dialogues.get(tx, tenantId, pathId(id)));
  }

  @Get('dialogues/:id/messages')
  @ApiOperation({ summary: 'The messages of a dialogue, oldest first, those of every branch' })
  messages(@Op() operator: Operator, @Param('id') id: string, @Query() query: PageQuery) {
    const tenantId = operator.requiredTenant();
    return this.database.transaction(operator.scope, (tx) =>
      this.dialogues.messages(tx, tenantId, pathId(id), query),
    );
  }

  @Delete('dialogues/:id')
  @ApiOperation({ summary: 'Erase a dialogue: what was said goes, the figures stay and name nobody' })
  async eraseDialogue(@Op() operator: Operator, @Param('id') id: string) {
    const tenantId = operator.requiredTenant();
    const dialogueId = pathId<DialogueId>(id);
    await this.silence(operator, tenantId, [dialogueId]);
    return this.erase(
      operator,
      tenantId,
      'dialogue',
      dialogueId,
      () => ({}),
      (tx) => this.eraser.eraseDialogue(tx, tenantId, dialogueId),
    );
  }

  @Delete('users/:userId')
  @ApiOperation({ summary: 'Erase what a user has said, everywhere; the figures stay and name nobody' })
  async eraseUser(@Op() operator: Operator, @Param('userId') userId: string) {
    const tenantId = operator.requiredTenant();
    if (userId === '' || userId.length > MAX_USER_ID_CHARS || userId.includes('\0'))
      throw new AppError('NOT_FOUND');
    const ids = await this.database.transaction(operator.scope, (tx) =>
      this.dialogues.ofUser(tx, tenantId, userId, DIALOGUES_AT_ONCE),
    );
    await this.silence(operator, tenantId, ids);
    this.texts.stopOf(tenantId, userId);
    return this.erase(
      operator,
      tenantId,
      'user',
      tenantId,
      () => ({ userId }),
      (tx) => this.eraser.eraseUser(tx, tenantId, userId),
    );
  }

  /** What is being written is stopped first: its end would be stored after the erasure. */
  private async silence(operator: Operator, tenantId: TenantId, ids: readonly DialogueId[]): Promise<void> {
    const busy = await this.database.transaction(operator.scope, (tx) =>
      this.dialogues.beingWritten(tx, tenantId, ids),
    );
    await Promise.all(busy.map((id) => this.replies.close({ ...operator.principal, tenantId }, id)));
  }

  private erase(
    operator: Operator,
    tenantId: TenantId,
    resource: 'dialogue' | 'user',
    resourceId: string,
    whose: () => object,
    work: (tx: Parameters<Parameters<Database['transaction']>[1]>[0]) => Promise<Erased>,
  ): Promise<Erased> {
    return this.database.transaction(operator.scope, async (tx) => {
      const erased = await work(tx);
      const { principal, address } = operator;
      const after = { ...whose(), ...erased };
      await this.auditLog.record(tx, {
        principal,
        address,
        tenantId,
        action: 'delete',
        resource,
        resourceId,
        after,
      });
      return erased;
    });
  }
}
