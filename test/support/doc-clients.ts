import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { Channel } from './channel';
import { shape } from './doc-examples';
import { Device, Im, type Frame } from './im-rest';

const PATIENCE_MS = 5_000;
const SCRIPT_PATIENCE_MS = 30_000;
const ROOT = join(__dirname, '../..');

export async function within<T>(promise: Promise<T>, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`did not happen: ${what}`)), PATIENCE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** An open socket of either wire, as the pages' lines need it. */
interface Socket {
  readonly frames: readonly Frame[];
  next(): Promise<Frame>;
  send(frame: Frame): void;
  close(): Promise<void>;
  closed(): Promise<number>;
}

/**
 * Clients and what they say and get, line by line: `a connects …`, `a → {…}`, `b ← {…}`, `b ← …` (any number of
 * frames), `b closes`, `b is closed with 4401`.
 */
abstract class Clients {
  private readonly open = new Map<string, { socket: Socket; taken: number; skipping: boolean }>();

  /** `how` is what stands after `connects`. */
  protected abstract connect(name: string, how: string): Promise<Socket>;
  /** What of a frame counts, `printed` being the page's. */
  protected abstract counts(frame: Frame, printed: Frame): unknown;

  /** Resolves to the frame that came, where the line is about one. */
  async play(line: string): Promise<Frame | undefined> {
    const [, name = '', what = ''] = /^(\S+) +(.+)$/.exec(line) ?? [];
    if (what.startsWith('connects')) {
      const socket = await this.connect(name, what.slice('connects'.length).trim());
      this.open.set(name, { socket, taken: 0, skipping: false });
      return;
    }
    const one = this.open.get(name);
    if (!one) throw new Error(`${line}: is not connected`);
    if (what === 'closes' || what.startsWith('is closed with ')) {
      if (what === 'closes') await one.socket.close();
      else expect(await one.socket.closed()).toBe(Number(what.split(' ').at(-1)));
      this.nothingMore(name);
      this.open.delete(name);
    } else if (what.startsWith('→ ')) one.socket.send(JSON.parse(what.slice(2)) as Frame);
    else if (what === '← …') one.skipping = true;
    else if (what.startsWith('← ')) return this.receive(name, JSON.parse(what.slice(2)) as Frame);
    else throw new Error(`what does this line mean: ${line}`);
  }

  nothingMore(...names: string[]): void {
    for (const name of names.length > 0 ? names : this.open.keys()) {
      const { socket, taken, skipping } = this.open.get(name)!;
      if (!skipping) expect(socket.frames.slice(taken)).toEqual([]);
    }
  }

  async closeAll(): Promise<void> {
    await Promise.all([...this.open.values()].map(({ socket }) => socket.close()));
    this.open.clear();
  }

  private async receive(name: string, printed: Frame): Promise<Frame> {
    const one = this.open.get(name)!;
    for (;;) {
      const frame = await within(one.socket.next(), `${name} gets ${JSON.stringify(printed)}`);
      one.taken += 1;
      const came = this.counts(frame, printed);
      const wanted = this.counts(printed, printed);
      if (one.skipping && !isDeepStrictEqual(came, wanted)) continue;
      one.skipping = false;
      expect(came).toEqual(wanted);
      return frame;
    }
  }
}

/** The IM wire: `1/pc connects`, `1/pc connects with parley.im.v1`. */
export class Devices extends Clients {
  constructor(private readonly im: Im) {
    super();
  }

  protected async connect(name: string, how: string): Promise<Socket> {
    const [user = '', client = ''] = name.split('/');
    const device =
      how === 'with parley.im.v1'
        ? new Device(this.im.url, user, await this.im.token(user, { client }), true)
        : await this.im.connect(user, { client });
    return {
      frames: device.frames,
      next: () => device.next(() => true),
      send: (frame) => void device.send({ source: undefined, ...frame }),
      close: () => device.close(),
      closed: () => device.closed(),
    };
  }

  protected counts(frame: Frame, { content }: Frame): unknown {
    const { type } = frame;
    // How much of a reply comes at a time differs: what is printed is the beginning.
    const begun =
      type === 'stream' && typeof content === 'string'
        ? { ...frame, content: (frame.content as string).slice(0, content.length) }
        : frame;
    return shape(begun);
  }
}

/** The agent channel: `a connects`, `a connects to /api/v1/ws?token=…`, `… with agent.events.v1`. */
export class Channels extends Clients {
  constructor(private readonly url: string) {
    super();
  }

  protected async connect(_name: string, how: string): Promise<Socket> {
    const [, path = '/api/v1/ws', protocol] = /^(?:to (\S+))? ?(?:with (\S+))?$/.exec(how) ?? [];
    const channel = new Channel(this.url, { path, events: protocol === 'agent.events.v1' });
    await within(channel.opened, `connects ${how}`);
    return {
      frames: channel.frames,
      next: () => channel.next(() => true),
      send: (frame) => void channel.send(frame),
      close: () => channel.close(),
      closed: async () => (await channel.closed).code,
    };
  }

  /** How far a reply had come when it was stopped differs. */
  protected counts(frame: Frame): unknown {
    const { offset, usage, payload, ...rest } = frame;
    const stopped = frame.status === 'stopped';
    return shape({
      ...rest,
      ...(offset !== undefined && { offset: stopped ? 'so far' : (offset as unknown) }),
      ...(usage !== undefined && { usage: stopped ? Object.keys(usage as object) : (usage as unknown) }),
      ...(payload !== undefined && { payload: payload as unknown }),
    });
  }
}

/** A page's program as its reader would run it, with Node and what is installed here; resolves to what it prints. */
export async function runScript(code: string, env: Readonly<Record<string, string>>): Promise<string> {
  const child = spawn(process.execPath, ['--input-type=module', '-'], {
    cwd: ROOT,
    env: { ...process.env, NODE_OPTIONS: '', ...env },
    timeout: SCRIPT_PATIENCE_MS,
  });
  let printed = '';
  let errors = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (printed += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (errors += text));
  child.stdin.end(code);
  const exitCode = await new Promise<number | null>((resolve, reject) => {
    child.once('close', resolve).once('error', reject);
  });
  if (exitCode !== 0) throw new Error(`ended with ${exitCode}: ${printed}${errors}`);
  return printed.trim();
}
