/** Work that is done again and again, never twice at a time; what fails is told and tried again the next time. */
export class Periodic {
  private readonly timer: NodeJS.Timeout;
  private running: Promise<void> | undefined;

  constructor(
    everyMs: number,
    private readonly work: () => Promise<void>,
    private readonly failed: (error: Error) => void,
  ) {
    this.timer = setInterval(() => void this.run(), everyMs).unref();
  }

  /** Now, unless it is being done: then that one's end. Never rejects. */
  run(): Promise<void> {
    return (this.running ??= this.attempt());
  }

  /** No more; resolves when what is under way has ended. */
  async stop(): Promise<void> {
    clearInterval(this.timer);
    await this.running;
  }

  private async attempt(): Promise<void> {
    try {
      await this.work();
    } catch (error) {
      this.failed(error as Error);
    } finally {
      this.running = undefined;
    }
  }
}
