#!/bin/sh
# Which close codes of a server make reconnecting WebSocket clients come back. Shows that sockette 2.0.6 stays away
# after 1001 ("going away", which many servers send when they restart) and comes back after 1012 ("service restart"),
# and that graphql-ws gives up for good after 1011 and comes back after 1012 and 1013.
# Exits 0 if that is still so, 1 if it has changed.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund sockette@2.0.6 reconnecting-websocket@4.4.0 graphql-ws@6.0.6 graphql@16.11.0 ws@8.18.3
cat > look.cjs <<'JS'
const { WebSocket, WebSocketServer } = require('ws');
const Sockette = require('sockette');
const Reconnecting = require('reconnecting-websocket');
const { createClient } = require('graphql-ws');
globalThis.WebSocket = WebSocket;
const WAIT_MS = 2_000;
// graphql-ws rejects with the close event when it gives up; that is what is looked at here.
process.on('unhandledRejection', () => undefined);
const clients = {
  sockette: (url) => {
    const socket = new Sockette(url, { timeout: 50 });
    return () => socket.close();
  },
  'reconnecting-websocket': (url) => {
    const socket = new Reconnecting(url, [], { WebSocket, minReconnectionDelay: 50, maxReconnectionDelay: 50 });
    return () => socket.close();
  },
  'graphql-ws': (url) => {
    const client = createClient({ url, webSocketImpl: WebSocket, lazy: false, retryAttempts: 3, retryWait: async () => undefined, onNonLazyError: () => undefined });
    return () => client.dispose();
  },
};
async function comesBack(make, code) {
  const server = new WebSocketServer({ port: 0 });
  let connections = 0;
  server.on('connection', (ws) => {
    connections += 1;
    ws.on('error', () => undefined);
    if (connections === 1) ws.on('message', () => ws.close(code)), setTimeout(() => ws.close(code), 100);
  });
  await new Promise((resolve) => server.once('listening', resolve));
  const stop = make(`ws://127.0.0.1:${server.address().port}`);
  await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
  try { stop(); } catch {}
  for (const ws of server.clients) ws.terminate();
  server.close();
  return connections > 1;
}
(async () => {
  const seen = {};
  for (const [name, make] of Object.entries(clients)) {
    seen[name] = {};
    for (const code of [1001, 1011, 1012, 1013, 4008]) seen[name][code] = (await comesBack(make, code)) ? 'back' : 'away';
  }
  console.table(seen);
  const { sockette, 'graphql-ws': graphql } = seen;
  const same = sockette[1001] === 'away' && sockette[1012] === 'back' && graphql[1011] === 'away' && graphql[1012] === 'back' && graphql[1013] === 'back';
  console.log(same ? 'as described' : 'CHANGED');
  process.exit(same ? 0 : 1);
})();
JS
node look.cjs
