import { GroupCommit } from './group-commit';

describe('GroupCommit', () => {
  it('puts what comes together, and what comes meanwhile, into one batch each', async () => {
    const batches: number[][] = [];
    const gate = Promise.withResolvers<void>();
    const commit = new GroupCommit<number, number>(async (inputs) => {
      batches.push([...inputs]);
      if (batches.length === 1) await gate.promise;
      return inputs.map((input) => input * 10);
    }, 3);
    const first = [1, 2].map((input) => commit.add(input));
    await Promise.resolve();
    await Promise.resolve();
    const second = [3, 4, 5, 6].map((input) => commit.add(input));
    gate.resolve();
    expect(await Promise.all([...first, ...second])).toEqual([10, 20, 30, 40, 50, 60]);
    expect(batches).toEqual([[1, 2], [3, 4, 5], [6]]);
  });

  it('fails a batch for each of its callers, and goes on', async () => {
    const commit = new GroupCommit<string, string>((inputs) => {
      if (inputs.includes('bad')) return Promise.reject(new Error('no'));
      return Promise.resolve(inputs);
    }, 10);
    const results = await Promise.allSettled([commit.add('bad'), commit.add('neighbour')]);
    expect(results.map(({ status }) => status)).toEqual(['rejected', 'rejected']);
    expect(await commit.add('next')).toBe('next');
  });
});
