// The load on an IM wire: one process, the same for Parley and for what it is measured against. Its sockets are
// wire.mjs's, and it looks at frames as text, without parsing them, so that as much of the machine as possible is left to
// the server; still every message has to arrive once, at both ends, with the numbers 1, 2, 3 … of its conversation.
// Commands come over IPC as {id, command, …}; each is answered with {id, …}.
import { setTimeout as delay } from 'node:timers/promises';
import { Wire } from './wire.mjs';

const DRAIN_MS = 20_000;
const OPEN_MS = 30_000;
const MAX_ATTEMPTS = 10;
/** A real device says now and then what it has; it costs a server that keeps marks something. */
const ACK_EVERY = 64;
const CONTENT =
  'A hundred bytes or so, as long as what people write to each other when they have something to say. '; // 100

let devices = [];
/** Ends the command that is under way with an error; one in between ends the next command. */
let breakOff = () => undefined;
let broken;
const fail = (why) => {
  broken ??= new Error(why);
  breakOff(broken);
};

class Device {
  onFrame = () => undefined;
  closing = false;
  corked = false;
  // What it has sent, by `msgId`: the number it was acknowledged with and the one it was delivered with.
  sent = 0;
  acknowledged = [];
  delivered = [];
  dueAt = [];
  lastAcknowledged = 0;
  lastDelivered = 0;
  received = 0;
  conversationId = undefined;

  constructor({ url, rich }, { name, token }, comesBack = false) {
    this.name = name;
    this.ownMark = `"source":"${name}"`;
    this.rich = rich;
    this.address = `${url.replace('http', 'ws')}/chat?token=${encodeURIComponent(token)}`;
    this.comesBack = comesBack;
    this.attempts = 0;
    const began = performance.now();
    this.ready = new Promise((resolve) => (this.isReady = () => resolve(performance.now() - began)));
    this.connect();
  }

  connect() {
    this.attempts += 1;
    this.closed = new Promise((resolve) => {
      this.wire = new Wire(this.address, {
        protocol: this.rich && 'parley.im.v1',
        timeoutMs: OPEN_MS,
        onOpen: () => this.rich || this.isReady(),
        onFrame: (buffer, from, to) => {
          if (this.rich && buffer.latin1Slice(from, Math.min(to, from + 40)).includes('"type":"ready"'))
            this.isReady();
          else this.onFrame(buffer, from, to);
        },
        onClose: (code, why) => {
          resolve();
          if (this.closing) return;
          if (this.comesBack && this.attempts < MAX_ATTEMPTS)
            setTimeout(() => this.connect(), 500 + Math.random() * 1_000);
          else fail(`${this.name}: closed with ${code} ${why}`);
        },
      });
    });
  }

  /** The `n`th message, to the other of the pair; `n` is its `msgId`. */
  message(type = 'single', target = this.peer.name) {
    const n = this.sent;
    this.sent += 1;
    return `{"type":"${type}","source":"${this.name}","target":"${target}","msgType":"text","msg":{"msgId":"${n}","timestamp":${Date.now()},"content":"${CONTENT}"}}`;
  }

  acknowledge(text, seq) {
    this.received += 1;
    if (!this.rich || this.received % ACK_EVERY > 0) return;
    this.conversationId ??= /"conversationId":"([^"]+)"/.exec(text)?.[1];
    this.wire.send(`{"type":"ack","conversationId":"${this.conversationId}","seq":${seq}}`);
  }
}

/** The digits after `key`; NaN when there are none. */
function numberAfter(text, key) {
  const from = text.indexOf(key) + key.length;
  if (from < key.length) return NaN;
  let to = from;
  for (let code = text.charCodeAt(to); code >= 48 && code <= 57; code = text.charCodeAt(to)) to += 1;
  return to > from ? Number(text.slice(from, to)) : NaN;
}

const sentSoFar = () => devices.reduce((sum, device) => sum + device.sent, 0);

/** Pairs that write to each other. `onDone` is told of a message that both its ends know of. */
class Traffic {
  /** What an earlier command sent over these devices is done. */
  completed = sentSoFar();
  /** Frames that came after one with a higher number: of the acknowledgements, or of the other's messages. */
  overtaken = 0;
  /** Own messages that came back to the very device that sent them: a server that catches up may do that. */
  echoed = 0;

  constructor({ onAcknowledged = () => undefined, onDelivered = () => undefined, onDone = () => undefined }) {
    Object.assign(this, { onAcknowledged, onDelivered, onDone });
    devices.forEach((device, i) => {
      device.peer = devices[i ^ 1];
      device.onFrame = (buffer, from, to) => this.take(device, buffer.latin1Slice(from, to));
    });
  }

