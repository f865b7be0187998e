import { Module } from '@nestjs/common';
import { MediaDriver } from '../model-services';
import { AppGenerations } from './app-generations';
import { AudioFetcher } from './audio-fetcher';
import { GenerationEndings } from './generation-endings';
import { GenerationKeeper } from './generation-keeper';
import { Generations } from './generations';
import { ImageCosts } from './image-costs';
import { ImageFetcher } from './image-fetcher';
import { ImageGenerations } from './image-generations';
import { ImageJobs } from './image-jobs';
import { ImageRelease } from './image-release';
import { TextGenerations } from './text-generations';

/**
 * Generations: what a model makes in one piece (embeddings, images, transcripts), of which nothing is stored but one
 * ledger row each; and what generation apps make, of which everything is.
 */
@Module({
  providers: [
    MediaDriver,
    Generations,
    AudioFetcher,
    ImageFetcher,
    ImageCosts,
    AppGenerations,
    GenerationEndings,
    GenerationKeeper,
    TextGenerations,
    ImageGenerations,
    ImageJobs,
    ImageRelease,
  ],
  exports: [Generations, AudioFetcher, ImageFetcher, AppGenerations, GenerationEndings, TextGenerations],
})
export class GenerationsModule {}
