import { Module } from '@nestjs/common';
import { Eraser } from './eraser';
import { RetentionKeeper } from './retention-keeper';

/** Retention: what a tenant keeps no longer, and what is to be erased on request, goes everywhere; figures and the audit log stay. */
@Module({
  providers: [Eraser, RetentionKeeper],
  exports: [Eraser, RetentionKeeper],
})
export class RetentionModule {}
