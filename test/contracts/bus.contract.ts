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
  });
}
