import { createHash, randomUUID } from 'node:crypto';
import {
  Body,
  Controller,
  Delete,
  Get,
  HttpCode,
  Param,
  Post,
  Query,
  Req,
  Res,
  UsePipes,
} from '@nestjs/common';
import { RouteConfig } from '@nestjs/platform-fastify';
import { ApiHeader, ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import type { FastifyReply, FastifyRequest } from 'fastify';
import {
  AppError,
  asId,
  badInput,
  cursorPage,
  type BroadcastId,
  type Principal,
  type TenantId,
} from '../common';
import { Caller, ExactBody, idempotencyKeyOf, Scopes, validation } from '../common/http';
import { Config } from '../config';
import { BroadcastsRepository, type Broadcast } from '../messages';
import { tenantOf } from '../replies';
import { Broadcaster } from './broadcaster';
import { canonical, idText, type MessageFrame } from './frames';
import { frameOf } from './packets';
import { broadcastRecord, pageById } from './records';
import { BroadcastRequest, BroadcastsQuery, ListQuery } from './requests';
import { exactIds } from './user-id';

const RETRY_AFTER_SECONDS = 10;

/** One message to many users: accepted here, sent by {@link Broadcaster}. */
@ApiTags('im')
@ApiSecurity('x-api-key')
@Scopes('im')
@UsePipes(validation('ignored'))
@Controller('api/v1/im/broadcasts')
export class BroadcastsController {
  constructor(
    private readonly config: Config,
    private readonly broadcasts: BroadcastsRepository,
    private readonly broadcaster: Broadcaster,
  ) {}

  @Post()
  @HttpCode(202)
  @RouteConfig({ exactNumbers: true })
  @ApiHeader({ name: 'Idempotency-Key', required: false })
  @ApiOperation({
    summary: 'Send one message to many users, one-to-one: a job; the same again is the same job',
  })
  async accept(
    @Caller() principal: Principal,
    @Body() { everybody }: BroadcastRequest,
    @ExactBody() { users, ...packet }: Record<string, unknown>,
    @Req() request: FastifyRequest,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const tenantId = tenantOf(principal);
    if (everybody && users !== undefined)
      throw badInput('everybody', 'must not be there together with users');
    const targets = everybody ? null : this.targetsOf(users as unknown[]);
    const frame = frameOf({ ...packet, type: 'single', target: 'everybody' });
    const text = canonical({ ...frame, target: null } as unknown as MessageFrame);
    const requestHash = createHash('sha256')
      .update(JSON.stringify([text, targets]))
      .digest('hex');
    const { msgId } = frame.msg;
    const broadcast = await this.broadcasts.accept(
      tenantId,
      {
        sender: idText(frame.source),
        msgId: msgId === undefined ? null : idText(msgId),
        requestKey: requestKeyOf(idempotencyKeyOf(request), msgId === undefined ? null : requestHash),
        requestHash,
        frame: text,
        targets,
      },
      this.config.env.IM_BROADCASTS_PER_TENANT,
      RETRY_AFTER_SECONDS,
    );
    this.broadcaster.hint();
    void reply.header('location', `/api/v1/im/broadcasts/${broadcast.id}`);
    return broadcastRecord(broadcast);
  }

  @Get()
  @ApiOperation({ summary: 'Broadcasts, the newest first' })
  async list(@Caller() { tenantId }: Principal, @Query() { limit, cursor }: BroadcastsQuery) {
    const found = await this.broadcasts.list(tenantId, cursor ?? null, limit + 1);
    return cursorPage(found.map(broadcastRecord), limit);
  }

  @Get(':id')
  @ApiOperation({ summary: 'How far a broadcast is' })
  async get(@Caller() { tenantId }: Principal, @Param('id') id: string) {
    return broadcastRecord(await this.find(tenantId, id));
  }

  @Get(':id/failures')
  @ApiOperation({ summary: 'Whom a broadcast did not reach, and why; by user id' })
  async failures(
    @Caller() { tenantId }: Principal,
    @Param('id') id: string,
    @Query() { limit, cursor = '' }: ListQuery,
  ) {
    const broadcast = await this.find(tenantId, id);
    const failures = await this.broadcasts.failures(tenantId, broadcast.id, cursor, limit + 1);
    return pageById(failures, limit, ({ userId }) => userId);
  }

  @Delete(':id')
  @ApiOperation({ summary: 'Cancel a broadcast; who has it keeps it' })
  async cancel(@Caller() { tenantId }: Principal, @Param('id') id: string) {
    const { id: broadcastId } = await this.find(tenantId, id);
    await this.broadcasts.cancel(tenantId, broadcastId);
    const broadcast = await this.find(tenantId, id);
    if (broadcast.status === 'finished')
      throw new AppError('CONFLICT', { message: 'The broadcast has ended.' });
    return broadcastRecord(broadcast);
  }

  /** JSON texts of ids. `1` and `"1"` are one user, who gets one copy. */
  private targetsOf(users: readonly unknown[]): string[] {
    const most = this.config.env.IM_BROADCAST_RECIPIENTS;
    if (users.length > most) throw badInput('users', `must have at most ${most}`);
    const named = exactIds('users', users).map((user) => [idText(user), JSON.stringify(user)] as const);
    return [...new Map(named).values()];
  }

  private async find(tenantId: TenantId, id: string): Promise<Broadcast> {
    const broadcastId = asId<BroadcastId>(id);
    const found = broadcastId && (await this.broadcasts.find(tenantId, broadcastId));
    if (!found) throw new AppError('NOT_FOUND');
    return found;
  }
}

/** Without a key and a `msgId` nothing is taken for a repetition. */
const requestKeyOf = (key: string | null, hash: string | null): string =>
  key !== null ? `key\n${key}` : hash !== null ? `hash\n${hash}` : `one\n${randomUUID()}`;
