import { spawn, type ChildProcess } from 'node:child_process';
import { chmod, copyFile, mkdir, mkdtemp, readFile, realpath, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

const SCRIPT = join(__dirname, '..', '..', 'scripts', 'start.mjs');

/** A project of a few files around the real script, with an npm, a Nest CLI and a server that write down their calls. */
class TinyProject {
  private readonly runs = new Set<Run>();
  private constructor(readonly root: string) {}

  static async make(): Promise<TinyProject> {
    const project = new TinyProject(await realpath(await mkdtemp(join(tmpdir(), 'parley-start-'))));
    await project.write('package.json', '{ "name": "tiny" }');
    await project.write(
      'package-lock.json',
      '{ "packages": { "": {}, "node_modules/a": { "version": "1.0.0" } } }',
    );
    await project.write('src/main.ts', 'one');
    await project.write('nest.js', `${note('build')}\n${put('dist/src/main.js', 'SERVER')}`);
    await project.write('server.js', SERVER);
    await project.write('path/npm', `#!${process.execPath}\n${NPM}`);
    await chmod(join(project.root, 'path/npm'), 0o755);
    await mkdir(join(project.root, 'scripts'));
    await copyFile(SCRIPT, join(project.root, 'scripts/start.mjs'));
    return project;
  }

  async write(name: string, text: string): Promise<void> {
    await mkdir(dirname(join(this.root, name)), { recursive: true });
    await writeFile(join(this.root, name), text);
  }

  start(args: readonly string[] = [], env: NodeJS.ProcessEnv = {}): Run {
    return this.spawn(process.execPath, [join(this.root, 'scripts/start.mjs'), ...args], env);
  }

  spawn(command: string, args: readonly string[], env: NodeJS.ProcessEnv): Run {
    const child = spawn(command, args, {
      cwd: '/',
      env: { ...process.env, PATH: `${join(this.root, 'path')}:/usr/bin:/bin`, ...env },
    });
    const run = new Run(child);
    this.runs.add(run);
    return run;
  }

  /** What npm, nest and the server noted, in order. */
  async calls(): Promise<string[]> {
    const text = await readFile(join(this.root, 'calls'), 'utf8').catch(() => '');
    return text.split('\n').filter(Boolean);
  }

  async dispose(): Promise<void> {
    for (const { child } of this.runs) child.kill('SIGKILL'); // the servers see it and end too
    await Promise.all([...this.runs].map((run) => run.ended));
    await rm(this.root, { recursive: true, force: true });
  }
}

class Run {
  output = '';
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null; output: string }>;
  constructor(readonly child: ChildProcess) {
    for (const stream of [child.stdout, child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => (this.output += text));
    }
    this.ended = new Promise((done) =>
      child.once('close', (code, signal) => done({ code, signal, output: this.output })),
    );
  }
}

const note = (text: string) => `require('fs').appendFileSync(process.env.TINY + '/calls', '${text}\\n');`;
const put = (name: string, from: string) =>
  `require('fs').mkdirSync(require('path').dirname('${name}'), { recursive: true });
   require('fs').copyFileSync('${from === 'SERVER' ? 'server.js' : from}', '${name}');`;

const NPM = `
process.env.TINY ??= process.cwd();
const fs = require('fs');
fs.appendFileSync('calls', 'npm ' + process.argv[2] + '\\n');
console.error('npm warn Unknown user config "nodedir"');
if (process.env.NPM_FAILS) { console.error('npm error 404 no such thing'); process.exit(7); }
const install = () => {
  fs.rmSync('node_modules', { recursive: true, force: true });
  fs.mkdirSync('node_modules/.bin', { recursive: true });
  fs.symlinkSync(process.execPath, 'node_modules/.bin/node');
  fs.copyFileSync('nest.js', 'node_modules/.bin/nest');
};
if (process.env.NPM_WAITS) {
  const poll = setInterval(() => { if (fs.existsSync('go')) { clearInterval(poll); install(); } }, 10);
} else install();
`;

