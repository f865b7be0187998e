import { Injectable } from '@nestjs/common';
import { Bus } from './bus';

/** One process talking to itself. */
@Injectable()
export class InProcessBus extends Bus {
  private readonly topics = new Map<string, Set<(message: string) => void>>();

  publish(topic: string, message: string): void {
    for (const handler of this.topics.get(topic) ?? []) handler(message);
  }

  subscribe(topic: string, handler: (message: string) => void): () => void {
    const handlers = this.topics.get(topic) ?? new Set();
    this.topics.set(topic, handlers.add(handler));
    return () => {
      handlers.delete(handler);
      if (handlers.size === 0) this.topics.delete(topic);
    };
  }
}
