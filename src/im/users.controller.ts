import { Controller, Delete, Get, Param, Query, UsePipes } from '@nestjs/common';
import { ApiOperation, ApiSecurity, ApiTags } from '@nestjs/swagger';
import type { Principal } from '../common';
import { Caller, Scopes, validation } from '../common/http';
import { DevicesRepository } from '../messages';
import { AccessWatch } from '../tenancy';
import { SessionsQuery } from './requests';

/** A user's open connections, as the tenant's server sees and ends them. */
@ApiTags('im')
@ApiSecurity('x-api-key')
@Scopes('im')
@UsePipes(validation('ignored'))
@Controller('api/v1/im/users')
export class UsersController {
  constructor(
    private readonly devices: DevicesRepository,
    private readonly access: AccessWatch,
  ) {}

  @Delete(':id/sessions')
  @ApiOperation({
    summary: "Revoke a user's tokens, of all devices or of one; open connections close within a second",
  })
  async revoke(
    @Caller() { tenantId }: Principal,
    @Param('id') userId: string,
    @Query() { client }: SessionsQuery,
  ) {
    await this.access.revoke(tenantId, userId, client ?? null);
    return { userId, client: client ?? null, revokedAt: Date.now() };
  }

  @Get(':id/presence')
  @ApiOperation({ summary: 'Whether a user is online, and with which device kinds' })
  async presence(@Caller() { tenantId }: Principal, @Param('id') userId: string) {
    const online = await this.devices.online(tenantId, [userId]);
    return {
      user: userId,
      online: online.length > 0,
      clients: online.map(({ client, connectedAt }) => ({ client, connectedAt: connectedAt.getTime() })),
    };
  }
}
