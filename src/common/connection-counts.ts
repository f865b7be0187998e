/** How many connections there are of each tenant, user, address: whatever a connection is counted under. */
export class ConnectionCounts {
  private readonly counts = new Map<string, number>();

  of(key: string): number {
    return this.counts.get(key) ?? 0;
  }

  add(keys: readonly string[]): void {
    for (const key of keys) this.counts.set(key, this.of(key) + 1);
  }

  remove(keys: readonly string[]): void {
    for (const key of keys) {
      const left = this.of(key) - 1;
      if (left > 0) this.counts.set(key, left);
      else this.counts.delete(key);
    }
  }
}
