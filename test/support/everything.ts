import { spawn } from 'node:child_process';
import { connect, createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { eventually } from './app';
import { ended } from './server';

export interface Everything {
  readonly url: string;
  stop(): Promise<void>;
}

/** The MCP project's own test server as a process, over streamable HTTP. */
export async function startEverything(): Promise<Everything> {
  const port = await freePort();
  const manifest = require.resolve('@modelcontextprotocol/server-everything/package.json');
  const child = spawn(process.execPath, [join(dirname(manifest), 'dist/index.js'), 'streamableHttp'], {
    env: { PATH: process.env.PATH, PORT: String(port) },
    stdio: 'ignore',
  });
  await eventually(() => {
    if (child.exitCode !== null) throw new Error(`the MCP server ended with ${child.exitCode}`);
    return answers(port);
  });
  return {
    url: `http://127.0.0.1:${port}/mcp`,
    stop: async () => {
      await ended(child, 'SIGKILL');
    },
  };
}

export const freePort = (): Promise<number> =>
  new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once('error', reject).listen(0, '127.0.0.1', () => {
      const { port } = probe.address() as { port: number };
      probe.close(() => resolve(port));
    });
  });

const answers = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.once('connect', () => resolve(true)).once('error', () => resolve(false));
    socket.once('connect', () => socket.destroy());
  });
