import { Global, Module } from '@nestjs/common';
import { AssistantsRepository } from './assistants.repository';
import { GenerationAppsRepository } from './generation-apps.repository';
import { GenerationRecordsRepository } from './generation-records.repository';

const repositories = [AssistantsRepository, GenerationAppsRepository, GenerationRecordsRepository];

/** Assistants: sole owner of assistants and their versions, of generation apps and what those made. A version never changes; publishing moves a pointer. */
@Global()
@Module({ providers: repositories, exports: repositories })
export class AssistantsModule {}
