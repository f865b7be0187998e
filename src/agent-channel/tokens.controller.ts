import { Body, Controller, HttpCode, Post, UsePipes } from '@nestjs/common';
import { ApiHeader, ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import type { Principal } from '../common';
import { Caller, Scopes, validation } from '../common/http';
import { ChannelTokens } from './channel-tokens';
import { ChannelTokenRequest } from './requests';

/** Tokens for who talks to agents from a page or an app, asked for by the tenant's server. */
@ApiTags('agents')
@ApiSecurity('x-api-key')
@ApiSecurity('bearer')
@ApiHeader({ name: 'tenant-id', required: false, description: 'needed with the root key' })
@Scopes('dialogue')
@UsePipes(validation('ignored'))
@Controller('api/v1/tokens')
export class ChannelTokensController {
  constructor(private readonly tokens: ChannelTokens) {}

  @Post()
  @HttpCode(200)
  @ApiOperation({ summary: 'A short-lived token for a user, which opens the agent channel' })
  issue(@Caller() principal: Principal, @Body() { userId, expiresIn }: ChannelTokenRequest) {
    return this.tokens.issue(principal, String(userId), expiresIn);
  }
}
