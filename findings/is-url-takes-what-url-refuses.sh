#!/bin/sh
# Whether what passes a check for a URL can be asked. Shows that class-validator 0.15.1's `isURL`, also with protocols
# named and required, takes an IPv6 address with a zone id (http://[fe80::1%eth0]/), which the WHATWG URL of Node does
# not: `new URL`, and so `fetch`, throw a TypeError. And the other way round: a host with an underscore is refused and
# is a URL. Who goes on with the text of a checked field has to check with `URL.canParse`.
# Exits 0 if that is still so, 1 if it has changed.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund class-validator@0.15.1
cat > look.cjs <<'JS'
const { isURL } = require('class-validator');
const options = { protocols: ['http', 'https'], require_protocol: true, require_tld: false };
const EXPECTED = [
  ['http://example.com/', true, true],
  ['http://[fe80::1]/', true, true],
  ['http://[fe80::1%eth0]/', true, false],
  ['http://my_service/', false, true],
];
let same = true;
console.log(`class-validator ${require('class-validator/package.json').version}, Node ${process.version}`);
for (const [url, checked, parsed] of EXPECTED) {
  const seen = [isURL(url, options), URL.canParse(url)];
  console.log(`${url.padEnd(24)} isURL: ${String(seen[0]).padEnd(5)} URL.canParse: ${seen[1]}`);
  same &&= seen[0] === checked && seen[1] === parsed;
}
console.log(same ? 'as described' : 'CHANGED');
process.exit(same ? 0 : 1);
JS
node look.cjs
