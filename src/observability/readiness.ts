import { Injectable } from '@nestjs/common';
import { Shutdown } from '../common';

/** Whether this process wants more work: a stopping one tells its load balancer before it tells its clients. */
@Injectable()
export class Readiness {
  constructor(private readonly shutdown: Shutdown) {}

  get stopping(): boolean {
    return this.shutdown.begun;
  }
}
