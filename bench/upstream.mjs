// A model provider that is never the bottleneck: OpenAI-compatible SSE from prepared bytes. See shapes.mjs.
// Run as a child process with IPC: sends {port}, ends open streams at {release: true}, dies with its parent.
import { createServer } from 'node:http';
import { parseShape, pieceAt } from './shapes.mjs';

/** Events a write in a burst: providers flush by the few, not by the thousand and not one by one. */
const EVENTS_A_WRITE = 8;

const open = new Set();

function event(model, delta, finish, usage) {
  const chunk = {
    id: 'chatcmpl-9xBench0000000000000000000000',
    object: 'chat.completion.chunk',
    created: 1_750_000_000,
    model,
    system_fingerprint: 'fp_bench',
    choices: usage ? [] : [{ index: 0, delta, logprobs: null, finish_reason: finish }],
    usage: usage ?? null,
  };
  return `data: ${JSON.stringify(chunk)}\n\n`;
}

const prepared = new Map();
/** Every event's bytes, grouped as they are written. */
function prepare(model) {
  const known = prepared.get(model);
  if (known) return known;
  const { kind, pieces, everyMs } = parseShape(model);
  const events = Array.from({ length: pieces }, (_, i) => event(model, { content: pieceAt(i) }, null));
  const size = kind === 'paced' ? 1 : EVENTS_A_WRITE;
  const writes = [];
  for (let i = 0; i < events.length; i += size) writes.push(Buffer.from(events.slice(i, i + size).join('')));
  const usage = { prompt_tokens: 20, completion_tokens: pieces, total_tokens: 20 + pieces };
  const made = {
    kind,
    everyMs,
    writes,
    head: Buffer.from(event(model, { role: 'assistant', content: '' }, null)),
    tail: Buffer.from(`${event(model, {}, 'stop')}${event(model, null, null, usage)}data: [DONE]\n\n`),
  };
  prepared.set(model, made);
  return made;
}

function answer(model, response) {
  const { kind, everyMs, writes, head, tail } = prepare(model);
  response.writeHead(200, {
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-cache',
  });
  response.write(head);
  let next = 0;
  if (kind === 'paced') {
    const began = performance.now();
    const tick = () => {
      if (response.destroyed) return;
      response.write(writes[next]);
      next += 1;
      if (next === writes.length) response.end(tail);
      else setTimeout(tick, Math.max(0, began + (next + 1) * everyMs - performance.now()));
    };
    setTimeout(tick, everyMs);
    return;
  }
  const pump = () => {
    while (next < writes.length) {
      const more = response.write(writes[next]);
      next += 1;
      if (!more) return void response.once('drain', pump);
    }
    if (kind === 'burst') return void response.end(tail);
    const finish = () => response.end(tail);
    open.add(finish);
    response.once('close', () => open.delete(finish));
  };
  pump();
}

const server = createServer((request, response) => {
  const body = [];
  request.on('data', (chunk) => body.push(chunk));
  request.on('end', () => {
    try {
      answer(JSON.parse(Buffer.concat(body).toString()).model, response);
    } catch (error) {
      response.writeHead(400, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ error: { message: error.message } }));
    }
  });
});
server.keepAliveTimeout = 60_000;
server.listen(0, '127.0.0.1', () => process.send({ port: server.address().port }));
process.on('message', ({ release }) => {
  if (release) for (const finish of open) finish();
});
process.on('disconnect', () => process.exit(0));
