import { idArray, textArray } from './array-parameter';

it('writes ids without quotes, and nulls', () => {
  expect(idArray(['1', '22'])).toBe('{1,22}');
  expect(idArray([])).toBe('{}');
  expect(idArray([1, null, 3])).toBe('{1,NULL,3}');
});

it('writes texts as array_recv reads them', () => {
  const buffer = textArray(['a', null, '中"\\']);
  expect(buffer.readInt32BE(0)).toBe(1);
  expect(buffer.readInt32BE(4)).toBe(1);
  expect(buffer.readInt32BE(12)).toBe(3);
  expect(buffer.readInt32BE(20)).toBe(1);
  expect(buffer.toString('utf8', 24, 25)).toBe('a');
  expect(buffer.readInt32BE(25)).toBe(-1);
  expect(buffer.readInt32BE(29)).toBe(5);
  expect(buffer.toString('utf8', 33)).toBe('中"\\');
  expect(textArray([])).toHaveLength(12);
  // Not of the same bytes as the one before.
  const long = textArray(['x'.repeat(2_000_000), '中'.repeat(10)]);
  expect(buffer.toString('utf8', 33)).toBe('中"\\');
  expect(long).toHaveLength(20 + 4 + 2_000_000 + 4 + 30);
  expect(long.toString('utf8', long.length - 30)).toBe('中'.repeat(10));
});
