import { integerDigits, isInDoublesRange, parseExact, rawNumber } from './exact-json';

it.each([
  ['5', '5'],
  ['5.0', '5'],
  ['5.000', '5'],
  ['50e-1', '5'],
  ['0.5e1', '5'],
  ['5e2', '500'],
  ['1.25E+2', '125'],
  ['-5.0', '-5'],
  ['0', '0'],
  ['-0', '0'],
  ['0.0', '0'],
  ['0e999', '0'],
  ['9007199254740993', '9007199254740993'],
  ['9007199254740993.0', '9007199254740993'],
  ['9'.repeat(20), '9'.repeat(20)],
  ['1e19', `1${'0'.repeat(19)}`],
  ['5.5', null],
  ['0.05', null],
  ['9007199254740993.5', null],
  ['1e-400', null],
  ['9'.repeat(21), null],
  [`-${'9'.repeat(20)}`, null],
  ['1e20', null],
  ['1e999999999999', null],
  ['1e-999999999999', null],
  ['text', null],
])('the digits of %s as an integer of at most 20 characters are %s', (number, digits) => {
  expect(integerDigits(number, 20)).toBe(digits);
});

it.each([
  ['1e308', true],
  ['1e309', false],
  ['-1e309', false],
  ['1e-308', true],
  ['1e-400', false],
  ['0e-400', true],
  ['0.0', true],
])('%s in the range of a double: %s', (number, inside) => {
  expect(isInDoublesRange(number)).toBe(inside);
});

it('knows a number that a double did not hold', () => {
  const { a, b, c } = parseExact('{"a":9007199254740993,"b":7,"c":"9007199254740993"}');
  expect([a, b, c].map(rawNumber)).toEqual(['9007199254740993', null, null]);
});
