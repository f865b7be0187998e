import { validateSync } from 'class-validator';
import { IsHttpUrl, IsOrigin } from './constraints';

class Addressed {
  @IsHttpUrl()
  url: unknown;

  @IsHttpUrl({ credentials: false })
  open: unknown = 'http://a/';

  @IsOrigin({ each: true })
  origins: unknown = [];
}

const refused = (given: Partial<Addressed>): string[] =>
  validateSync(Object.assign(new Addressed(), { url: 'http://a/' }, given)).map(({ property }) => property);

const URLS = [
  'http://a',
  'https://a.example:8443/x?y=z',
  'http://[::1]:80/',
  'http://10.0.0.1/',
  'http://x_y/',
  'HTTP://A/',
  `http://a/${'x'.repeat(1_991)}`,
];
const NONE = [
  undefined,
  null,
  7,
  ['http://a'],
  '',
  'http://',
  'http:a',
  'http:\\\\a',
  'ftp://a',
  'javascript:alert(1)',
  'http://[fe80::1%eth0]/',
  'http://a\ud800/',
  'http://a/\udc00',
  'http://a:99999/',
  'http://[::1',
  'http://a b/',
  ' http://a',
  'http://a/\n',
  'http://a/\0',
  `http://a/${'x'.repeat(1_992)}`,
];

it.each(URLS)('takes the URL %j', (url) => expect(refused({ url, open: url })).toEqual([]));
it.each(NONE)('takes %j for no http(s) URL', (url) =>
  expect(refused({ url, open: url })).toEqual(['url', 'open']),
);

it('takes credentials in a URL only where it may hold them', () => {
  for (const url of ['http://ann:secret@a/', 'http://ann@a/'])
    expect(refused({ url, open: url })).toEqual(['open']);
});

it.each(['https://app.example', 'http://localhost:3000', 'http://[::1]:8080'])('takes the origin %j', (one) =>
  expect(refused({ origins: [one] })).toEqual([]),
);
it.each([
  ...[
    'http://a:99999/',
    'https://[::1',
    'https://app.example/',
    'https://app.example/x',
    'https://App.example',
  ],
  ...['https://app.example:443', 'https://ann@app.example', 'null', '', 'ftp://a', 'ws://a', 7, null],
  ...[['https://app.example'], []],
  `https://${'x'.repeat(301)}`,
])('takes %j for no origin', (one) => expect(refused({ origins: [one] })).toEqual(['origins']));
