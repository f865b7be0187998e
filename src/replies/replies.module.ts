import { Module } from '@nestjs/common';
import { Completions } from './completions';
import { LiveReplies } from './live-replies';
import { ReplyEngine } from './reply-engine';
import { ReplyKeeper } from './reply-keeper';
import { ReplyWriter } from './reply-writer';
import { SuspendedReplies } from './suspended-replies';
import { ToolRunner } from './tool-runner';

/** Replies: an assistant's answer from prompt to last piece. Durable before any reader is told of its end; exactly one ledger row each; never left open. */
@Module({
  providers: [LiveReplies, ReplyWriter, ReplyEngine, ReplyKeeper, Completions, ToolRunner, SuspendedReplies],
  exports: [ReplyEngine, LiveReplies, Completions],
})
export class RepliesModule {}
