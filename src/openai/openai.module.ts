import { Module } from '@nestjs/common';
import { RepliesModule } from '../replies';
import { ChatController } from './chat.controller';
import { Models } from './models';

/** The OpenAI-compatible wire: chat. What is not chat is in media.module.ts. */
@Module({ imports: [RepliesModule], controllers: [ChatController], providers: [Models] })
export class OpenAiModule {}
