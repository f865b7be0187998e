import { Injectable } from '@nestjs/common';
import type { MessageId } from '../common';
import type { OrphanedReply } from '../messages';
import type { LiveReply } from './live-reply';

/** A storm of failed writes must not fill the memory: past this the leases of a later restart clean up. */
const MAX_ABANDONED = 10_000;

/** The replies this process is writing, and those it may have stored without ever writing them. */
@Injectable()
export class LiveReplies {
  private readonly replies = new Map<MessageId, LiveReply>();
  private readonly abandoned = new Map<MessageId, OrphanedReply>();

  get size(): number {
    return this.replies.size;
  }

  get(id: MessageId): LiveReply | undefined {
    return this.replies.get(id);
  }

  add(reply: LiveReply): void {
    this.replies.set(reply.id, reply);
  }

  remove(reply: LiveReply): void {
    this.replies.delete(reply.id);
    reply.resolveEnded();
  }

  [Symbol.iterator](): IterableIterator<LiveReply> {
    return this.replies.values();
  }

  abandon(reply: OrphanedReply): void {
    if (this.abandoned.size < MAX_ABANDONED) this.abandoned.set(reply.replyId, reply);
  }

  /** Hands them over; whoever can't deal with one now gives it back with `abandon`. */
  takeAbandoned(): OrphanedReply[] {
    const taken = [...this.abandoned.values()];
    this.abandoned.clear();
    return taken;
  }
}
