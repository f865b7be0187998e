import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Config } from '../../src/config';
import { Outbound } from '../../src/outbound';
import { ToolNetwork } from '../../src/tools/tool-network';
import { McpSessions } from '../../src/tools/mcp-sessions';
import { eventually } from '../support/app';

/** Sessions with an MCP server that counts them, and forgets them when a test says so. */
const sessions = new Set<string>();
let opened = 0;
let ended = 0;
let called = 0;
let server: Server;
let url: string;
let network: ToolNetwork;
let outbound: Outbound;

interface Asked {
  readonly id?: number;
  readonly method: string;
  readonly params?: { readonly name?: string };
}

function answerOf({ method, params }: Asked): object | null {
  if (method === 'initialize') {
    const serverInfo = { name: 'counting', version: '1' };
    return { protocolVersion: '2025-06-18', capabilities: { tools: {} }, serverInfo };
  }
  if (method === 'tools/list') return { tools: [{ name: 'say', inputSchema: { type: 'object' } }] };
  if (method !== 'tools/call') return null;
  called += 1;
  return { content: [{ type: 'text', text: `said by ${params?.name}` }] };
}

beforeAll(async () => {
  server = createServer((request, response) => {
    void (async () => {
      const session = request.headers['mcp-session-id'] as string | undefined;
      if (request.method === 'DELETE') {
        ended += 1;
        sessions.delete(session!);
        return response.writeHead(200).end();
      }
      let text = '';
      for await (const part of request.setEncoding('utf8')) text += part as string;
      const asked = JSON.parse(text) as Asked;
      if (session !== undefined && !sessions.has(session)) return response.writeHead(404).end();
      if (asked.id === undefined) return response.writeHead(202).end();
      const headers: Record<string, string> = { 'content-type': 'application/json' };
      if (asked.method === 'initialize') {
        opened += 1;
        headers['mcp-session-id'] = `s${opened}`;
        sessions.add(`s${opened}`);
      }
      const result = answerOf(asked);
      const error = { code: -32_601, message: 'Method not found' };
      const answer = { jsonrpc: '2.0', id: asked.id, ...(result ? { result } : { error }) };
      return response.writeHead(200, headers).end(JSON.stringify(answer));
    })();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/mcp`;
  outbound = new Outbound(Config.load({ NODE_ENV: 'test' }));
  network = new ToolNetwork(outbound);
});
afterAll(async () => {
  await outbound.onApplicationShutdown();
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});
beforeEach(() => void (opened = ended = called = 0));

const target = () => ({ url, headers: undefined, allow: undefined });
const never = (): AbortSignal => new AbortController().signal;

it('are opened once for all that use them, also at the same time', async () => {
  const kept = new McpSessions(network);
  const leases = [1, 2, 3].map(() => kept.lease('docs', target()));
  await Promise.all(leases.map(({ source }) => source.call('say', {}, never())));
  for (const { release } of leases) release();
  const later = kept.lease('docs', target());
  expect(await later.source.call('say', {}, never())).toEqual({ content: 'said by say', isError: false });
  later.release();
  expect([opened, called, ended]).toEqual([1, 4, 0]);
  const other = kept.lease('other headers', target());
  await other.source.call('say', {}, never());
  other.release();
  expect(opened).toBe(2);
  await kept.close();
  expect(ended).toBe(2);
});

it('are opened again when the server has forgotten them, and the call is made once', async () => {
  const kept = new McpSessions(network);
  const { source, release } = kept.lease('docs', target());
  await source.call('say', {}, never());
  sessions.clear();
  expect(await source.call('say', {}, never())).toEqual({ content: 'said by say', isError: false });
  expect([opened, called]).toEqual([2, 2]);
  release();
  await kept.close();
});

it('end when nobody has used them for a while, not while they are used', async () => {
  const kept = new McpSessions(network, 1);
  const [one, two] = [kept.lease('docs', target()), kept.lease('docs', target())];
  await one.source.call('say', {}, never());
  one.release();
  one.release();
  expect(kept.size).toBe(1);
  await two.source.call('say', {}, never());
  expect([opened, ended]).toEqual([1, 0]);
  two.release();
  await eventually(async () => ended === 1 && kept.size === 0);
});

it('are not the caller’s: one that gives up takes the session from nobody', async () => {
  const kept = new McpSessions(network);
  const { source, release } = kept.lease('docs', target());
  const gone = new AbortController();
  const given = source.call('say', {}, gone.signal);
  const reason = new Error('gone');
  gone.abort(reason);
  await expect(given).rejects.toBe(reason);
  expect(await source.call('say', {}, never())).toMatchObject({ isError: false });
  expect(opened).toBe(1);
  release();
  await kept.close();
});
