import { Injectable } from '@nestjs/common';
import { Metrics } from '../observability';
import { FairShares } from './fair-shares';

/** What operators watch of it (docs/operations.md, "Health"). */
@Injectable()
export class FairnessMetrics {
  constructor(metrics: Metrics, shares: FairShares) {
    metrics.gauge('parley_requests_at_work', 'Requests that have a place', () => shares.counts.atWork);
    metrics.gauge('parley_requests_waiting', 'Requests that wait their turn', () => shares.counts.waiting);
    metrics.gauge('parley_requests_refused', 'Requests refused for their tenant', () => shares.refused);
  }
}
