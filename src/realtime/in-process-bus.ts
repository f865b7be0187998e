import { Injectable } from '@nestjs/common';
import { Bus, type Live } from './bus';

/** One process talking to itself. */
@Injectable()
export class InProcessBus extends Bus {
  private readonly topics = new Map<string, Set<Subscription>>();

  publish(topic: string, message: string): void {
    for (const { handler } of this.topics.get(topic) ?? []) handler(message);
  }

  override publishLive(topic: string, live: Live): void {
    for (const { handler, onLive } of this.topics.get(topic) ?? []) {
      if (onLive) onLive(live);
      else handler(live.encode());
    }
  }

  subscribe<L extends Live>(
    topic: string,
    handler: (message: string) => void,
    onLive?: (live: L) => void,
  ): () => void {
    const subscriptions = this.topics.get(topic) ?? new Set();
    const subscription = { handler, onLive: onLive as Subscription['onLive'] };
    this.topics.set(topic, subscriptions.add(subscription));
    return () => {
      subscriptions.delete(subscription);
      if (subscriptions.size === 0) this.topics.delete(topic);
    };
  }
}

interface Subscription {
  readonly handler: (message: string) => void;
  readonly onLive: ((live: Live) => void) | undefined;
}
