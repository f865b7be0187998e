import { Module } from '@nestjs/common';
import { RepliesModule } from '../replies';
import { DeviceMarks } from './device-marks';
import { ImGateway } from './gateway';
import { Hub } from './hub';
import { Messenger } from './messenger';
import { TokenIssuer } from './token-issuer';
import { TokensController } from './tokens.controller';

/** The IM wire: `/chat` and the REST beside it. Owns connections and what is on its way to them; what was said is the log's. */
@Module({
  imports: [RepliesModule],
  controllers: [TokensController],
  providers: [Hub, DeviceMarks, Messenger, ImGateway, TokenIssuer],
})
export class ImModule {}
