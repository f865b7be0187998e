import { createHmac } from 'node:crypto';
import { nextAttemptIn } from './back-off';
import { signature } from './webhook-sender';

it('signs the time and the body', () => {
  const expected = createHmac('sha256', 'whsec_x').update('1700000000.{"a":1}').digest('hex');
  expect(signature('whsec_x', '1700000000', '{"a":1}')).toBe(`v1=${expected}`);
  expect(signature('whsec_x', '1700000001', '{"a":1}')).not.toBe(`v1=${expected}`);
});

it('backs off from five seconds to an hour, jittered, and gives up after twelve attempts', () => {
  const most = (attempt: number) => nextAttemptIn(attempt, () => 1);
  expect([1, 2, 3, 11].map(most)).toEqual([5_000, 10_000, 20_000, 3_600_000]);
  expect(nextAttemptIn(1, () => 0)).toBe(3_750);
  expect(most(12)).toBeNull();
});
