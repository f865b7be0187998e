import { Injectable } from '@nestjs/common';

/** Whether this process wants more work: a stopping one tells its load balancer before it tells its clients. */
@Injectable()
export class Readiness {
  stopping = false;
}
