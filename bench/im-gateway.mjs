// What Parley's IM wire is measured against: a NestJS gateway, by the book. Decorators are called as functions: nothing
// here is compiled.
//   `stored`  TypeORM's repository.save() before `sent` and the receiver's copy
//   `idle`    does nothing with its connections: the memory of one
import 'reflect-metadata';
import { Module } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { FastifyAdapter } from '@nestjs/platform-fastify';
import { WsAdapter } from '@nestjs/platform-ws';
import { SubscribeMessage, WebSocketGateway } from '@nestjs/websockets';
import { DataSource, EntitySchema } from 'typeorm';

const [mode, databaseUrl] = process.argv.slice(2);

const Message = new EntitySchema({
  name: 'Message',
  tableName: 'messages',
  columns: {
    id: { type: 'bigint', primary: true, generated: 'increment' },
    conversation: { type: 'text' },
    seq: { type: 'bigint' },
    sender: { type: 'text' },
    target: { type: 'text' },
    frame: { type: 'jsonb' },
    createdAt: { type: 'timestamptz', createDate: true },
  },
  indices: [{ columns: ['conversation', 'seq'], unique: true }],
});

let messages;
if (mode === 'stored') {
  const options = {
    type: 'postgres',
    url: databaseUrl,
    entities: [Message],
    synchronize: true,
    poolSize: 10,
  };
  messages = (await new DataSource(options).initialize()).getRepository(Message);
}

class ChatGateway {
  users = new Map();
  lastSeq = new Map();

  handleConnection(socket, request) {
    socket.user = new URL(request.url, 'http://localhost').searchParams.get('token');
    this.users.set(socket.user, socket);
  }

  handleDisconnect(socket) {
    this.users.delete(socket.user);
  }

  async single(_socket, frame) {
    const { source: sender, target } = frame;
    const conversation = sender < target ? `${sender}:${target}` : `${target}:${sender}`;
    const seq = (this.lastSeq.get(conversation) ?? 0) + 1;
    this.lastSeq.set(conversation, seq);
    const { id } = await messages.save({ conversation, seq, sender, target, frame });
    const said = { id, seq, conversationId: conversation, timestamp: Date.now() };
    this.users.get(target)?.send(JSON.stringify({ ...frame, ...said }));
    return { type: 'sent', msgId: frame.msg.msgId, ...said };
  }
}

class IdleGateway {
  single() {}
}

const Gateway = mode === 'stored' ? ChatGateway : IdleGateway;
WebSocketGateway({ path: '/chat' })(Gateway);
SubscribeMessage('single')(
  Gateway.prototype,
  'single',
  Object.getOwnPropertyDescriptor(Gateway.prototype, 'single'),
);
class AppModule {}
Module({ providers: [Gateway] })(AppModule);

const app = await NestFactory.create(AppModule, new FastifyAdapter(), { logger: ['error', 'warn'] });
const messageParser = (data) => {
  const frame = JSON.parse(data.toString());
  return { event: frame.type, data: frame };
};
app.useWebSocketAdapter(new WsAdapter(app, { messageParser }));
await app.listen(0, '127.0.0.1');
process.send({ port: app.getHttpServer().address().port });
process.on('disconnect', () => process.exit(0));
