import { Module } from '@nestjs/common';
import { RepliesModule } from '../replies';
import { Admission } from './admission';
import { Agents } from './agents';
import { AgentsController } from './agents.controller';
import { ChannelTokens } from './channel-tokens';
import { AgentChannelGateway } from './gateway';
import { Sessions } from './sessions';
import { SessionsController } from './sessions.controller';
import { ChannelTokensController } from './tokens.controller';

/** The agent channel: `/api/v1/ws` and the REST beside it. Owns connections and who watches which session; the replies are the engine's. */
@Module({
  imports: [RepliesModule],
  controllers: [ChannelTokensController, AgentsController, SessionsController],
  providers: [Admission, Sessions, AgentChannelGateway, ChannelTokens, Agents],
})
export class AgentChannelModule {}
