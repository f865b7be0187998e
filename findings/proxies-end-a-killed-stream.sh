#!/usr/bin/env bash
# In front of an HTTP server that is killed in the middle of a chunked answer, Debian's Caddy 2.6 ends the answer for the
# client as if it were whole (the last chunk is sent); so does nginx 1.22 as it asks servers by default, in HTTP/1.0,
# whose answers end with the connection. With `proxy_http_version 1.1` nginx cuts it off, as HAProxy 2.6 does.
# Seen: nginx clean, nginx11 cut, caddy clean, haproxy cut. Exits non-zero if that changes. Needs nginx, caddy, haproxy,
# node, curl.
set -euo pipefail
dir=$(mktemp -d)
children=()
trap 'kill "${children[@]}" 2>/dev/null || true; rm -rf "$dir"' EXIT
cat >"$dir/upstream.mjs" <<'JS'
import { createServer } from 'node:http';
const server = createServer((request, response) => {
  response.writeHead(200, { 'content-type': 'text/event-stream', 'x-accel-buffering': 'no' });
  response.write('data: half\n\n');
  setTimeout(() => process.kill(process.pid, 'SIGKILL'), 500);
});
server.listen(Number(process.argv[2] ?? 0), '127.0.0.1', () => console.log(server.address().port));
JS
free() { node -e 'const s=require("net").createServer().listen(0,"127.0.0.1",()=>{console.log(s.address().port);s.close()})'; }
up=$(free)
declare -A port=([nginx]=$(free) [nginx11]=$(free) [caddy]=$(free) [haproxy]=$(free))

cat >"$dir/nginx.conf" <<CONF
daemon off; pid $dir/pid; error_log /dev/null; events {}
http { access_log off;
  client_body_temp_path $dir/a; proxy_temp_path $dir/b; fastcgi_temp_path $dir/c; uwsgi_temp_path $dir/d; scgi_temp_path $dir/e;
  server { listen 127.0.0.1:${port[nginx]}; location / { proxy_pass http://127.0.0.1:$up; } }
  server { listen 127.0.0.1:${port[nginx11]}; location / { proxy_http_version 1.1; proxy_pass http://127.0.0.1:$up; } } }
CONF
printf '{\n\tadmin off\n\tauto_https off\n}\nhttp://127.0.0.1:%s {\n\treverse_proxy 127.0.0.1:%s\n}\n' "${port[caddy]}" "$up" >"$dir/Caddyfile"
cat >"$dir/haproxy.cfg" <<CONF
defaults
  mode http
  timeout connect 2s
  timeout client 30s
  timeout server 30s
listen x
  bind 127.0.0.1:${port[haproxy]}
  server one 127.0.0.1:$up
CONF
/usr/sbin/nginx -c "$dir/nginx.conf" -e /dev/null & children+=($!)
XDG_DATA_HOME=$dir XDG_CONFIG_HOME=$dir caddy run --adapter caddyfile --config "$dir/Caddyfile" >/dev/null 2>&1 & children+=($!)
/usr/sbin/haproxy -db -f "$dir/haproxy.cfg" >/dev/null 2>&1 & children+=($!)

nginx -v; caddy version; haproxy -v | sed -n 1p
result=0
for proxy in nginx nginx11 caddy haproxy; do
  until (exec 3<>"/dev/tcp/127.0.0.1/${port[$proxy]}") 2>/dev/null; do sleep 0.1; done
  # A connection without a request does not end the upstream; it is killed by its first request.
  node "$dir/upstream.mjs" "$up" >"$dir/up" 2>/dev/null & server=$!
  until [ -s "$dir/up" ]; do sleep 0.1; done
  if curl --silent --max-time 20 --output /dev/null "http://127.0.0.1:${port[$proxy]}/"; then end=clean; else end=cut; fi
  wait "$server" 2>/dev/null || true
  : >"$dir/up"
  echo "$proxy: the client's end of the stream is $end"
  case $proxy in nginx | caddy) want=clean ;; *) want=cut ;; esac
  [ "$end" = "$want" ] || result=1
done
exit $result
