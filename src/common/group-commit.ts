interface Waiting<I, O> {
  readonly input: I;
  readonly resolve: (output: O) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Many callers, few round trips: while one batch is worked on the next one fills. No timer: an idle system works at
 * once, a busy one batches by itself. A batch that fails fails for each of its callers.
 */
export class GroupCommit<I, O> {
  private waiting: Waiting<I, O>[] = [];
  private running = 0;

  constructor(
    /** Gets at most `maxBatch` inputs, gives as many outputs in the same order. */
    private readonly work: (inputs: readonly I[]) => Promise<readonly O[]>,
    private readonly maxBatch: number,
    private readonly maxRunning = 1,
  ) {}

  get size(): number {
    return this.waiting.length;
  }

  add(input: I): Promise<O> {
    return new Promise((resolve, reject) => {
      this.waiting.push({ input, resolve, reject });
      if (this.running < this.maxRunning) void this.run();
    });
  }

  private async run(): Promise<void> {
    this.running += 1;
    // What this very moment brings more of goes into the same batch.
    await Promise.resolve();
    while (this.waiting.length > 0) {
      const batch = this.waiting.splice(0, this.maxBatch);
      try {
        const outputs = await this.work(batch.map(({ input }) => input));
        batch.forEach(({ resolve }, index) => resolve(outputs[index] as O));
      } catch (error) {
        for (const { reject } of batch) reject(error);
      }
    }
    this.running -= 1;
  }
}
