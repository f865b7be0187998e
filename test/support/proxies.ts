import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { connect as connectTls } from 'node:tls';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { eventually } from './app';
import { ended } from './server';

const FILES = resolve(__dirname, '../../deploy/proxies');
/** The name in the tests' certificate. */
export const HOST = 'parley.test';
const asRoot = process.getuid?.() === 0;

/** What every file of deploy/proxies has in its place for the operator to change. */
const CHANGED = [
  ['127.0.0.1:9527', '127.0.0.1:{one}'],
  ['127.0.0.1:9528', '127.0.0.1:{two}'],
] as const;

interface Kind {
  readonly file: string;
  readonly command: string;
  /** What else is changed in the file. */
  readonly changes: readonly (readonly [from: string | RegExp, to: string])[];
  /** A whole configuration that holds the file. */
  readonly around?: (file: string) => string;
  readonly args: (config: string) => string[];
}

export const KINDS = {
  nginx: {
    file: 'nginx.conf',
    command: '/usr/sbin/nginx',
    changes: [
      ['chat.example.com', HOST],
      ['listen 443', 'listen 127.0.0.1:{port}'],
      [/\/etc\/ssl\/parley/g, '{dir}'],
      ['/var/log/nginx/parley.log', '{dir}/access.log'],
    ],
    around: (file) => `daemon off;
${asRoot ? 'user root;' : ''}
worker_processes 1;
pid {dir}/pid;
error_log stderr warn;
events {}
http {
${['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path {dir}/${name};`).join('\n')}
${file}
}`,
    args: (config) => ['-c', config, '-e', 'stderr'],
  },
  haproxy: {
    file: 'haproxy.cfg',
    command: '/usr/sbin/haproxy',
    changes: [
      ['bind :443', 'bind 127.0.0.1:{port}'],
      [/\/etc\/ssl\/parley/g, '{dir}'],
    ],
    args: (config) => ['-db', '-f', config],
  },
  'haproxy-tcp': {
    file: 'haproxy-tcp.cfg',
    command: '/usr/sbin/haproxy',
    changes: [
      ['bind :443', 'bind 127.0.0.1:{port}'],
      [/\/etc\/ssl\/parley/g, '{dir}'],
    ],
    args: (config) => ['-db', '-f', config],
  },
  caddy: {
    file: 'Caddyfile',
    command: '/usr/bin/caddy',
    changes: [
      ['chat.example.com {', `https://${HOST}:{port} {\n\tbind 127.0.0.1`],
      [/\/etc\/ssl\/parley/g, '{dir}'],
    ],
    around: (file) => `{\n\tadmin off\n\tauto_https disable_redirects\n}\n${file}`,
    args: (config) => ['run', '--adapter', 'caddyfile', '--config', config],
  },
  apache: {
    file: 'apache.conf',
    command: '/usr/sbin/apache2',
    changes: [
      ['chat.example.com', HOST],
      ['*:443', '127.0.0.1:{port}'],
      [/\/etc\/ssl\/parley/g, '{dir}'],
      ['/var/log/apache2/parley.log', '{dir}/access.log'],
    ],
    around: (file) => `ServerRoot {dir}
DefaultRuntimeDir {dir}
PidFile {dir}/pid
Mutex file:{dir}
ServerName ${HOST}
Listen 127.0.0.1:{port}
ErrorLog {dir}/error.log
LogLevel error
${asRoot ? 'User www-data\nGroup www-data' : ''}
${[
  'mpm_event',
  'authz_core',
  'env',
  'headers',
  'ssl',
  'socache_shmcb',
  'slotmem_shm',
  'proxy',
  'proxy_http',
  'proxy_wstunnel',
  'proxy_balancer',
  'lbmethod_bybusyness',
]
  .map((name) => `LoadModule ${name}_module /usr/lib/apache2/modules/mod_${name}.so`)
  .join('\n')}
${file}`,
    args: (config) => ['-DFOREGROUND', '-f', config],
  },
} satisfies Record<string, Kind>;

export type ProxyName = keyof typeof KINDS;

export function installed(name: ProxyName): boolean {
  try {
    for (const path of [KINDS[name].command, '/usr/bin/openssl']) accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** A port that nobody has now; whoever is started on it next has it. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  const { port } = server.address() as AddressInfo;
  await new Promise((done) => server.close(done));
  return port;
}

/** One of the proxies, with its file of deploy/proxies, in front of two ports. */
export class Proxy {
  private constructor(
    private readonly child: ChildProcess,
    private readonly directory: string,
    readonly port: number,
    readonly certificate: string,
  ) {}

  static async start(name: ProxyName, one: number, two: number): Promise<Proxy> {
    const kind: Kind = KINDS[name];
    const [dir, port] = [await mkdtemp(join(tmpdir(), `parley-${name}-`)), await freePort()];
    const certificate = await certify(dir);
    let text = await readFile(join(FILES, kind.file), 'utf8');
    for (const [from, to] of [...CHANGED, ...kind.changes]) {
      const changed = text.replaceAll(from, to);
      if (changed === text) throw new Error(`${kind.file} does not hold ${String(from)}`);
      text = changed;
    }
    const values: Record<string, string> = { dir, port: String(port), one: String(one), two: String(two) };
    text = (kind.around?.(text) ?? text).replace(/\{(dir|port|one|two)\}/g, (_, key: string) => values[key]!);
    const config = join(dir, 'config');
    await writeFile(config, text);
    const child = spawn(kind.command, kind.args(config), {
      cwd: dir,
      env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', HOME: dir, XDG_DATA_HOME: dir, XDG_CONFIG_HOME: dir },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let output = '';
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (part: string) => (output = (output + part).slice(-5_000)));
    await eventually(async () => {
      if (child.exitCode !== null)
        throw new Error(
          `${name} ended: ${output}${await readFile(join(dir, 'error.log'), 'utf8').catch(() => '')}`,
        );
      return accepts(port, certificate);
    });
    return new Proxy(child, dir, port, certificate);
  }

  async stop(): Promise<void> {
    await ended(this.child, 'SIGTERM');
    await rm(this.directory, { recursive: true, force: true });
  }
}

function accepts(port: number, ca: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connectTls({ host: '127.0.0.1', port, ca, servername: HOST });
    socket.once('secureConnect', () => resolve(true)).once('error', () => resolve(false));
    socket.once('close', () => resolve(false));
    socket.once('secureConnect', () => socket.destroy());
  });
}

async function certify(dir: string): Promise<string> {
  await mkdir(dir, { recursive: true });
  const [key, chain] = [join(dir, 'privkey.pem'), join(dir, 'fullchain.pem')];
  const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'];
  const name = ['-subj', `/CN=${HOST}`, '-addext', `subjectAltName=DNS:${HOST}`];
  execFileSync('openssl', ['req', '-x509', ...curve, ...name, '-keyout', key, '-out', chain], {
    stdio: 'ignore',
  });
  const certificate = await readFile(chain, 'utf8');
  await writeFile(join(dir, 'parley.pem'), certificate + (await readFile(key, 'utf8')));
  return certificate;
}
