import { Turn } from './turn';

const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

it('hands on what came in one turn at its end, in its order', async () => {
  const seen: number[] = [];
  const turn = new Turn<number>((item) => seen.push(item));
  turn.add(1);
  await Promise.resolve();
  turn.add(2);
  expect(seen).toEqual([]);
  await nextTurn();
  expect(seen).toEqual([1, 2]);
});

it('hands on in the next turn what came while it handed on', async () => {
  const seen: number[] = [];
  const turn: Turn<number> = new Turn((item) => {
    seen.push(item);
    if (item === 1) turn.add(3);
  });
  turn.add(1);
  turn.add(2);
  await nextTurn();
  expect(seen).toEqual([1, 2]);
  await nextTurn();
  expect(seen).toEqual([1, 2, 3]);
});
