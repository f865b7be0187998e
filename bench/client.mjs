// The load: one process, raw undici, that only keeps the bytes while a measurement runs and checks them afterwards.
// Commands come over IPC as {id, command, …}; each is answered with {id, …}.
import { setTimeout as delay } from 'node:timers/promises';
import { Agent } from 'undici';
import { textOf } from './shapes.mjs';

const agents = new Map();
function agentOf(target) {
  if (!agents.has(target.url)) {
    agents.set(
      target.url,
      new Agent({
        connections: null,
        pipelining: 1,
        headersTimeout: 0,
        bodyTimeout: 0,
        keepAliveTimeout: 30_000,
      }),
    );
  }
  return agents.get(target.url);
}

/** What tells the first piece: the wire's first frame and the provider's role chunk are none. */
const MARKS = { sse: '"isEnd":false', openai: '"content":"' };

let requests = 0;
/** `target.fresh` names a field of the body that is another one in every request. */
function bodyOf({ body, fresh }) {
  if (!fresh) return body;
  requests += 1;
  return JSON.stringify({ ...JSON.parse(body), [fresh]: `bench-${requests}` });
}

class Stream {
  chunks = [];
  firstPieceMs = undefined;
  bytes = 0;
  status = 0;

  constructor(target, onFirstPiece) {
    this.target = target;
    this.onFirstPiece = onFirstPiece;
    const body = bodyOf(target);
    this.began = performance.now();
    this.ended = new Promise((resolve, reject) => {
      agentOf(target).dispatch(
        { origin: target.url, path: target.path, method: 'POST', headers: target.headers, body },
        {
          onRequestStart: (controller) => (this.controller = controller),
          onResponseStart: (_controller, status) => (this.status = status),
          onResponseData: (_controller, chunk) => this.read(chunk),
          onResponseEnd: () => resolve(this),
          onResponseError: (_controller, error) => reject(error),
        },
      );
    });
  }

  read(chunk) {
    this.chunks.push(chunk);
    this.bytes += chunk.length;
    if (this.firstPieceMs !== undefined) return;
    const text = Buffer.concat(this.chunks).toString('latin1');
    const mark = MARKS[this.target.wire];
    let at = text.indexOf(mark);
    if (this.target.wire === 'openai' && at >= 0 && text[at + mark.length] === '"')
      at = text.indexOf(mark, at + 1);
    if (at < 0) return;
    this.firstPieceMs = performance.now() - this.began;
    this.onFirstPiece?.();
  }

  /** Every piece there, once, in order, and the end said. Returns the number of pieces. */
  check() {
    const { wire, shape } = this.target;
    const body = Buffer.concat(this.chunks).toString();
    const fail = (why) => {
      throw new Error(`${this.target.name} ${shape}: ${why}; status ${this.status}, got ${body.slice(-600)}`);
    };
    if (this.status !== 200) fail('no stream');
    let text = '';
    let pieces = 0;
    let number = 0;
    let end;
    for (const block of body.split('\n\n')) {
      if (block === '' || block.startsWith(':')) continue;
      const at = block.indexOf('data: ');
      if (end || at < 0) fail('an event that should not be');
      const data = block.slice(at + 6);
      if (wire === 'openai') {
        if (data === '[DONE]') {
          end = { status: 'finished' };
          continue;
        }
        const piece = JSON.parse(data).choices[0]?.delta?.content;
        if (piece) pieces += 1;
        text += piece ?? '';
        continue;
      }
      if (!new RegExp(`^id: \\d+:${number}\\n$`).test(block.slice(0, at)))
        fail(`event ${number} is not in its place`);
      if (number > 0) {
        const event = JSON.parse(data);
        if (event.isEnd) end = event;
        else pieces += 1;
        text += event.result;
      } else this.first = JSON.parse(data);
      number += 1;
    }
    if (end?.status !== 'finished') fail('no end');
    if (text !== textOf(shape)) fail('not the text that was sent');
    this.chunks = [];
    return pieces;
  }
}

