import { Global, Module } from '@nestjs/common';
import { AssistantsRepository } from './assistants.repository';

/** Assistants: sole owner of assistants and their versions. A version never changes; publishing moves a pointer. */
@Global()
@Module({ providers: [AssistantsRepository], exports: [AssistantsRepository] })
export class AssistantsModule {}
