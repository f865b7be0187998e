#!/usr/bin/env bash
# Debian's Caddy 2.6 with `encode gzip`: an event stream whose first event has 512 bytes or more is compressed for a client
# that takes gzip, and of its events nothing is passed on while the server waits, although `flush_interval -1` is set;
# without `encode` each comes at once. Seen: with encode "held after 0 events", without "passed on". Exits non-zero if that changes. Needs caddy and node.
set -euo pipefail
dir=$(mktemp -d)
children=()
trap 'kill "${children[@]}" 2>/dev/null || true; rm -rf "$dir"' EXIT
cat >"$dir/try.mjs" <<'JS'
// A server that sends an event only once the client has the one before: what is held back is never followed.
import { createServer, request } from 'node:http';
import { createGunzip } from 'node:zlib';
const [port, up] = process.argv.slice(2).map(Number);
const EVENTS = 20;
let next;
const server = createServer((_, response) => {
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' });
  let sent = 0;
  next = () => (sent < EVENTS ? response.write(`data: ${++sent} ${'x'.repeat(600)}\n\n`) : response.end());
  next();
});
server.listen(up, '127.0.0.1', () => {
  const asked = request({ port, host: '127.0.0.1', headers: { 'accept-encoding': 'gzip' } }, (response) => {
    const body = response.headers['content-encoding'] === 'gzip' ? response.pipe(createGunzip()) : response;
    let text = '';
    let seen = 0;
    const end = (what) => { console.log(what); process.exit(0); };
    let timer;
    const wait = () => { clearTimeout(timer); timer = setTimeout(() => end(`held after ${seen} events`), 3000); };
    wait();
    body.on('data', (part) => {
      text += part;
      const count = text.split('\n\n').length - 1;
      while (seen < count) { seen += 1; next(); wait(); }
    });
    body.on('end', () => end('passed on'));
  });
  asked.end();
});
JS
free() { node -e 'const s=require("net").createServer().listen(0,"127.0.0.1",()=>{console.log(s.address().port);s.close()})'; }
caddy version
result=0
for encode in 'encode gzip' ''; do
  port=$(free) up=$(free)
  printf '{\n\tadmin off\n\tauto_https off\n}\nhttp://127.0.0.1:%s {\n\t%s\n\treverse_proxy 127.0.0.1:%s {\n\t\tflush_interval -1\n\t}\n}\n' "$port" "$encode" "$up" >"$dir/Caddyfile"
  XDG_DATA_HOME=$dir XDG_CONFIG_HOME=$dir caddy run --adapter caddyfile --config "$dir/Caddyfile" >/dev/null 2>&1 & children+=($!)
  until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do sleep 0.1; done
  found=$(node "$dir/try.mjs" "$port" "$up")
  echo "${encode:-without encode}: $found"
  if [ -n "$encode" ]; then [[ $found == held* ]] || result=1; else [ "$found" = 'passed on' ] || result=1; fi
done
exit $result
