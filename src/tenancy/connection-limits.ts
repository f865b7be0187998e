import type { Config } from '../config';
import type { TenantSettings } from './tenants.repository';

/** What one tenant's connections may do: the installation's limits under the tenant's own. */
export interface ConnectionLimits {
  readonly tokensPerMinute: number;
  readonly framesPerSecond: number;
  readonly framesBurst: number;
  readonly frameBytes: number;
  readonly channelFrameBytes: number;
  readonly channelConnectionsPerUser: number;
  readonly connectionsPerUser: number;
  readonly connectionsPerTenant: number;
  readonly groupMembers: number;
  readonly recallSeconds: number;
}

/** The tenant's `limits` have these names with an `im` before: `imFramesPerSecond` and so on. */
export function limitsOf({ env }: Config, settings: Pick<TenantSettings, 'limits'>): ConnectionLimits {
  const own = (name: string, installation: number): number => {
    const value = settings.limits[name];
    return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : installation;
  };
  return {
    tokensPerMinute: own('imTokensPerMinute', env.IM_TOKENS_PER_MINUTE),
    framesPerSecond: own('imFramesPerSecond', env.IM_FRAMES_PER_SECOND),
    framesBurst: own('imFramesBurst', env.IM_FRAMES_BURST),
    // The socket's own limit is the installation's: a tenant's can only be lower.
    frameBytes: Math.min(own('imMaxFrameBytes', env.IM_MAX_FRAME_BYTES), env.IM_MAX_FRAME_BYTES),
    channelFrameBytes: Math.min(
      own('channelMaxFrameBytes', env.CHANNEL_MAX_FRAME_BYTES),
      env.CHANNEL_MAX_FRAME_BYTES,
    ),
    channelConnectionsPerUser: own('channelConnectionsPerUser', env.CHANNEL_CONNECTIONS_PER_USER),
    connectionsPerUser: own('imConnectionsPerUser', env.IM_CONNECTIONS_PER_USER),
    connectionsPerTenant: own('imConnectionsPerTenant', env.IM_CONNECTIONS_PER_TENANT),
    groupMembers: own('imMaxGroupMembers', env.IM_MAX_GROUP_MEMBERS),
    recallSeconds: own('imRecallSeconds', env.IM_RECALL_SECONDS),
  };
}
