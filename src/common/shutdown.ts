import { Injectable } from '@nestjs/common';
import { AppError } from './errors';

/**
 * Whether this process has been told to stop. Begun with the signal, before anything is waited for: Nest calls the
 * hooks of one module after another, so who learned it from a hook of its own would take new work while others drain.
 */
@Injectable()
export class Shutdown {
  private beganAt: number | undefined;

  get begun(): boolean {
    return this.beganAt !== undefined;
  }

  /** A second time it changes nothing. */
  begin(): void {
    this.beganAt ??= performance.now();
  }

  /** To be asked before work that lasts is taken. Throws SHUTTING_DOWN. */
  refuseWork(): void {
    if (this.begun) throw new AppError('SHUTTING_DOWN', { retryAfterSeconds: 1 });
  }

  /** Of a time that counts from the beginning: what is left of it, in ms. Everybody drains in the same one. */
  left(ms: number): number {
    this.begin();
    return Math.max(0, ms - (performance.now() - this.beganAt!));
  }
}
