import type { MessageId, TenantId } from '../../src/common';
import type { StreamCursor, StreamEnd, StreamLog } from '../../src/realtime';

const ACME = '1' as TenantId;
const RIVAL = '2' as TenantId;
const END: StreamEnd = {
  status: 'finished',
  promptTokens: 1,
  completionTokens: 2,
  totalTokens: 3,
  credits: 0,
};
let replies = 0;
const newReply = () => String((replies += 1)) as MessageId;

/** Everything a cursor brings until its end, waiting to be woken. */
async function drain(log: StreamLog, reply: MessageId, after: number, most = Infinity) {
  const pieces: string[] = [];
  const numbers: number[] = [];
  let end: StreamEnd | undefined;
  let woken = Promise.withResolvers<void>();
  const cursor = (await log.read(ACME, reply, after, () => woken.resolve()))!;
  while (!end && !cursor.exhausted) {
    const batch = cursor.take(most);
    if (!batch) {
      await woken.promise;
      woken = Promise.withResolvers<void>();
      continue;
    }
    expect(batch.offset).toBe(offsetBefore + pieces.join('').length);
    batch.pieces.forEach((_, index) => numbers.push(batch.first + index));
    pieces.push(...batch.pieces);
    end = batch.end;
  }
  cursor.close();
  return { pieces, numbers, end };
}
let offsetBefore = 0;

/** What every StreamLog keeps, whatever it is made of. */
export function streamLogContract(name: string, make: () => StreamLog): void {
  describe(`StreamLog, ${name}`, () => {
    let log: StreamLog;
    beforeEach(() => {
      log = make();
      offsetBefore = 0;
    });

    it('brings every piece once and in order, to readers before, during and after the reply', async () => {
      const reply = newReply();
      log.open(ACME, reply);
      const before = drain(log, reply, 0);
      log.append(reply, ['a', 'b']);
      const during = drain(log, reply, 0);
      log.append(reply, ['😀']);
      log.end(reply, END);
      const expected = { pieces: ['a', 'b', '😀'], numbers: [1, 2, 3], end: END };
      expect(await before).toEqual(expected);
      expect(await during).toEqual(expected);
      expect(await drain(log, reply, 0)).toEqual(expected);
      expect(await drain(log, reply, 0, 1)).toEqual(expected);
    });

    it('begins after the number it is given; after the end there is nothing', async () => {
      const reply = newReply();
      log.open(ACME, reply);
      log.append(reply, ['ab', 'c', 'd']);
      log.end(reply, END);
      offsetBefore = 2;
      expect(await drain(log, reply, 1)).toEqual({ pieces: ['c', 'd'], numbers: [2, 3], end: END });
      offsetBefore = 4;
      expect(await drain(log, reply, 3)).toEqual({ pieces: [], numbers: [], end: END });
      const cursor = (await log.read(ACME, reply, 4, () => undefined)) as StreamCursor;
      expect(cursor.take(10)).toBeNull();
      expect(cursor.exhausted).toBe(true);
    });

    it('keeps replies apart, and tenants', async () => {
      const [one, other] = [newReply(), newReply()];
      for (const reply of [one, other]) log.open(ACME, reply);
      log.append(one, ['one']);
      log.append(other, ['other']);
      log.end(one, END);
      expect((await drain(log, one, 0)).pieces).toEqual(['one']);
      expect(await log.read(RIVAL, one, 0, () => undefined)).toBeNull();
      expect(await log.read(ACME, newReply(), 0, () => undefined)).toBeNull();
    });

    it('takes nothing after the end, and a second end changes nothing', async () => {
      const reply = newReply();
      log.open(ACME, reply);
      log.end(reply, END);
      log.append(reply, ['late']);
      log.end(reply, { ...END, status: 'failed' });
      expect(await drain(log, reply, 0)).toEqual({ pieces: [], numbers: [], end: END });
    });
  });
}
