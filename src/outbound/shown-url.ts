/** Stands where something is that is not shown. */
export const HIDDEN = '••••';

/** An address as it may be shown: without who asks (`user:password@`), and without the values of its query. */
export function shownUrl(url: string): string {
  const [address = '', ...fragment] = url.split('#');
  const [place = '', ...query] = address.split('?');
  const shownPlace = place.replace(/^([a-z][a-z0-9+.-]*:\/\/)[^/]*@/i, `$1${HIDDEN}@`);
  const shownQuery = query
    .join('?')
    .split('&')
    .map((pair) => (pair.includes('=') ? pair.slice(0, pair.indexOf('=') + 1) + HIDDEN : pair && HIDDEN));
  return (
    shownPlace +
    (query.length > 0 ? `?${shownQuery.join('&')}` : '') +
    (fragment.length > 0 ? `#${HIDDEN}` : '')
  );
}
