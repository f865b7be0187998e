import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { eventually } from './app';

export interface Quickstart {
  readonly url: string;
  readonly tenantId: string;
  readonly apiKey: string;
  readonly rootKey: string;
  readonly assistantVersionId: string;
  readonly modelServiceId: string;
}

const ROOT = resolve(__dirname, '../..');

/** The built server as a process of its own, with a data directory of its own. */
export class Server {
  private constructor(
    readonly child: ChildProcess,
    readonly dataDir: string,
    readonly quickstart: Quickstart,
    private readonly chunks: string[],
  ) {}

  static async start(env: Record<string, string> = {}, dataDir?: string): Promise<Server> {
    const directory = dataDir ?? (await mkdtemp(join(tmpdir(), 'parley-server-')));
    const { child, output } = Server.launch({ PARLEY_DATA_DIR: directory, ...env });
    await eventually(async () => {
      if (child.exitCode !== null) throw new Error(`the server ended: ${output.join('')}`);
      return output.join('').includes('Parley is ready');
    }, 60_000);
    const quickstart = JSON.parse(await readFile(join(directory, 'quickstart.json'), 'utf8')) as Quickstart;
    return new Server(child, directory, quickstart, output);
  }

  /** Starts the process and waits for nothing. */
  static launch(env: Record<string, string>): { child: ChildProcess; output: string[] } {
    const output: string[] = [];
    const child = spawn(process.execPath, [join(ROOT, 'dist/src/main.js')], {
      env: { PATH: process.env.PATH, PORT: '0', LOG_LEVEL: 'warn', ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => output.push(text));
    return { child, output };
  }

  get output(): string {
    return this.chunks.join('');
  }

  /** Ends it with a signal and waits until it is gone; the exit code. */
  async end(signal: NodeJS.Signals): Promise<number | null> {
    return ended(this.child, signal);
  }

  /** Stops it and removes its data. */
  async remove(): Promise<void> {
    await this.end('SIGTERM');
    await rm(this.dataDir, { recursive: true, force: true });
  }
}

export async function ended(child: ChildProcess, signal?: NodeJS.Signals): Promise<number | null> {
  if (child.exitCode !== null || child.signalCode !== null) return child.exitCode;
  const gone = new Promise<number | null>((done) => child.once('exit', (code) => done(code)));
  if (signal) child.kill(signal);
  return gone;
}
