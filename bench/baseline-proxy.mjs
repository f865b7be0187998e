// What Parley is measured against: the least a Node program can do to turn a provider's stream into the same frames.
// No authentication, no storage, no log, no time-outs. Written as a sensible engineer would: undici for the request,
// eventsource-parser for its events, JSON.parse for each, backpressure passed on. The path tells the wire.
//   `piece`  writes each frame as its event is parsed: what everybody writes first, and the baseline of the targets
//   `chunk`  gathers the frames of one upstream read into one write: the best that can be done, shown beside it
//   `bytes`  passes on what it reads and looks at nothing: only where the frames are the provider's (OpenAI)
import { createServer } from 'node:http';
import { createParser } from 'eventsource-parser';
import { Agent, request as ask } from 'undici';

const [mode, upstream] = process.argv.slice(2);
const byChunk = mode === 'chunk';
const agent = new Agent({ connections: null, pipelining: 1, headersTimeout: 0, bodyTimeout: 0 });

let ids = 40_000_000_000_000;
const newId = () => String((ids += 1));

/** A wire: what the provider is asked, what goes out before it answers, the frame of each of its events, and the last. */
function dialogue({ speechUserDialogueMessage: { content }, modelServiceId: model }) {
  const dialogueId = newId();
  const messageId = newId();
  const replyId = newId();
  let number = 0;
  let usage;
  const frame = (data) => {
    number += 1;
    return `id: ${replyId}:${number}\ndata: ${JSON.stringify(data)}\n\n`;
  };
  return {
    request: { model, messages: [{ role: 'user', content }] },
    first: `id: ${replyId}:0\ndata: ${JSON.stringify(firstRecord(dialogueId, messageId, content))}\n\n`,
    event: (chunk) => {
      if (chunk.usage) usage = chunk.usage;
      const result = chunk.choices[0]?.delta?.content;
      return result ? frame({ result, isEnd: false, userDialogueId: dialogueId }) : '';
    },
    last: () =>
      frame({
        result: '',
        isEnd: true,
        userDialogueId: dialogueId,
        messageId: replyId,
        status: 'finished',
        promptTokens: usage.prompt_tokens,
        completionTokens: usage.completion_tokens,
        totalTokens: usage.total_tokens,
        youtaizhis: 0,
      }),
  };
}

/** The provider's own events, under an id and a model's name of the proxy's. */
function openAi({ model, messages }) {
  const id = `chatcmpl-${newId()}`;
  return {
    request: { model, messages },
    first: '',
    event: (chunk) => {
      chunk.id = id;
      chunk.model = model;
      return `data: ${JSON.stringify(chunk)}\n\n`;
    },
    last: () => 'data: [DONE]\n\n',
  };
}

async function proxy(path, body, response) {
  const { request, first, event, last } = (path === '/v1/chat/completions' ? openAi : dialogue)(
    JSON.parse(body),
  );
  const head = () =>
    response.writeHead(200, {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache, no-transform',
      connection: 'keep-alive',
      'x-accel-buffering': 'no',
    });
  if (first) head().write(first);
  const { body: stream } = await ask(`${upstream}/v1/chat/completions`, {
    method: 'POST',
    dispatcher: agent,
    headers: { 'content-type': 'application/json', authorization: 'Bearer sk-bench' },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
  });
  if (!first) head();
  response.on('close', () => stream.destroy());
  stream.on('error', () => response.destroy());
  if (mode === 'bytes') return void stream.pipe(response);
  let out = '';
  let more = true;
  const parser = createParser({
    onEvent: ({ data }) => {
      if (data === '[DONE]') return;
      const frame = event(JSON.parse(data));
      if (frame === '') return;
      if (byChunk) out += frame;
      else more = response.write(frame);
    },
  });
  const decoder = new TextDecoder();
  stream.on('data', (chunk) => {
    parser.feed(decoder.decode(chunk, { stream: true }));
    if (out) more = response.write(out);
    out = '';
    if (!more) stream.pause();
  });
  response.on('drain', () => stream.resume());
  stream.on('end', () => response.end(last()));
}

function firstRecord(dialogueId, messageId, content) {
  const createTime = new Date().toISOString().slice(0, 19).replace('T', ' ');
  return {
    createBy: 'bench',
    createTime,
    updateBy: 'bench',
    updateTime: createTime,
    params: {},
    tenantId: '1',
    id: dialogueId,
    name: content.slice(0, 30),
    userId: '1',
    sceneId: '1',
    manageId: '1',
    modelServiceId: '1',
    totalTokens: 0,
    youtaizhis: 0,
    isUser: false,
    realEventSource: {},
    speechUserDialogueMessage: {
      createBy: 'bench',
      createTime,
      params: {},
      id: messageId,
      content,
      role: 'user',
      parentId: '1',
      userDialogueId: dialogueId,
      completionTokens: 0,
      promptTokens: 0,
      totalTokens: 0,
      youtaizhis: 0,
      userId: '1',
    },
    closeSse: false,
  };
}

const server = createServer((request, response) => {
  const body = [];
  request.on('data', (chunk) => body.push(chunk));
  request.on('end', () => {
    proxy(request.url, Buffer.concat(body).toString(), response).catch((error) => response.destroy(error));
  });
});
server.keepAliveTimeout = 60_000;
server.listen(0, '127.0.0.1', () => process.send({ port: server.address().port }));
process.on('disconnect', () => process.exit(0));