const SERVER = `
const fs = require('fs');
const note = (text) => fs.appendFileSync(process.env.TINY + '/calls', text + '\\n');
note('server ' + process.argv.slice(2).join(' '));
if (process.env.EXIT_CODE) process.exit(Number(process.env.EXIT_CODE));
if (process.env.DIES) process.kill(process.pid, process.env.DIES);
const stop = (why) => { note(why); if (!process.env.STUBBORN) setTimeout(() => process.exit(0), 300); };
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => stop(signal));
process.on('disconnect', () => { note('disconnect'); process.exit(0); });
fs.writeFileSync(process.env.TINY + '/server.pid', String(process.pid));
setInterval(() => {}, 1000);
note('ready');
`;

async function until(what: string, check: () => Promise<boolean> | boolean): Promise<void> {
  for (const deadline = Date.now() + 15_000; Date.now() < deadline; await delay(20))
    if (await check()) return;
  throw new Error(`${what}: not within 15 s`);
}

describe('npm start', () => {
  let project: TinyProject;
  let env: NodeJS.ProcessEnv;

  beforeEach(async () => {
    project = await TinyProject.make();
    env = { TINY: project.root };
  });
  afterEach(() => project.dispose());

  const prepare = (more: NodeJS.ProcessEnv = {}) =>
    project.start(['--prepare-only'], { ...env, ...more }).ended;
  const serving = async (more: NodeJS.ProcessEnv = {}): Promise<Run> => {
    const run = project.start([], { ...env, ...more });
    await until('the server is up', async () => (await project.calls()).includes('ready'));
    return run;
  };

  it('installs and builds once, and keeps the talk of both to itself', async () => {
    const first = await prepare();
    expect(first.code).toBe(0);
    expect(first.output).toMatch(
      /^Installing dependencies …\n.* done in \d+ s\nBuilding …\n.* done in \d+ s\n$/,
    );

    expect(await prepare()).toMatchObject({ code: 0, output: '' });
    expect(await project.calls()).toEqual(['npm ci', 'build']);
  });

  it('builds again, and only builds, when a source has changed, come or gone', async () => {
    await prepare();
    await project.write('src/main.ts', 'two');
    await prepare();
    await project.write('migrations/1-first.ts', '');
    await prepare();
    await rm(join(project.root, 'migrations/1-first.ts'));
    await prepare();
    expect(await project.calls()).toEqual(['npm ci', 'build', 'build', 'build', 'build']);
  });

  it('installs again when the lock file has changed, not when a script has', async () => {
    await prepare();
    await project.write('package.json', '{ "name": "tiny", "scripts": { "a": "b" } }');
    await prepare();
    expect(await project.calls()).toEqual(['npm ci', 'build']);
    await project.write('package-lock.json', '{ "packages": { "": { "version": "2" } } }');
    await prepare();
    expect(await project.calls()).toEqual(['npm ci', 'build', 'npm ci', 'build']);
  });

  it('takes an install by hand for one', async () => {
    await project.start(['--no-build'], env).ended;
    await rm(join(project.root, 'node_modules/.parley-installed'));
    await copyFile(
      join(project.root, 'package-lock.json'),
      join(project.root, 'node_modules/.package-lock.json'),
    );
    await prepare();
    expect(await project.calls()).toEqual(['npm ci', 'build']);
  });

  it('prints what npm said when the install fails, ends with 1, and tries again the next time', async () => {
    const failed = await prepare({ NPM_FAILS: '1' });
    expect(failed.code).toBe(1);
    expect(failed.output).toContain('npm error 404 no such thing');
    expect(failed.output).toContain('Installing dependencies failed');
    expect((await prepare()).code).toBe(0);
    expect(await project.calls()).toEqual(['npm ci', 'npm ci', 'build']);
  });

  it('says in one line that npm is missing', async () => {
    await rm(join(project.root, 'path/npm'));
    const { code, output } = await prepare({ PATH: join(project.root, 'path') });
    expect(code).toBe(1);
    expect(output).toContain('npm not found');
  });

  it('lets two starts at once install once', async () => {
    const first = prepare({ NPM_WAITS: '1' });
    await until('the first installs', async () => (await project.calls()).includes('npm ci'));
    const second = project.start(['--prepare-only'], { ...env, NPM_WAITS: '1' });
    await until('the second waits', () => second.output.includes('Waiting for another start'));
    await project.write('go', '');
    expect((await first).code).toBe(0);
    expect((await second.ended).code).toBe(0);
    expect(await project.calls()).toEqual(['npm ci', 'build']);
  });

  it('is not hindered by an install that was killed', async () => {
    const killed = project.start(['--prepare-only'], { ...env, NPM_WAITS: '1' });
    await until('it installs', async () => (await project.calls()).includes('npm ci'));
    killed.child.kill('SIGKILL');
    await project.write('go', ''); // its npm lives on: let it end
    await killed.ended;
    expect((await prepare()).code).toBe(0);
  });

  it('ends its npm, and starts no server, when stopped while installing', async () => {
    const run = project.start([], { ...env, NPM_WAITS: '1' });
    await until('it installs', async () => (await project.calls()).includes('npm ci'));
    run.child.kill('SIGTERM');
    expect((await run.ended).code).toBe(143);
    expect(await project.calls()).toEqual(['npm ci']);
  });

  it.each(['SIGTERM', 'SIGINT', 'SIGHUP'] as const)(
    'passes %s on once, however often it arrives',
    async (signal) => {
      const run = await serving();
      for (let i = 0; i < 3; i += 1) {
        run.child.kill(signal);
        await delay(20); // three signals at once are one
      }
      expect((await run.ended).code).toBe(0);
      expect((await project.calls()).filter((call) => call.startsWith('SIG'))).toEqual([signal]);
    },
  );

  it('passes a second stop on when it comes later and is meant', async () => {
    const run = await serving({ STUBBORN: '1' });
    const count = async (): Promise<number> =>
      (await project.calls()).filter((call) => call === 'SIGINT').length;
    run.child.kill('SIGINT');
    await until('the first arrives', async () => (await count()) === 1);
    await until('the second arrives', async () => {
      run.child.kill('SIGINT');
      await delay(100);
      return (await count()) === 2;
    });
  });

  it('keeps the signals of the terminal from the server', async () => {
    const run = await serving();
    const pid = await readFile(join(project.root, 'server.pid'), 'utf8');
    const groupOf = async (of: string) =>
      (await readFile(`/proc/${of}/stat`, 'utf8')).split(') ')[1]?.split(' ')[2];
    if (process.platform === 'linux')
      expect(await groupOf(pid)).not.toBe(await groupOf(String(run.child.pid)));
    run.child.kill('SIGTERM');
    await run.ended;
  });

  it('tells the server of its own violent end through the IPC channel', async () => {
    const run = await serving();
    run.child.kill('SIGKILL');
    await until('the server notices', async () => (await project.calls()).includes('disconnect'));
  });

  it('stops the server when npm, or the shell between npm and it, is gone', async () => {
    const script = join(project.root, 'scripts/start.mjs');
    const shell = project.spawn('/bin/sh', ['-c', `'${process.execPath}' '${script}'; exit`], {
      ...env,
      npm_lifecycle_event: 'start',
    });
    await until('the server is up', async () => (await project.calls()).includes('ready'));
    shell.child.kill('SIGTERM');
    await until('the server is told', async () => (await project.calls()).includes('SIGTERM'));
    await shell.ended;
  });

  it("ends with the server's exit code, or 128 and its signal", async () => {
    expect((await project.start(['--port', '1'], { ...env, EXIT_CODE: '3' }).ended).code).toBe(3);
    expect((await project.start([], { ...env, DIES: 'SIGKILL' }).ended).code).toBe(137);
    expect(await project.calls()).toEqual(['npm ci', 'build', 'server --port 1', 'server ']);
  });

  it("runs a command on the project's Node after the install, built only if asked to", async () => {
    const show = `${note('ran')} console.log(process.argv0, process.argv.slice(1).join()); process.exit(5)`;
    const plain = await project.start(['--run', 'node', '-e', show, 'x', '--run'], env).ended;
    expect(plain).toMatchObject({ code: 5 });
    expect(plain.output).toContain('node x,--run');
    expect(await project.calls()).toEqual(['npm ci', 'ran']);
    expect((await project.start(['--build', '--run', 'node', '-e', show], env).ended).code).toBe(5);
    expect(await project.calls()).toEqual(['npm ci', 'ran', 'build', 'ran']);
    const inShell = await project.start(['--run', 'sh', '-c', 'command -v node'], env).ended;
    expect(inShell.output.trim()).toBe(join(project.root, 'node_modules/.bin/node'));
    expect((await project.start(['--run', 'no-such-command'], env).ended).code).toBe(127);
  });
});
