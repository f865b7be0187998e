// What Parley's IM wire is measured against: `ws` as an engineer would use it on an afternoon. The token is the user's
// name; nobody is authenticated, nothing is offered to who was away, nothing survives a restart but what is in the table.
//   `bare`    relays: JSON parsed, `id` and `seq` added, to the receiver; `sent` to the sender. The fastest there is.
//   `stored`  the same after one INSERT through a pool of ten. Two messages of one sender can overtake each other on it.
import { createServer } from 'node:http';
import pg from 'pg';
import { WebSocketServer } from 'ws';

const [mode, databaseUrl] = process.argv.slice(2);

const users = new Map();
const lastSeq = new Map();
let lastId = 0;

let pool;
if (mode === 'stored') {
  pool = new pg.Pool({ connectionString: databaseUrl, max: 10 });
  await pool.query(`
    create table messages (
      id bigint generated always as identity primary key,
      conversation text not null,
      seq bigint not null,
      sender text not null,
      target text not null,
      frame jsonb not null,
      created_at timestamptz not null default now()
    );
    create unique index on messages (conversation, seq);`);
}

async function store(frame, conversationId, seq) {
  const { rows } = await pool.query(
    'insert into messages (conversation, seq, sender, target, frame) values ($1, $2, $3, $4, $5) returning id',
    [conversationId, seq, frame.source, frame.target, frame],
  );
  return rows[0].id;
}

function number(frame) {
  const { type, source, target } = frame;
  const conversationId =
    type === 'group' ? target : source < target ? `${source}:${target}` : `${target}:${source}`;
  const seq = (lastSeq.get(conversationId) ?? 0) + 1;
  lastSeq.set(conversationId, seq);
  return { conversationId, seq };
}

function pass(socket, frame, { id, seq, conversationId }) {
  const timestamp = Date.now();
  socket.send(JSON.stringify({ type: 'sent', msgId: frame.msg.msgId, id, seq, conversationId, timestamp }));
  const text = JSON.stringify({ ...frame, id, seq, conversationId, timestamp });
  if (frame.type === 'single') users.get(frame.target)?.send(text);
  // Everybody connected is in the one group there is.
  else for (const other of users.values()) if (other !== socket) other.send(text);
}

const server = createServer();
new WebSocketServer({ server, path: '/chat' }).on('connection', (socket, request) => {
  const name = new URL(request.url, 'http://localhost').searchParams.get('token');
  users.set(name, socket);
  socket.on('close', () => users.delete(name));
  socket.on('error', () => socket.terminate());
  socket.on('message', (data) => {
    const frame = JSON.parse(data);
    const { conversationId, seq } = number(frame);
    if (!pool) return pass(socket, frame, { id: String((lastId += 1)), seq, conversationId });
    store(frame, conversationId, seq).then(
      (id) => pass(socket, frame, { id, seq, conversationId }),
      (error) => socket.send(JSON.stringify({ type: 'error', message: error.message })),
    );
  });
});
server.listen(0, '127.0.0.1', () => process.send({ port: server.address().port }));
process.on('disconnect', () => process.exit(0));
