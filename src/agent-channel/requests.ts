import { applyDecorators } from '@nestjs/common';
import { ApiProperty, ApiPropertyOptional, OmitType, PartialType } from '@nestjs/swagger';
import { Transform } from 'class-transformer';
import {
  ArrayMaxSize,
  IsArray,
  IsInt,
  IsOptional,
  IsString,
  Length,
  Matches,
  Max,
  MaxLength,
  Min,
  ValidateBy,
} from 'class-validator';
import { IsEntityId, IsJsonObject, IsPageLimit, IsStorableText, NoNul, ToNumber } from '../common/http';
import { DEFAULT_AGENT } from './gateway';

const MAX_USER_CHARS = 128;
const MAX_SESSION_CHARS = 128;
const MAX_PAGE_NUMBER = 1_000_000;
// eslint-disable-next-line no-control-regex -- these very characters are meant
const CONTROL = /[\u0000-\u001f\u007f]/;

/** What may name a session: text without NUL or half of a surrogate pair, of the length that a frame lets it have, too, in UTF-16 units. */
export function isSessionName(value: unknown): value is string {
  return (
    typeof value === 'string' &&
    value.length >= 1 &&
    value.length <= MAX_SESSION_CHARS &&
    value.isWellFormed() &&
    !value.includes('\0')
  );
}

function IsSessionName(): PropertyDecorator {
  return ValidateBy({
    name: 'isSessionName',
    validator: {
      validate: isSessionName,
      defaultMessage: () =>
        `$property must be a string of 1 to ${MAX_SESSION_CHARS} characters, without NUL or half of a surrogate pair`,
    },
  });
}

/** The tenant's own id of a user, number or string. */
function IsUser(): PropertyDecorator {
  return ValidateBy({
    name: 'isUser',
    validator: {
      validate: (value: unknown) =>
        Number.isSafeInteger(value) ||
        (typeof value === 'string' &&
          value.length >= 1 &&
          value.length <= MAX_USER_CHARS &&
          value.isWellFormed() &&
          !CONTROL.test(value)),
      defaultMessage: () =>
        `$property must be an integer or a string of 1 to ${MAX_USER_CHARS} characters, none of them a control character`,
    },
  });
}

/** An agent's slug, absent or empty: the default one's. */
function IsAgent(): PropertyDecorator {
  return applyDecorators(
    ApiPropertyOptional({ default: DEFAULT_AGENT, maxLength: 128, type: String }),
    Transform(({ value }: { value: unknown }) => (value === '' || value === null ? DEFAULT_AGENT : value)),
    IsString(),
    Length(1, 128),
    IsStorableText(),
  );
}

export class ChannelTokenRequest {
  @ApiProperty({
    oneOf: [{ type: 'string' }, { type: 'integer' }],
    description: "The tenant's own id of the user.",
  })
  @IsUser()
  userId!: string | number;

  @ApiPropertyOptional({ default: 900, minimum: 60, maximum: 86_400, description: 'Seconds.' })
  @Transform(({ value }: { value: unknown }) => value ?? undefined)
  @IsOptional()
  @IsInt()
  @Min(60)
  @Max(86_400)
  expiresIn?: number;
}

/** `?page=&size=`: pages count from 1. */
export class NumberedPage {
  @ApiPropertyOptional({ minimum: 1, maximum: MAX_PAGE_NUMBER, default: 1, type: Number })
  @ToNumber()
  @IsInt()
  @Min(1)
  @Max(MAX_PAGE_NUMBER)
  page: number = 1;

  @IsPageLimit(200, 20)
  size: number = 20;
}

export class AgentSessionsQuery extends NumberedPage {
  @IsAgent()
  agentId: string = DEFAULT_AGENT;
}

export class ClearSessionRequest {
  @IsAgent()
  agentId: string = DEFAULT_AGENT;

  @ApiProperty({ maxLength: MAX_SESSION_CHARS, description: "The session's name, as `sessionId` of a chat." })
  @IsSessionName()
  sessionKey!: string;
}

/** Of what is optional, null counts as absent. */
export class CreateAgentRequest {
  @ApiProperty({
    example: 'support',
    description: 'Lower-case letters, digits and hyphens; unique in the tenant.',
  })
  @IsString()
  @Matches(/^[a-z0-9][a-z0-9-]{0,62}$/, {
    message: '$property must be lower-case letters, digits and hyphens, at most 63',
  })
  id!: string;

  @ApiProperty({ maxLength: 200 })
  @IsString()
  @Length(1, 200)
  @NoNul()
  name!: string;

  @ApiPropertyOptional({ maxLength: 2000 })
  @IsOptional()
  @IsString()
  @MaxLength(2_000)
  @NoNul()
  description?: string | null;

  @ApiPropertyOptional({ maxLength: 2000 })
  @IsOptional()
  @IsString()
  @MaxLength(2_000)
  @NoNul()
  avatar?: string | null;

  @ApiPropertyOptional({ maxLength: 200_000, description: 'The system prompt.' })
  @IsOptional()
  @IsString()
  @MaxLength(200_000)
  @NoNul()
  prompt?: string | null;

  @ApiPropertyOptional({
    type: String,
    description: "A text service this tenant may use; by default the tenant's first.",
  })
  @IsOptional()
  @IsEntityId()
  modelServiceId?: string | null;

  @ApiPropertyOptional({ type: Object, description: 'temperature, max_tokens, …' })
  @IsOptional()
  @IsJsonObject(20_000)
  parameters?: Record<string, unknown> | null;

  @ApiPropertyOptional({ maxLength: 4000 })
  @IsOptional()
  @IsString()
  @MaxLength(4_000)
  @NoNul()
  greeting?: string | null;

  @ApiPropertyOptional({ type: [String] })
  @IsOptional()
  @IsArray()
  @ArrayMaxSize(20)
  @IsString({ each: true })
  @MaxLength(500, { each: true })
  @NoNul({ each: true })
  suggestedQuestions?: string[] | null;
}

export class UpdateAgentRequest extends PartialType(OmitType(CreateAgentRequest, ['id'])) {
  @ApiPropertyOptional({
    type: String,
    description: 'As in the path: a record that was read may be sent back.',
  })
  @IsOptional()
  id?: unknown;
}
