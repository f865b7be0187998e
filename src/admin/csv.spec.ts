import { csv } from './csv';

describe('csv', () => {
  it('quotes what RFC 4180 wants quoted, and ends every line', () => {
    expect(
      csv(
        ['a', 'b'],
        [
          { a: 'x,"y"\n', b: 1.5 },
          { a: null, b: 0 },
        ],
      ),
    ).toBe('a,b\r\n"x,""y""\n",1.5\r\n,0\r\n');
  });

  it.each(['=1+1', '+1', '-1', '@x', '\tx', '\rx'])('lets no spreadsheet compute %j', (text) => {
    expect(csv(['a'], [{ a: text }])).toMatch(/^a\r\n"?'/);
  });

  it('leaves numbers alone', () => {
    expect(csv(['a'], [{ a: -3 }])).toBe('a\r\n-3\r\n');
  });
});
