import { Body, Controller, Delete, Get, HttpCode, Param, Patch, Post, Query, UsePipes } from '@nestjs/common';
import { RouteConfig } from '@nestjs/platform-fastify';
import { ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import { AppError, type Principal, type TenantId } from '../common';
import { Caller, ExactBody, Scopes, validation } from '../common/http';
import {
  ConversationsRepository,
  type Conversation,
  type GroupInput,
  type Join,
  type MemberRole,
} from '../messages';
import { canonical, idText } from './frames';
import { attributesOf } from './packets';
import { Publisher } from './publisher';
import { Messenger, type Sender } from './messenger';
import { groupRecord, memberRecord, pageById } from './records';
import {
  AddMembersRequest,
  CreateGroupRequest,
  ListQuery,
  UpdateGroupRequest,
  UpdateMemberRequest,
} from './requests';
import { exactIds } from './user-id';

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
    const { groups, hasMore } = await this.conversations.listGroups(tenantId, cursor, limit);
    const data = groups.map(groupRecord);
    return { data, nextCursor: hasMore ? data.at(-1)!.groupId : null };
  }

  @Post()
  @RouteConfig({ exactNumbers: true })
  @ApiOperation({ summary: 'Make a group, with its owner and first members' })
  async create(
    @Caller() { tenantId }: Principal,
    @Body() { groupId, name, maxMembers, muted }: CreateGroupRequest,
    @ExactBody() exact: Record<string, unknown>,
  ) {
    const most = await this.messenger.maxMembers(tenantId, maxMembers ?? null);
    const owner = exactIds('owner', [exact.owner ?? []].flat());
    const members = exactIds('members', (exact.members ?? []) as unknown[]);
    const [first] = joinsOf(groupId, owner, 'owner');
    const rest = joinsOf(groupId, members, 'member').filter(({ userId }) => userId !== first?.userId);
    const joins = first ? [first, ...rest] : rest;
    if (joins.length > most)
      throw new AppError('CONFLICT', { message: `members: the group may have ${most} at most` });
    const { group, joined } = await this.conversations.createGroup(
      tenantId,
      groupId,
      groupInput({ name, maxMembers, muted }, exact),
      joins,
      most,
    );
    void this.messenger.announceJoins(tenantId, group.id, joined);
    return groupRecord(group);
  }

  @Get(':groupId')
  @ApiOperation({ summary: 'A group' })
  async get(@Caller() { tenantId }: Principal, @Param('groupId') groupId: string) {
    return groupRecord(await this.find(tenantId, groupId));
  }

  @Patch(':groupId')
  @RouteConfig({ exactNumbers: true })
  @ApiOperation({ summary: 'Change a group; `muted` lets only the owner and admins speak' })
  async update(
    @Caller() { tenantId }: Principal,
    @Param('groupId') groupId: string,
    @Body() { name, maxMembers, muted }: UpdateGroupRequest,
    @ExactBody() exact: Record<string, unknown>,
  ) {
    const input = groupInput({ name, maxMembers, muted }, exact);
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
    return pageById(members.map(memberRecord), limit, ({ userId }) => userId);
  }

  @Post(':groupId/members')
  @HttpCode(200)
  @RouteConfig({ exactNumbers: true })
  @ApiOperation({ summary: 'Add members, all or none; who is in already stays as they are' })
  async add(
    @Caller() { tenantId }: Principal,
    @Param('groupId') groupId: string,
    @Body() { role = 'member' }: AddMembersRequest,
    @ExactBody() { users }: Record<string, unknown>,
  ) {
    const joins = joinsOf(groupId, exactIds('users', users as unknown[]), role);
    const most = await this.messenger.maxMembers(tenantId, null);
    const changes = await this.conversations.joinAll(tenantId, groupId, joins, most);
    if (!changes) throw new AppError('NOT_FOUND');
    const { conversationId, joined, memberCount } = changes;
    void this.messenger.announceJoins(tenantId, conversationId, joined);
    return { added: joined.length, memberCount };
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

/** Each user once. */
function joinsOf(groupId: string, users: readonly (string | number)[], role: MemberRole): Join[] {
  const joins = users.map((source) => {
    const frame = canonical({ type: 'join', source, target: groupId });
    return { userId: idText(source), client: '', frame, role };
  });
  return [...new Map(joins.map((join) => [join.userId, join])).values()];
}

/** With the attributes' digits, of a body that has been checked. */
function groupInput(
  { name, maxMembers, muted }: UpdateGroupRequest,
  { attributes }: Record<string, unknown>,
): GroupInput {
  return {
    ...(name !== undefined && { name }),
    ...(maxMembers !== undefined && { maxMembers }),
    ...(muted !== undefined && { muted }),
    ...(attributes !== undefined && { attributes: attributesOf(attributes as Record<string, unknown>) }),
  };
}
