import { Module } from '@nestjs/common';
import { GenerationsModule } from '../generations';
import { RepliesModule } from '../replies';
import { DialogueController } from './dialogue.controller';
import { GenerationController } from './generation.controller';
import { ImageController } from './image.controller';
import { ModelListController } from './model-list.controller';
import { SpeechController } from './speech.controller';

/** The assistant-platform wire: translates `/copywriting` to the engines and back. No logic of theirs. */
@Module({
  imports: [RepliesModule, GenerationsModule],
  controllers: [
    DialogueController,
    GenerationController,
    ImageController,
    ModelListController,
    SpeechController,
  ],
})
export class DialogueAssistantModule {}
