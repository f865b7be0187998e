import { EventQueue } from './event-queue';

const settled = async (room: Promise<void> | undefined): Promise<boolean> => {
  const open = Symbol();
  return (await Promise.race([room, Promise.resolve(open)])) !== open;
};

describe('the queue of a stream', () => {
  it('has no room once more than half of its bound waits, and has again when the reader has caught up', async () => {
    const queue = new EventQueue(200);
    queue.push('x'.repeat(100));
    expect(queue.room()).toBeUndefined();
    queue.push('y');
    const room = queue.room();
    expect(await settled(room)).toBe(false);
    expect(queue.take(1)).toMatchObject({ pieces: ['x'.repeat(100)] });
    expect(await settled(room)).toBe(true);
    expect(queue.room()).toBeUndefined();
    expect(queue.take(10)).toMatchObject({ pieces: ['y'] });
  });

  it('lets nobody wait whose reader has gone, and keeps nothing for it', async () => {
    const queue = new EventQueue(400);
    queue.push('x'.repeat(200));
    const room = queue.room();
    queue.close();
    expect(await settled(room)).toBe(true);
    queue.push('z'.repeat(1_000));
    expect([queue.room(), queue.take(10)]).toEqual([undefined, null]);
  });

  it('gives no more than a write is to hold, whole events, in order', () => {
    const queue = new EventQueue(1_000_000);
    const events = ['a', 'b', 'c'].map((letter) => letter.repeat(40_000));
    for (const event of events) queue.push(event);
    queue.end('end');
    expect(queue.take(256)!.pieces).toEqual(events.slice(0, 2));
    expect(queue.exhausted).toBe(false);
    expect(queue.take(256)!.pieces).toEqual([events[2], 'end']);
    expect(queue.exhausted).toBe(true);
  });
});
