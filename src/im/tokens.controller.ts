import { applyDecorators, Body, Controller, HttpCode, Post, Req, UsePipes } from '@nestjs/common';
import { RouteConfig } from '@nestjs/platform-fastify';
import {
  ApiHideProperty,
  ApiOperation,
  ApiProperty,
  ApiPropertyOptional,
  ApiSecurity,
  ApiTags,
} from '@nestjs/swagger';
import { Transform } from 'class-transformer';
import { ArrayMaxSize, IsArray, IsOptional, IsString, Length } from 'class-validator';
import type { FastifyRequest } from 'fastify';
import { AppError, type Principal } from '../common';
import { Caller, ExactBody, Public, Scopes, validation, type ErrorShape } from '../common/http';
import { Authenticator, formatApiKey, parseAppKey } from '../tenancy';
import { MAX_ID_CHARS } from './frames';
import { TokenIssuer, type TokenInput } from './token-issuer';
import { exactIds, IsUserId, NoControl } from './user-id';

const MAX_GROUPS = 500;

/** A list of group names. A form repeats the field, or has it once. */
function IsGroups(): PropertyDecorator {
  return applyDecorators(
    Transform(({ value }: { value: unknown }) =>
      value === undefined || Array.isArray(value) ? value : [value],
    ),
    IsOptional(),
    IsArray(),
    ArrayMaxSize(MAX_GROUPS),
    IsString({ each: true }),
    Length(1, MAX_ID_CHARS, { each: true }),
    NoControl({ each: true }),
  );
}

/** The groups, however they were spelt, and the user with every digit. */
function inputOf(request: TokenRequest, exact: Record<string, unknown>): TokenInput {
  const groupId = request.groupId ?? request['groupId[]'];
  const { client } = request;
  const [userId] = exactIds('userId', [exact.userId]) as [string | number];
  return { userId, client, ...(groupId && { groupId }) };
}

export class TokenRequest {
  @ApiPropertyOptional({ default: 'pc', maxLength: 32, description: 'The device kind.' })
  @IsOptional()
  @IsString()
  @Length(1, 32)
  @NoControl()
  client: string = 'pc';

  @ApiProperty({
    oneOf: [{ type: 'string' }, { type: 'integer' }],
    description: "The tenant's own id of the user.",
  })
  @IsUserId()
  userId!: string | number;

  @ApiPropertyOptional({ type: [String], description: 'Every group the user is in.' })
  @IsGroups()
  groupId?: string[];

  /** The same as some forms spell it. */
  @ApiHideProperty()
  @IsGroups()
  'groupId[]'?: string[];
}

export class AppTokenRequest extends TokenRequest {
  @ApiProperty({ description: 'Public half of an API key with the scope `im`.' })
  @IsString()
  @Length(1, 64)
  appKey!: string;

  @ApiProperty({ description: 'Secret half.' })
  @IsString()
  @Length(1, 128)
  appSecret!: string;
}

/** `code` of a failed token request (protocols/im.md, "Getting a token"). */
export const tokenErrors: ErrorShape = {
  prefix: /^\/chat(\/|$)/,
  render: (error) => ({
    status: error.status,
    body: { code: CODES[error.code] ?? 1000, msg: error.message },
  }),
};
const CODES: Readonly<Partial<Record<AppError['code'], number>>> = {
  BAD_INPUT: 1001,
  BODY_TOO_LARGE: 1001,
  UNSUPPORTED_MEDIA_TYPE: 1001,
  UNAUTHENTICATED: 1002,
  TENANT_NOT_PERMITTED: 1002,
  TENANT_SUSPENDED: 1003,
  FORBIDDEN: 1003,
  RATE_LIMITED: 1004,
};

/** Tokens for users' apps, asked for by the tenant's server. */
@ApiTags('im')
@UsePipes(validation('ignored'))
@Controller()
export class TokensController {
  constructor(
    private readonly issuer: TokenIssuer,
    private readonly authenticator: Authenticator,
  ) {}

  @Post('chat/oauth/token')
  @HttpCode(200)
  @RouteConfig({ exactNumbers: true })
  @Public()
  @ApiOperation({ summary: 'A token for a user, by app key and secret' })
  async byAppKey(
    @Body() input: AppTokenRequest,
    @ExactBody() exact: Record<string, unknown>,
    @Req() request: FastifyRequest,
  ) {
    const id = parseAppKey(input.appKey);
    if (!id) throw new AppError('UNAUTHENTICATED', { message: 'Unknown app or wrong secret.' });
    const principal = await this.authenticator.authenticate({
      apiKey: formatApiKey({ id, secret: input.appSecret }),
      address: request.ip,
    });
    return { code: 0, msg: 'success', data: await this.issuer.issue(principal, inputOf(input, exact)) };
  }

  @Post('api/v1/im/tokens')
  @HttpCode(200)
  @RouteConfig({ exactNumbers: true })
  @Scopes('im')
  @ApiSecurity('x-api-key')
  @ApiOperation({ summary: 'A token for a user, by API key' })
  async byApiKey(
    @Body() input: TokenRequest,
    @ExactBody() exact: Record<string, unknown>,
    @Caller() principal: Principal,
  ) {
    return { code: 0, msg: 'success', data: await this.issuer.issue(principal, inputOf(input, exact)) };
  }
}
