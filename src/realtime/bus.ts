/**
 * Hints between the parts of the system and, clustered, between its nodes. At most once: whatever is published is
 * also in Postgres, so losing a publish loses nothing but time.
 */
export abstract class Bus {
  abstract publish(topic: string, message: string): void;

  /** The same for what becomes text only where it leaves the process. */
  publishLive(topic: string, live: Live): void {
    this.publish(topic, live.encode());
  }

  /**
   * Returns the function that ends the subscription. A handler must not throw; it runs synchronously or soon after.
   * `onLive` gets what was published live as it is, if it comes from this process and the bus can hand it over;
   * otherwise, and without `onLive`, `handler` gets its text.
   */
  abstract subscribe<L extends Live>(
    topic: string,
    handler: (message: string) => void,
    onLive?: (live: L) => void,
  ): () => void;
}

/** What can be published as it is; everybody who is handed it shares it. */
export interface Live {
  encode(): string;
}
