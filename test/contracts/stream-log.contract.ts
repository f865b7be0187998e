import type { MessageId, TenantId } from '../../src/common';
import type { Aside, StreamCursor, StreamEnd, StreamLog } from '../../src/realtime';

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

/** Pieces and what happens beside them, in the order a reader that asked for both is told of them. */
async function told(log: StreamLog, reply: MessageId, after: number, most = Infinity): Promise<unknown[]> {
  const all: unknown[] = [];
  let woken = Promise.withResolvers<void>();
  const cursor = (await log.read(ACME, reply, after, () => woken.resolve(), true))!;
  for (;;) {
    const batch = cursor.take(most);
    if (!batch) {
      if (cursor.exhausted) break;
      await woken.promise;
      woken = Promise.withResolvers<void>();
      continue;
    }
    const { first, pieces, asides = [], end } = batch;
    expect(asides.every((one) => one.after >= first - 1 && one.after < first + pieces.length)).toBe(true);
    for (let n = 0; n <= pieces.length; n += 1) {
      if (n > 0) all.push(pieces[n - 1]);
      for (const one of asides) if (one.after === first - 1 + n) all.push(named(one.aside));
    }
    if (end) break;
  }
  cursor.close();
  return all;
}
const named = (aside: Aside): unknown => (aside.type === 'think' ? aside.content : aside);

/** What every StreamLog keeps, whatever it is made of. */
export function streamLogContract(name: string, make: () => StreamLog): void {
  describe(`StreamLog, ${name}`, () => {
    let log: StreamLog;
    beforeEach(() => {
      log = make();
      offsetBefore = 0;
    });

    it('brings no more at once than was asked for, in characters too, and asides by the few; nothing is lost', async () => {
      const reply = newReply();
      const written = log.open(ACME, reply);
      for (let n = 0; n < 200; n += 1) log.aside(reply, { type: 'think', content: `before ${n}` });
      log.append(reply, ['aaaa', 'bbbb', 'cccc']);
      for (let n = 0; n < 100; n += 1) log.aside(reply, { type: 'think', content: `after ${n}` });
      log.append(reply, ['dddd']);
      log.end(reply, END);
      expect([written.length, written.textFrom(0)]).toEqual([16, 'aaaabbbbccccdddd']);
      const cursor = (await log.read(ACME, reply, 0, () => undefined))!;
      expect(cursor.take(10, 5)!.pieces).toEqual(['aaaa', 'bbbb']);
      expect(cursor.take(10, 1)!.pieces).toEqual(['cccc']);
      expect(cursor.take(10, 100)).toMatchObject({ pieces: ['dddd'], end: END });
      const thoughts = (what: string, count: number) =>
        Array.from({ length: count }, (_, n) => `${what} ${n}`);
      expect(await told(log, reply, 0)).toEqual([
        ...thoughts('before', 200),
        'aaaa',
        'bbbb',
        'cccc',
        ...thoughts('after', 100),
        'dddd',
      ]);
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

    describe('what happens beside the text', () => {
      const think = (content: string): Aside => ({ type: 'think', content });
      const tool: Aside = { type: 'tool', id: 'c1', tool: 'weather', args: { city: '巴黎' } };
      const result: Aside = {
        type: 'tool_result',
        id: 'c1',
        tool: 'weather',
        content: 'sun',
        isError: false,
      };
      const write = (reply: MessageId): void => {
        log.aside(reply, think('first'));
        log.append(reply, ['a', 'b']);
        log.aside(reply, tool);
        log.aside(reply, result);
        log.append(reply, ['c']);
        log.aside(reply, think('last'));
      };
      const all = ['first', 'a', 'b', tool, result, 'c', 'last'];

      it('stands where it was between the pieces, however they are taken, before and after the end', async () => {
        const reply = newReply();
        log.open(ACME, reply);
        const before = [1, 2, Infinity].map((most) => told(log, reply, 0, most));
        write(reply);
        const during = [1, 2, Infinity].map((most) => told(log, reply, 0, most));
        log.end(reply, END);
        for (const told of await Promise.all([...before, ...during])) expect(told).toEqual(all);
        for (const most of [1, 2, Infinity]) expect(await told(log, reply, 0, most)).toEqual(all);
      });

      it('wakes a reader that waits, also when no text comes', async () => {
        const reply = newReply();
        log.open(ACME, reply);
        const woken = Promise.withResolvers<void>();
        const cursor = (await log.read(ACME, reply, 0, () => woken.resolve(), true))!;
        expect(cursor.take(10)).toBeNull();
        log.aside(reply, tool);
        await woken.promise;
        expect(cursor.take(10)).toEqual({
          first: 1,
          offset: 0,
          pieces: [],
          asides: [{ after: 0, aside: tool }],
        });
        expect(cursor.take(10)).toBeNull();
        cursor.close();
      });

      it('is told from its place on to who resumes', async () => {
        const reply = newReply();
        log.open(ACME, reply);
        write(reply);
        const rest = [all, all.slice(2), all.slice(3), all.slice(6)];
        const during = [0, 1, 2, 3].map((after) => told(log, reply, after));
        log.end(reply, END);
        expect(await Promise.all(during)).toEqual(rest);
        for (const [after, expected] of rest.entries())
          expect(await told(log, reply, after)).toEqual(expected);
        expect(await told(log, reply, 4)).toEqual([]);
      });

      it('is told to nobody who did not ask, nor to another tenant', async () => {
        const reply = newReply();
        log.open(ACME, reply);
        const reading = drain(log, reply, 0);
        write(reply);
        log.end(reply, END);
        const expected = { pieces: ['a', 'b', 'c'], numbers: [1, 2, 3], end: END };
        expect(await reading).toEqual(expected);
        const batch = (await log.read(ACME, reply, 0, () => undefined))!.take(10)!;
        expect(batch).not.toHaveProperty('asides');
        expect(await log.read(RIVAL, reply, 0, () => undefined, true)).toBeNull();
      });

      it('is not taken after the end, nor for a reply that is not there', async () => {
        const reply = newReply();
        log.open(ACME, reply);
        write(reply);
        log.end(reply, END);
        log.aside(reply, think('late'));
        log.aside(newReply(), think('nowhere'));
        expect(await told(log, reply, 0)).toEqual(all);
      });
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
