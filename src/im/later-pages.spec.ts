import type { TenantId } from '../common';
import { LaterPages } from './later-pages';

interface Query {
  readonly tenantId: TenantId;
  readonly n: number;
}

const [acme, rival] = ['1', '2'] as TenantId[];
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Batches as they are asked for; each is answered when the test says so. */
function reader() {
  const batches: { readonly queries: readonly Query[]; readonly end: (error?: Error) => void }[] = [];
  const pages = new LaterPages<Query, number>(
    (queries) =>
      new Promise((resolve, reject) => {
        const end = (error?: Error): void => (error ? reject(error) : resolve(queries.map(({ n }) => n)));
        batches.push({ queries, end });
      }),
  );
  return { batches, pages };
}

it('lets another tenant in after two pages of the one that has a hundred waiting', async () => {
  const { batches, pages } = reader();
  const ours = Array.from({ length: 100 }, (_, n) => pages.read({ tenantId: acme!, n }));
  await turn();
  expect(batches.map(({ queries }) => queries.map(({ n }) => n))).toEqual([[0, 1]]);
  const theirs = pages.read({ tenantId: rival!, n: 1_000 });
  batches[0]!.end();
  await turn();
  expect(batches[1]!.queries.map(({ n }) => n)).toEqual([1_000]);
  batches[1]!.end();
  expect(await theirs).toBe(1_000);
  for (let done = 2; done < 100; done += batches.at(-1)!.queries.length) {
    await turn();
    expect(batches.at(-1)!.queries.length).toBeLessThanOrEqual(2);
    batches.at(-1)!.end();
  }
  expect(await Promise.all(ours)).toEqual(Array.from({ length: 100 }, (_, n) => n));
});

it('goes on after a page that failed', async () => {
  const { batches, pages } = reader();
  const three = [0, 1, 2].map((n) => pages.read({ tenantId: acme!, n }));
  const settled = Promise.allSettled(three);
  await turn();
  batches[0]!.end(new Error('away'));
  await turn();
  batches[1]!.end();
  expect((await settled).map(({ status }) => status)).toEqual(['rejected', 'rejected', 'fulfilled']);
});