/** `count` streams, `concurrency` at a time, each begun at least `staggerMs` after the one before. */
async function streams({ target, count, concurrency, staggerMs = 0 }, told) {
  const done = [];
  let left = count;
  let nextAt = performance.now();
  const worker = async () => {
    while (left > 0) {
      left -= 1;
      if (staggerMs > 0) {
        nextAt += staggerMs;
        await delay(Math.max(0, nextAt - performance.now()));
      }
      done.push(await new Stream(target).ended);
    }
  };
  const began = performance.now();
  await Promise.all(Array.from({ length: concurrency }, worker));
  const wallMs = performance.now() - began;
  await told({ wallMs });
  let pieces = 0;
  for (const stream of done) pieces += stream.check();
  return { pieces, wallMs, dialogueIds: done.map(({ first }) => first?.id) };
}

let held = [];
/** Opens `count` streams and resolves once each has got its pieces. */
async function hold({ target, count }) {
  for (let from = 0; from < count; from += 25) {
    const firsts = Array.from({ length: Math.min(25, count - from) }, () => {
      const { promise, resolve, reject } = Promise.withResolvers();
      const stream = new Stream(target, resolve);
      stream.ended.catch(reject);
      held.push(stream);
      return promise;
    });
    await Promise.all(firsts);
  }
  await delay(300);
  // The bytes are no longer needed to be told whole: the check is of streams that end.
  return { bytes: held.reduce((sum, { bytes }) => sum + bytes, 0), open: held.length };
}

/** After the upstream released them: every one has to end well. */
async function drain() {
  const done = await Promise.all(held.map(({ ended }) => ended));
  held = [];
  let pieces = 0;
  for (const stream of done) pieces += stream.check();
  return { pieces };
}

/** First piece of each target in turn, one request at a time. */
async function sequential({ targets, count }) {
  const firstPieceMs = targets.map(() => []);
  for (let i = 0; i < count; i += 1) {
    for (let k = 0; k < targets.length; k += 1) {
      const which = (i + k) % targets.length;
      const stream = await new Stream(targets[which]).ended;
      stream.check();
      firstPieceMs[which].push(stream.firstPieceMs);
    }
  }
  return { firstPieceMs };
}

/** The same with requests that come when they come: exponential gaps, nobody waits for an earlier one to end. */
async function arriving({ targets, count, ratePerSecond }) {
  const firstPieceMs = targets.map(() => []);
  let seed = 42;
  const random = () => (seed = (seed * 16_807) % 2_147_483_647) / 2_147_483_647;
  const all = [];
  let at = performance.now();
  for (let i = 0; i < count * targets.length; i += 1) {
    at += (-Math.log(random()) * 1000) / (ratePerSecond * targets.length);
    await delay(Math.max(0, at - performance.now()));
    const which = i % targets.length;
    all.push(
      new Stream(targets[which]).ended.then((stream) => {
        stream.check();
        firstPieceMs[which].push(stream.firstPieceMs);
      }),
    );
  }
  await Promise.all(all);
  return { firstPieceMs };
}

/** One after the other, each with its own change of the body: the conversation that it goes on with. */
async function follow({ target, changes }) {
  for (const change of changes) {
    const body = JSON.stringify({ ...JSON.parse(target.body), ...change });
    (await new Stream({ ...target, body }).ended).check();
  }
  return {};
}

const COMMANDS = { streams, hold, drain, sequential, arriving, follow };
const send = (message) => new Promise((resolve) => process.send(message, resolve));

process.on('message', async ({ id, command, ...input }) => {
  try {
    await send({ id, result: await COMMANDS[command](input, (early) => send({ id, early })) });
  } catch (error) {
    await send({ id, error: error.stack });
  }
});
process.on('disconnect', () => process.exit(0));
