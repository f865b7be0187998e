import { ApiProperty, ApiPropertyOptional, PartialType } from '@nestjs/swagger';
import {
  ArrayMaxSize,
  ArrayMinSize,
  ArrayUnique,
  Equals,
  IsArray,
  IsBoolean,
  IsIn,
  IsInt,
  IsOptional,
  IsString,
  Length,
  Max,
  MaxLength,
  Min,
  ValidateIf,
} from 'class-validator';
import {
  EmptyIsAbsent,
  IsEntityId,
  IsHttpUrl,
  IsJson,
  IsJsonObject,
  IsPageLimit,
  NoNul,
  Present,
  ToNumber,
} from '../common/http';
import { MAX_PAGE, type MemberRole } from '../messages';
import { WEBHOOK_EVENTS, type WebhookEvent } from '../webhooks';
import { MAX_ID_CHARS } from './frames';
import { IsTarget, IsUserId, NoControl } from './user-id';

export const MAX_MESSAGE_CHARS = 65_536;
export const MAX_ATTRIBUTES_CHARS = 20_000;
/** Whatever the installation says. */
export const MOST_RECIPIENTS = 100_000;
const MAX_CONVERSATIONS = 500;
const MAX_MEMBERS_A_REQUEST = 1_000;

class Packet {
  @ApiPropertyOptional({ default: 'text', maxLength: 64 })
  @Present()
  @IsString()
  @Length(1, 64)
  @NoNul()
  msgType?: string;

  @ApiProperty({ type: Object, example: { msgId: 'order-17', content: 'Your order is on its way.' } })
  @IsJsonObject(MAX_MESSAGE_CHARS)
  msg!: Record<string, unknown>;

  @ApiPropertyOptional({ description: 'Any JSON, passed through.' })
  @Present()
  @IsJson(MAX_MESSAGE_CHARS)
  extra?: unknown;
}

export class SendMessageRequest extends Packet {
  @ApiProperty({ enum: ['single', 'group'] })
  @IsIn(['single', 'group'])
  type!: 'single' | 'group';

  @ApiPropertyOptional({ oneOf: [{ type: 'string' }, { type: 'integer' }], default: 'system' })
  @Present()
  @IsTarget()
  source?: string | number;

  @ApiProperty({ oneOf: [{ type: 'string' }, { type: 'integer' }] })
  @IsTarget()
  target!: string | number;
}

export class BroadcastRequest extends Packet {
  @ApiPropertyOptional({ oneOf: [{ type: 'string' }, { type: 'integer' }], default: 'system' })
  @Present()
  @IsTarget()
  source?: string | number;

  @ApiPropertyOptional({ type: [String], description: 'Instead of `everybody`.' })
  @ValidateIf(({ users, everybody }: BroadcastRequest) => users !== undefined || everybody === undefined)
  @IsArray()
  @ArrayMinSize(1)
  @ArrayMaxSize(MOST_RECIPIENTS)
  @IsTarget({ each: true })
  users?: (string | number)[];

  @ApiPropertyOptional({ enum: [true], description: 'Every user who ever connected, instead of `users`.' })
  @Present()
  @Equals(true)
  everybody?: true;
}

/** Broadcasts, the newest first. */
export class BroadcastsQuery {
  @IsPageLimit(200, 50)
  limit: number = 50;

