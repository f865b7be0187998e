import { Injectable } from '@nestjs/common';
import { MessageLog } from '../messages';
import { Metrics } from '../observability';
import { Hub } from './hub';

/** What operators watch of this wire (docs/operations.md, "Metrics"). */
@Injectable()
export class ImMetrics {
  constructor(metrics: Metrics, log: MessageLog, hub: Hub) {
    metrics.gauge('parley_im_connections', 'Open connections', () => hub.size);
    metrics.gauge('parley_im_catching_up', 'Connections that are behind the log', () => hub.catchingUp);
    metrics.gauge('parley_log_waiting', 'Messages that wait for their batch', () => log.waiting);
    for (const [name, help] of [
      ['stored', 'Messages stored'],
      ['repeated', 'Messages that had been stored before'],
      ['conflict', 'Messages refused for their used id'],
      ['refused', 'Messages of who may not speak'],
      ['failed', 'Messages that could not be stored'],
      ['batches', 'Transactions that messages were stored in'],
      ['unchanged', 'Of these, in one round trip: nobody else wrote to their conversations'],
    ] as const) {
      metrics.gauge(`parley_log_${name}`, help, () => log.counters[name]);
    }
  }
}