  take(device, text) {
    const n = numberAfter(text, '"msgId":"');
    const seq = numberAfter(text, '"seq":');
    if (text.includes('"type":"sent"')) {
      if (seq <= device.lastAcknowledged) this.overtaken += 1;
      device.lastAcknowledged = seq;
      this.onAcknowledged(device, n);
      this.settle(device, n, seq, device.acknowledged, device.delivered);
    } else if (text.includes('"type":"single"')) {
      if (text.includes(device.ownMark)) return this.echo(device, n, seq);
      if (seq <= device.lastDelivered) this.overtaken += 1;
      device.lastDelivered = seq;
      device.acknowledge(text, seq);
      const { peer } = device;
      this.onDelivered(peer, n);
      this.settle(peer, n, seq, peer.delivered, peer.acknowledged);
    } else if (!text.includes('"type":"read"')) fail(`${device.name}: unexpected ${text}`);
  }

  echo(device, n, seq) {
    this.echoed += 1;
    const known = device.acknowledged[n] ?? device.delivered[n] ?? seq;
    if (known !== seq) fail(`${device.name}: message ${n} came back as ${seq}, not ${known}`);
  }

  settle(sender, n, seq, here, there) {
    if (!(n < sender.sent) || !(seq > 0)) return fail(`${sender.name}: message ${n} with seq ${seq}`);
    if (here[n] !== undefined) {
      const what = here === sender.delivered ? 'was delivered' : 'was acknowledged';
      return fail(
        `${sender.name}: message ${n} ${what} twice, as ${here[n]} and ${seq}; ${this.completed} done before`,
      );
    }
    here[n] = seq;
    if (there[n] === undefined) return;
    if (there[n] !== seq)
      return fail(`${sender.name}: message ${n} is ${seq} to one and ${there[n]} to the other`);
    this.completed += 1;
    this.onDone(sender);
  }

  /** Everything there, numbered without gaps, and in order if that is promised. */
  async check(ordered) {
    const sent = sentSoFar();
    for (const until = Date.now() + DRAIN_MS; this.completed < sent;) {
      if (Date.now() > until) throw new Error(`${sent - this.completed} of ${sent} messages never arrived`);
      await delay(20);
    }
    await delay(100); // whatever comes twice has had its time
    for (let i = 0; i < devices.length; i += 2) {
      const [a, b] = [devices[i], devices[i + 1]];
      const seqs = [...a.delivered, ...b.delivered].sort((one, other) => one - other);
      const wrong = seqs.findIndex((seq, at) => seq !== at + 1);
      if (wrong >= 0)
        throw new Error(`${a.name}, ${b.name}: seq ${seqs[wrong]} in the place of ${wrong + 1}`);
    }
    if (ordered && this.overtaken > 0) throw new Error(`${this.overtaken} frames out of order`);
    return { sent, overtaken: this.overtaken, echoed: this.echoed };
  }
}

let corkedDevices = [];
/** What one turn of the event loop has to say to a socket goes out in one write. */
function sendSoon(device, text) {
  if (!device.corked) {
    device.corked = true;
    if (corkedDevices.push(device) === 1) setImmediate(uncorkAll);
  }
  device.wire.queue(text);
}
function uncorkAll() {
  const all = corkedDevices;
  corkedDevices = [];
  for (const device of all) {
    device.corked = false;
    device.wire.flush();
  }
}

/** Everybody keeps `inFlight` messages under way. */
async function saturate({ warmUpMs, measureMs, inFlight, ordered }, told) {
  let running = true;
  const traffic = new Traffic({ onDone: (sender) => running && sendSoon(sender, sender.message()) });
  for (const device of devices) for (let i = 0; i < inFlight; i += 1) sendSoon(device, device.message());
  await delay(warmUpMs);
  await told({ measuring: true });
  const began = performance.now();
  const before = traffic.completed;
  await delay(measureMs);
  const messages = traffic.completed - before;
  const ms = performance.now() - began;
  await told({ measuring: false });
  running = false;
  return { messages, ms, ...(await traffic.check(ordered)) };
}

