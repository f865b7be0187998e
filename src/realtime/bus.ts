/**
 * Hints between the parts of the system and, clustered, between its nodes. At most once: whatever is published is
 * also in Postgres, so losing a publish loses nothing but time.
 */
export abstract class Bus {
  abstract publish(topic: string, message: string): void;
  /** Returns the function that ends the subscription. A handler must not throw; it runs synchronously or soon after. */
  abstract subscribe(topic: string, handler: (message: string) => void): () => void;
}