  @ApiPropertyOptional({ description: 'the `nextCursor` of the page before' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsEntityId()
  cursor?: string;
}

export class ConversationsQuery {
  @ApiProperty()
  @IsString()
  @Length(1, MAX_ID_CHARS)
  @NoNul()
  userId!: string;

  @IsPageLimit(MAX_CONVERSATIONS, MAX_CONVERSATIONS)
  limit: number = MAX_CONVERSATIONS;

  @ApiPropertyOptional({ description: 'the `nextCursor` of the page before' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsString()
  @MaxLength(MAX_ID_CHARS)
  cursor?: string;
}

export class HistoryQuery {
  @ApiPropertyOptional({ description: 'Only messages with a smaller `seq`.' })
  @ToNumber()
  @IsOptional()
  @IsInt()
  @Min(0)
  before?: number;

  @ApiPropertyOptional({ description: 'Only messages with a larger `seq`.' })
  @ToNumber()
  @IsOptional()
  @IsInt()
  @Min(0)
  after?: number;

  @IsPageLimit(MAX_PAGE, 50)
  limit: number = 50;
}

/** Lists by the tenant's own ids: `cursor` is the last one of the page before. */
export class ListQuery {
  @IsPageLimit(200, 50)
  limit: number = 50;

  @ApiPropertyOptional({ description: 'the `nextCursor` of the page before' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsString()
  @MaxLength(MAX_ID_CHARS)
  @NoNul()
  cursor?: string;
}

export class UpdateGroupRequest {
  @ApiPropertyOptional({ maxLength: 200 })
  @Present()
  @IsString()
  @MaxLength(200)
  @NoNul()
  name?: string;

  @ApiPropertyOptional({ type: Object })
  @Present()
  @IsJsonObject(MAX_ATTRIBUTES_CHARS)
  attributes?: Record<string, unknown>;

  @ApiPropertyOptional({ nullable: true, minimum: 1, description: "null: the tenant's limit." })
  @IsOptional()
  @IsInt()
  @Min(1)
  @Max(1_000_000)
  maxMembers?: number | null;

  @ApiPropertyOptional({ description: 'Only the owner and admins may speak.' })
  @Present()
  @IsBoolean()
  muted?: boolean;
}

export class CreateGroupRequest extends UpdateGroupRequest {
  @ApiProperty({ maxLength: MAX_ID_CHARS })
  @IsString()
  @Length(1, MAX_ID_CHARS)
  @NoControl()
  groupId!: string;

  @ApiPropertyOptional({ oneOf: [{ type: 'string' }, { type: 'integer' }] })
  @Present()
  @IsUserId()
  owner?: string | number;

  @ApiPropertyOptional({ type: [String] })
  @Present()
  @IsArray()
  @ArrayMaxSize(MAX_MEMBERS_A_REQUEST)
  @IsUserId({ each: true })
  members?: (string | number)[];
}

export class AddMembersRequest {
  @ApiProperty({ type: [String] })
  @IsArray()
  @ArrayMinSize(1)
  @ArrayMaxSize(MAX_MEMBERS_A_REQUEST)
  @IsUserId({ each: true })
  users!: (string | number)[];

  @ApiPropertyOptional({ enum: ['admin', 'member'], default: 'member' })
  @Present()
  @IsIn(['admin', 'member'])
  role?: MemberRole;
}

export class UpdateMemberRequest {
  @ApiPropertyOptional({
    enum: ['owner', 'admin', 'member'],
    description: 'A new owner makes the old one an admin.',
  })
  @Present()
  @IsIn(['owner', 'admin', 'member'])
  role?: MemberRole;

  @ApiPropertyOptional({ minimum: 0, description: 'From now; 0 lets the member speak again.' })
  @Present()
  @IsInt()
  @Min(0)
  @Max(315_360_000)
  mutedSeconds?: number;
}

export class SessionsQuery {
  @ApiPropertyOptional({ description: 'One device kind; absent: all.' })
  @EmptyIsAbsent()
  @IsOptional()
  @IsString()
  @MaxLength(32)
  @NoNul()
  client?: string;
}

export class CreateWebhookRequest {
  @ApiProperty({ example: 'https://app.example/hook', maxLength: 2_000 })
  @IsHttpUrl()
  url!: string;

  @ApiProperty({ enum: WEBHOOK_EVENTS, isArray: true })
  @IsArray()
  @ArrayMinSize(1)
  @ArrayMaxSize(WEBHOOK_EVENTS.length)
  @ArrayUnique()
  @IsIn(WEBHOOK_EVENTS, { each: true })
  events!: WebhookEvent[];

  @ApiPropertyOptional({ default: true })
  @Present()
  @IsBoolean()
  enabled?: boolean;
}
export class UpdateWebhookRequest extends PartialType(CreateWebhookRequest, { skipNullProperties: false }) {}
