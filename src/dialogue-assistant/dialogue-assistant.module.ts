import { Module } from '@nestjs/common';
import { RepliesModule } from '../replies';
import { DialogueController } from './dialogue.controller';
import { ModelListController } from './model-list.controller';

/** The assistant-platform wire: translates `/copywriting` to the reply engine and back. No reply logic of its own. */
@Module({ imports: [RepliesModule], controllers: [DialogueController, ModelListController] })
export class DialogueAssistantModule {}
