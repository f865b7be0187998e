import type { Bus } from '../../src/realtime';

/** What every Bus does, whatever it is made of. */
export function busContract(name: string, make: () => Bus): void {
  describe(`Bus, ${name}`, () => {
    it('brings a message to every subscriber of its topic and to no other, in order, until they leave', async () => {
      const bus = make();
      const heard: string[] = [];
      const { promise, resolve } = Promise.withResolvers<void>();
      const leave = bus.subscribe('a', (message) => heard.push(`1${message}`));
      bus.subscribe('a', (message) => {
        heard.push(`2${message}`);
        if (message === 'z') resolve();
      });
      bus.subscribe('b', (message) => heard.push(`b${message}`));
      bus.publish('a', 'x');
      bus.publish('a', 'y');
      leave();
      leave();
      bus.publish('a', 'z');
      bus.publish('nobody', 'n');
      await promise;
      expect(heard).toEqual(['1x', '2x', '1y', '2y', '2z']);
    });

    it('brings what is published live as it is or as its text, in order with the texts, until they leave', async () => {
      const bus = make();
      const live = { encode: () => 'text' };
      const heard: string[] = [];
      const { promise, resolve } = Promise.withResolvers<void>();
      const leave = bus.subscribe(
        'a',
        (text) => heard.push(`1${text}`),
        (one: typeof live) => {
          expect(one).toBe(live);
          heard.push(`1${one.encode()}`);
        },
      );
      bus.subscribe('a', (text) => {
        heard.push(`2${text}`);
        if (text === 'z') resolve();
      });
      bus.publish('a', 'x');
      bus.publishLive('a', live);
      leave();
      bus.publishLive('a', live);
      bus.publishLive('nobody', live);
      bus.publish('a', 'z');
      await promise;
      expect(heard).toEqual(['1x', '2x', '1text', '2text', '2text', '2z']);
    });
  });
}
