import { Body, Controller, Delete, Get, HttpCode, Param, Patch, Post, Query, UsePipes } from '@nestjs/common';
import { ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import { AppError, type Principal, type TenantId } from '../common';
import { Caller, Scopes, validation } from '../common/http';
import { ConversationsRepository, type Conversation, type MemberRole } from '../messages';
import { FrameError } from './errors';
import { Publisher } from './publisher';
import { Messenger, type Sender } from './messenger';
import { groupRecord, memberRecord } from './records';
import {
  AddMembersRequest,
  CreateGroupRequest,
  ListQuery,
  UpdateGroupRequest,
  UpdateMemberRequest,
} from './requests';

/** Later than any number of its log: nobody comes back into a conversation whose group is gone. */
const DISSOLVED = Number.MAX_SAFE_INTEGER;

/** Groups, made and kept by the tenant's server, whatever its `groupPolicy`. */
@ApiTags('im')
@ApiSecurity('x-api-key')
@Scopes('im')
@UsePipes(validation('ignored'))
@Controller('api/v1/im/groups')
export class GroupsController {
  constructor(
    private readonly conversations: ConversationsRepository,
    private readonly messenger: Messenger,
    private readonly publisher: Publisher,
  ) {}

  @Get()
  @ApiOperation({ summary: 'Groups, by id' })
  async list(@Caller() { tenantId }: Principal, @Query() { limit, cursor = '' }: ListQuery) {
    const groups = await this.conversations.listGroups(tenantId, cursor, limit + 1);
    return page(groups.map(groupRecord), limit, ({ groupId }) => groupId);
  }

  @Post()
  @ApiOperation({ summary: 'Make a group, with its owner and first members' })
  async create(@Caller() { tenantId }: Principal, @Body() input: CreateGroupRequest) {
    const { groupId, owner, members = [], ...rest } = input;
    const users = new Set([...(owner === undefined ? [] : [owner]), ...members].map(String));
    const most = await this.messenger.maxMembers(tenantId, rest.maxMembers ?? null);
    if (users.size > most)
      throw new AppError('CONFLICT', { message: `members: the group may have ${most} at most` });
    await this.conversations.createGroup(tenantId, groupId, rest);
    if (owner !== undefined) await this.join(tenantId, groupId, owner, 'owner');
    for (const user of new Set(members)) await this.join(tenantId, groupId, user, 'member');
    return groupRecord(await this.find(tenantId, groupId));
  }

  @Get(':groupId')
  @ApiOperation({ summary: 'A group' })
  async get(@Caller() { tenantId }: Principal, @Param('groupId') groupId: string) {
    return groupRecord(await this.find(tenantId, groupId));
  }

  @Patch(':groupId')
  @ApiOperation({ summary: 'Change a group; `muted` lets only the owner and admins speak' })
  async update(
    @Caller() { tenantId }: Principal,
    @Param('groupId') groupId: string,
    @Body() input: UpdateGroupRequest,
  ) {
    return groupRecord(await this.conversations.updateGroup(tenantId, groupId, input));
  }

  @Delete(':groupId')
  @ApiOperation({
    summary: 'Dissolve a group: everybody is out; its history stays under the conversation’s id',
  })
  async delete(@Caller() { tenantId }: Principal, @Param('groupId') groupId: string) {
    const { group, userIds } = await this.conversations.deleteGroup(tenantId, groupId);
    this.messenger.forgetGroup(tenantId, groupId);
    for (const userId of userIds)
      this.publisher.control(tenantId, userId, { kind: 'left', conversationId: group.id, seq: DISSOLVED });
    return groupRecord({ ...group, memberCount: 0 });
  }

  @Get(':groupId/members')
  @ApiOperation({ summary: 'Members, by user id' })
  async members(
    @Caller() { tenantId }: Principal,
    @Param('groupId') groupId: string,
    @Query() { limit, cursor = '' }: ListQuery,
  ) {
    const { id } = await this.find(tenantId, groupId);
    const members = await this.conversations.members(tenantId, id, cursor, limit + 1);
    return page(members.map(memberRecord), limit, ({ userId }) => userId);
  }

  @Post(':groupId/members')
  @HttpCode(200)
  @ApiOperation({ summary: 'Add members; who is in already stays as they are' })
  async add(
    @Caller() { tenantId }: Principal,
    @Param('groupId') groupId: string,
    @Body() { users, role = 'member' }: AddMembersRequest,
  ) {
    await this.find(tenantId, groupId);
    let added = 0;
    for (const user of new Set(users)) {
      if (await this.join(tenantId, groupId, user, role)) added += 1;
    }
    return { added, memberCount: (await this.find(tenantId, groupId)).memberCount };
  }

  @Patch(':groupId/members/:userId')
  @ApiOperation({ summary: 'Role, mute, or hand the group over (`role: owner`)' })
  async updateMember(
    @Caller() { tenantId }: Principal,
    @Param('groupId') groupId: string,
    @Param('userId') userId: string,
    @Body() { role, mutedSeconds }: UpdateMemberRequest,
  ) {
    const mutedUntil = mutedSeconds ? new Date(Date.now() + mutedSeconds * 1_000) : null;
    return memberRecord(
      await this.conversations.updateMember(tenantId, groupId, userId, {
        ...(role && { role }),
        ...(mutedSeconds !== undefined && { mutedUntil }),
      }),
    );
  }

  @Delete(':groupId/members/:userId')
  @ApiOperation({ summary: 'Put a member out; the group hears it as a `leave`' })
  async kick(
    @Caller() { tenantId }: Principal,
    @Param('groupId') groupId: string,
    @Param('userId') userId: string,
  ) {
    await this.find(tenantId, groupId);
    const frame = { type: 'leave', source: userId, target: groupId, extra: { kicked: true } } as const;
    const { entry } = await this.messenger.changeMembership(server(tenantId, userId), frame);
    if (!entry) throw new AppError('NOT_FOUND');
    return { userId, seq: entry.seq };
  }

  private async join(
    tenantId: TenantId,
    groupId: string,
    user: string | number,
    role: MemberRole,
  ): Promise<boolean> {
    const frame = { type: 'join', source: user, target: groupId } as const;
    try {
      const { entry } = await this.messenger.changeMembership(server(tenantId, String(user)), frame, role);
      return entry !== null;
    } catch (error) {
      if (error instanceof FrameError) throw new AppError('NOT_FOUND', { message: error.message });
      throw error;
    }
  }

  private async find(tenantId: TenantId, groupId: string): Promise<Conversation> {
    const group = await this.conversations.findGroup(tenantId, groupId);
    if (!group) throw new AppError('NOT_FOUND');
    return group;
  }
}

const server = (tenantId: TenantId, userId: string): Sender => ({
  tenantId,
  userId,
  client: '',
  origin: '',
  server: true,
});

/** From one row more than asked for. */
function page<T>(rows: T[], limit: number, idOf: (row: T) => string) {
  const data = rows.slice(0, limit);
  return { data, nextCursor: rows.length > limit ? idOf(data.at(-1)!) : null };
}