/** So many messages a second whatever becomes of them; timed from when each was due, not from when it got out. */
async function pace({ perSecond, warmUpMs, measureMs, ordered }, told) {
  const ackMs = [];
  const deliveryMs = [];
  const began = performance.now();
  const note = (list) => (sender, n) => {
    const due = sender.dueAt[n];
    if (due - began > warmUpMs) list.push(performance.now() - due);
  };
  const traffic = new Traffic({ onAcknowledged: note(ackMs), onDelivered: note(deliveryMs) });
  const count = Math.round(((warmUpMs + measureMs) * perSecond) / 1000);
  let measuring = false;
  for (let i = 0; i < count;) {
    if (!measuring && performance.now() - began > warmUpMs) await told({ measuring: (measuring = true) });
    for (let due; i < count && (due = began + (i * 1000) / perSecond) <= performance.now(); i += 1) {
      const device = devices[i % devices.length];
      device.dueAt.push(due);
      device.wire.send(device.message());
    }
    await delay(1);
  }
  await told({ measuring: false });
  return { messages: ackMs.length, ackMs, deliveryMs, ...(await traffic.check(ordered)) };
}

/** Messages of the last device to the group of all the others. */
async function fanout({ target, count, everyMs }) {
  const sender = devices.at(-1);
  const receivers = devices.slice(0, -1);
  let frames = [];
  let firstAt;
  let lastAt;
  let all = () => undefined;
  for (const device of receivers) {
    device.onFrame = (buffer, from, to) => {
      lastAt = performance.now();
      firstAt ??= lastAt;
      if (frames.push(buffer.latin1Slice(from, to)) === receivers.length) all();
    };
  }
  let answer;
  sender.onFrame = (buffer, from, to) => (answer = buffer.utf8Slice(from, to));
  // What was stored before they came is theirs first.
  for (let seen = -1; frames.length !== seen; await delay(1_000)) seen = frames.length;
  const spreadMs = [];
  const wholeMs = [];
  for (let i = 0; i < count; i += 1) {
    frames = [];
    firstAt = undefined;
    const n = sender.sent;
    const text = sender.message('group', target);
    const began = performance.now();
    const arrived = new Promise((resolve) => (all = resolve));
    sender.wire.send(text);
    await Promise.race([arrived, delay(DRAIN_MS, undefined, { ref: false })]);
    spreadMs.push(lastAt - firstAt);
    wholeMs.push(lastAt - began);
    await delay(everyMs);
    const seq = numberAfter(frames[0] ?? '', '"seq":');
    const right = frames.filter(
      (got) => numberAfter(got, '"msgId":"') === n && numberAfter(got, '"seq":') === seq,
    );
    if (frames.length !== receivers.length || right.length !== frames.length) {
      throw new Error(
        `message ${i}: ${frames.length} frames, ${right.length} right; the sender got ${answer}`,
      );
    }
  }
  return { spreadMs, wholeMs };
}

/**
 * Opens devices, so many at a time or, with `perSecond`, so many a second, which then come back when they are refused;
 * resolves when all are ready.
 */
async function open({ target, users, concurrency, perSecond }) {
  const began = performance.now();
  const opened = [];
  const start = (user) => {
    const device = new Device(target, user, perSecond !== undefined);
    devices.push(device);
    opened.push(device.ready);
    return device.ready;
  };
  if (perSecond) {
    for (let i = 0; i < users.length; i += 1) {
      const early = began + (i * 1000) / perSecond - performance.now();
      if (early > 0) await delay(early);
      start(users[i]);
    }
  } else {
    let next = 0;
    const worker = async () => {
      while (next < users.length) await start(users[next++]);
    };
    await Promise.all(Array.from({ length: concurrency }, worker));
  }
  const readyMs = await Promise.all(opened);
  const again = devices.reduce((sum, { attempts }) => sum + attempts - 1, 0);
  return { readyMs, wholeMs: performance.now() - began, again };
}

async function close() {
  for (const device of devices) {
    device.closing = true;
    device.wire.close();
  }
  const patience = delay(5_000, undefined, { ref: false });
  await Promise.all(devices.map((device) => Promise.race([device.closed, patience])));
  for (const device of devices) device.wire.terminate();
  devices = [];
  broken = undefined;
  return {};
}

const COMMANDS = { open, saturate, pace, fanout, close };
const send = (message) => new Promise((resolve) => process.send(message, resolve));

process.on('message', async ({ id, command, ...input }) => {
  try {
    const interrupted = new Promise((_resolve, reject) => (breakOff = reject));
    if (broken && command !== 'close') fail();
    const told = (early) => send({ id, early });
    await send({ id, result: await Promise.race([COMMANDS[command](input, told), interrupted]) });
  } catch (error) {
    await send({ id, error: error.stack });
  }
});
process.on('disconnect', () => process.exit(0));
