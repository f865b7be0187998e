import { busContract } from '../../test/contracts/bus.contract';
import { streamLogContract } from '../../test/contracts/stream-log.contract';
import type { MessageId, TenantId } from '../common';
import { InProcessBus } from './in-process-bus';
import { InProcessStreamLog } from './in-process-stream-log';

const LIMITS = { retentionMs: 600_000, maxBytes: 10_000_000 };
const END = { status: 'finished', promptTokens: 0, completionTokens: 0, totalTokens: 0, credits: 0 } as const;
const ACME = '1' as TenantId;

busContract('in process', () => new InProcessBus());
streamLogContract('in process', () => new InProcessStreamLog(LIMITS));

describe('InProcessStreamLog', () => {
  const has = async (log: InProcessStreamLog, id: string) =>
    (await log.read(ACME, id as MessageId, 0, () => undefined)) !== null;
  const fill = (log: InProcessStreamLog, id: string, text: string) => {
    log.open(ACME, id as MessageId);
    log.append(id as MessageId, [text]);
    log.end(id as MessageId, END);
  };

  it('keeps a finished reply for its time and no longer; one in progress for as long as it takes', async () => {
    let now = 0;
    const log = new InProcessStreamLog(LIMITS, () => now);
    log.open(ACME, 'live' as MessageId);
    fill(log, 'done', 'x');
    now = 599_999;
    log.prune();
    expect(await has(log, 'done')).toBe(true);
    now = 600_001;
    log.prune();
    expect([await has(log, 'done'), await has(log, 'live')]).toEqual([false, true]);
    log.close();
  });

  it('drops the oldest when there is too much, and who reads it goes on reading', async () => {
    const log = new InProcessStreamLog({ ...LIMITS, maxBytes: 5_000 });
    fill(log, 'a', 'x'.repeat(1_000));
    const cursor = (await log.read(ACME, 'a' as MessageId, 0, () => undefined))!;
    fill(log, 'b', 'y'.repeat(2_000));
    expect([await has(log, 'a'), await has(log, 'b')]).toEqual([false, true]);
    expect(cursor.take(10)).toMatchObject({ pieces: ['x'.repeat(1_000)], end: END });
    log.close();
  });
});
