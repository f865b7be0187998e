import { Module } from '@nestjs/common';
import { MediaDriver } from '../model-services';
import { Generations } from './generations';
import { ImageFetcher } from './image-fetcher';

/** Generations: what a model makes in one piece (embeddings, images, transcripts). Stores nothing but one ledger row each. */
@Module({
  providers: [MediaDriver, Generations, { provide: ImageFetcher, useFactory: () => new ImageFetcher() }],
  exports: [Generations, ImageFetcher],
})
export class GenerationsModule {}
