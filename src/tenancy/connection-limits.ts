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

/** As a tenant has them in its `limits`. */
const NAMES: Readonly<Record<keyof ConnectionLimits, string>> = {
  tokensPerMinute: 'imTokensPerMinute',
  framesPerSecond: 'imFramesPerSecond',
  framesBurst: 'imFramesBurst',
  frameBytes: 'imMaxFrameBytes',
  channelFrameBytes: 'channelMaxFrameBytes',
  channelConnectionsPerUser: 'channelConnectionsPerUser',
  connectionsPerUser: 'imConnectionsPerUser',
  connectionsPerTenant: 'imConnectionsPerTenant',
  groupMembers: 'imMaxGroupMembers',
  recallSeconds: 'imRecallSeconds',
};
/** Every name of a connection's limit there is. */
export const LIMIT_NAMES: ReadonlySet<string> = new Set(Object.values(NAMES));

export function limitsOf({ env }: Config, settings: Pick<TenantSettings, 'limits'>): ConnectionLimits {
  const own = (limit: keyof ConnectionLimits, installation: number): number => {
    const value = settings.limits[NAMES[limit]];
    return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : installation;
  };
  return {
    tokensPerMinute: own('tokensPerMinute', env.IM_TOKENS_PER_MINUTE),
    framesPerSecond: own('framesPerSecond', env.IM_FRAMES_PER_SECOND),
    framesBurst: own('framesBurst', env.IM_FRAMES_BURST),
    // The socket's own limit is the installation's: a tenant's can only be lower.
    frameBytes: Math.min(own('frameBytes', env.IM_MAX_FRAME_BYTES), env.IM_MAX_FRAME_BYTES),
    channelFrameBytes: Math.min(
      own('channelFrameBytes', env.CHANNEL_MAX_FRAME_BYTES),
      env.CHANNEL_MAX_FRAME_BYTES,
    ),
    channelConnectionsPerUser: own('channelConnectionsPerUser', env.CHANNEL_CONNECTIONS_PER_USER),
    connectionsPerUser: own('connectionsPerUser', env.IM_CONNECTIONS_PER_USER),
    connectionsPerTenant: own('connectionsPerTenant', env.IM_CONNECTIONS_PER_TENANT),
    groupMembers: own('groupMembers', env.IM_MAX_GROUP_MEMBERS),
    recallSeconds: own('recallSeconds', env.IM_RECALL_SECONDS),
  };
}
