import { Body, Controller, Delete, Get, HttpCode, Param, Patch, Post, Query, UsePipes } from '@nestjs/common';
import { ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import { AppError, asId, type Principal, type WebhookId } from '../common';
import { Caller, Scopes, validation } from '../common/http';
import { WebhookSender, WebhooksRepository } from '../webhooks';
import { CreateWebhookRequest, ListQuery, UpdateWebhookRequest } from './requests';

/** Who is told of what happens (docs/protocols/im.md, "Webhooks"). */
@ApiTags('im')
@ApiSecurity('x-api-key')
@Scopes('im')
@UsePipes(validation('ignored'))
@Controller('api/v1/im/webhooks')
export class WebhooksController {
  constructor(
    private readonly webhooks: WebhooksRepository,
    private readonly sender: WebhookSender,
  ) {}

  @Get()
  @ApiOperation({ summary: 'Webhooks' })
  async list(@Caller() { tenantId }: Principal) {
    return { data: await this.webhooks.list(tenantId) };
  }

  @Post()
  @ApiOperation({ summary: 'Create a webhook; the answer is the only place its secret ever stands' })
  async create(@Caller() { tenantId }: Principal, @Body() input: CreateWebhookRequest) {
    await this.sender.check(input.url);
    const { webhook, secret } = await this.webhooks.create(tenantId, input);
    return { ...webhook, secret };
  }

  @Get(':id')
  @ApiOperation({ summary: 'A webhook' })
  get(@Caller() { tenantId }: Principal, @Param('id') id: string) {
    return this.webhooks.get(tenantId, webhookId(id));
  }

  @Patch(':id')
  @ApiOperation({ summary: 'Change a webhook' })
  async update(
    @Caller() { tenantId }: Principal,
    @Param('id') id: string,
    @Body() input: UpdateWebhookRequest,
  ) {
    if (input.url !== undefined) await this.sender.check(input.url);
    return this.webhooks.update(tenantId, webhookId(id), input);
  }

  @Post(':id/secret')
  @HttpCode(200)
  @ApiOperation({ summary: 'Replace the secret; the answer is the only place the new one ever stands' })
  async replaceSecret(@Caller() { tenantId }: Principal, @Param('id') id: string) {
    const { webhook, secret } = await this.webhooks.replaceSecret(tenantId, webhookId(id));
    return { ...webhook, secret };
  }

  @Delete(':id')
  @HttpCode(204)
  @ApiOperation({ summary: 'Delete a webhook and what was still to be delivered to it' })
  async delete(@Caller() { tenantId }: Principal, @Param('id') id: string): Promise<void> {
    await this.webhooks.delete(tenantId, webhookId(id));
  }

  @Get(':id/dead-letters')
  @ApiOperation({ summary: 'Deliveries that were given up, oldest first' })
  async deadLetters(
    @Caller() { tenantId }: Principal,
    @Param('id') id: string,
    @Query() { limit, cursor }: ListQuery,
  ) {
    const { id: webhook } = await this.webhooks.get(tenantId, webhookId(id));
    const letters = await this.webhooks.deadLetters(tenantId, webhook, asId(cursor) ?? '0', limit + 1);
    const data = letters.slice(0, limit);
    return { data, nextCursor: letters.length > limit ? data.at(-1)!.id : null };
  }

  @Post(':id/dead-letters/retry')
  @HttpCode(200)
  @ApiOperation({ summary: 'Try every dead letter anew' })
  async retry(@Caller() { tenantId }: Principal, @Param('id') id: string) {
    const { id: webhook } = await this.webhooks.get(tenantId, webhookId(id));
    return { retried: await this.webhooks.revive(tenantId, webhook) };
  }
}

function webhookId(value: string): WebhookId {
  const id = asId<WebhookId>(value);
  if (!id) throw new AppError('NOT_FOUND');
  return id;
}
