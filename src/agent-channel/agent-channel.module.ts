import { Module } from '@nestjs/common';
import { RepliesModule } from '../replies';
import { Admission } from './admission';
import { AgentChannelGateway } from './gateway';
import { Sessions } from './sessions';

/** The agent channel: `/api/v1/ws` and the REST beside it. Owns connections and who watches which session; the replies are the engine's. */
@Module({ imports: [RepliesModule], controllers: [], providers: [Admission, Sessions, AgentChannelGateway] })
export class AgentChannelModule {}
