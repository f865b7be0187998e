import { Global, Module } from '@nestjs/common';
import { DialoguesRepository } from './dialogues.repository';

/** Messages: sole owner of what was said. Others store and read through its repository and statements; nobody else touches its tables. */
@Global()
@Module({ providers: [DialoguesRepository], exports: [DialoguesRepository] })
export class MessagesModule {}
