import { Module } from '@nestjs/common';
import { GenerationsModule } from '../generations';
import { MediaController } from './media.controller';
import { ModelCatalogue } from './model-catalogue';
import { ModelsController } from './models.controller';

/** The OpenAI-compatible wire beside chat: models, embeddings, images, transcripts. */
@Module({
  imports: [GenerationsModule],
  controllers: [MediaController, ModelsController],
  providers: [ModelCatalogue],
})
export class OpenAiMediaModule {}
