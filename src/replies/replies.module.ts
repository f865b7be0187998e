import { Module } from '@nestjs/common';
import { LiveReplies } from './live-replies';
import { ReplyEngine } from './reply-engine';
import { ReplyKeeper } from './reply-keeper';
import { ReplyWriter } from './reply-writer';

/** Replies: an assistant's answer from prompt to last piece. Durable before any reader is told of its end; exactly one ledger row each; never left open. */
@Module({
  providers: [LiveReplies, ReplyWriter, ReplyEngine, ReplyKeeper],
  exports: [ReplyEngine, LiveReplies],
})
export class RepliesModule {}
