import { isDeepStrictEqual } from 'node:util';
import { parseExact } from './exact-json';
import { Periodic } from './periodic';
import { TokenBucket } from './token-bucket';
import { within } from './within';

describe('TokenBucket', () => {
  it('gives the burst, then what is refilled', () => {
    const bucket = new TokenBucket(2, 0);
    expect([1, 2, 3].map(() => bucket.take(0, 2, 10))).toEqual([true, true, false]);
    expect(bucket.waitMs(10)).toBe(100);
    expect(bucket.take(99, 2, 10)).toBe(false);
    expect(bucket.take(100, 2, 10)).toBe(true);
    expect(bucket.take(60_000, 2, 10)).toBe(true);
    expect(bucket.left).toBe(1);
    expect(new TokenBucket(0, 0).waitMs(0)).toBe(Infinity);
  });

  it('gives more than it has, and lets the next one wait for it', () => {
    const bucket = new TokenBucket(2, 0);
    expect(bucket.takeOnCredit(0, 2, 10, 5)).toBe(true);
    expect(bucket.left).toBe(-3);
    expect(bucket.waitMs(10)).toBe(400);
    expect(bucket.take(399, 2, 10)).toBe(false);
    expect(bucket.take(400, 2, 10)).toBe(true);
  });
});

describe('Periodic', () => {
  it('does its work once at a time, tells what failed, and ends with what is under way', async () => {
    const gates = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const failures: string[] = [];
    let begun = 0;
    const periodic = new Periodic(
      3_600_000,
      async () => {
        begun += 1;
        await gates[begun - 1]!.promise;
      },
      ({ message }) => failures.push(message),
    );
    const both = [periodic.run(), periodic.run()];
    expect(begun).toBe(1);
    gates[0]!.reject(new Error('no'));
    await Promise.all(both);
    expect(failures).toEqual(['no']);
    void periodic.run();
    let stopped = false;
    const end = periodic.stop().then(() => (stopped = true));
    await Promise.resolve();
    expect([begun, stopped]).toEqual([2, false]);
    gates[1]!.resolve();
    await end;
  });
});

it('within: the work or the time, whichever is first', async () => {
  await within(60_000, Promise.resolve());
  await within(1, new Promise(() => undefined));
});

it('parseExact tells numbers apart that doubles do not', () => {
  const [a, b, c] = ['9007199254740993', '9007199254740992', '9007199254740993'].map((n) =>
    parseExact(`{"n":${n}}`),
  );
  expect([isDeepStrictEqual(a, b), isDeepStrictEqual(a, c)]).toEqual([false, true]);
  expect(JSON.stringify(parseExact('{"n":[1.0,1e3,7]}'))).toBe('{"n":[1.0,1e3,7]}');
});
