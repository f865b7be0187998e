import { Injectable, Logger, type OnModuleInit } from '@nestjs/common';
import { WebSocket, type RawData } from 'ws';
import {
  AppError,
  IdGenerator,
  isId,
  jsonBoundsOf,
  type JsonBounds,
  timeOfId as timeOf,
  type ConversationId,
} from '../common';
import { Config } from '../config';
import { FairShares } from '../fairness';
import { ASSISTANT_PREFIX, ConversationsRepository, peerOf, type Appended } from '../messages';
import {
  controlKind,
  HandshakeRefused,
  ReplayAllowances,
  ROW_COST,
  SocketServer,
  textFrame,
  Turn,
  type ControlKind,
  type Handshake,
} from '../realtime';
import {
  AccessWatch,
  Authenticator,
  type ConnectionLimits,
  limitsOf,
  TenantsRepository,
  type UserToken,
  UserTokens,
} from '../tenancy';
import { Connection } from './connection';
import { CODE, FrameError, frameErrorOf } from './errors';
import {
  BadFrame,
  idText,
  parseFrame,
  type ClientFrame,
  type MembershipFrame,
  type MessageFrame,
  type ParsedFrame,
  type RichFrame,
} from './frames';
import { Hub } from './hub';
import { Presence } from './presence';
import { Delivery } from './delivery';
import { Publisher } from './publisher';
import { Messenger, type Sender } from './messenger';
import { tombstone } from './records';

export const RICH_PROTOCOL = 'parley.im.v1';
const SYNC_MESSAGES = 500;
const TOO_MANY = 'Too many frames; send this one again later.';
/** Frames that wait for an earlier one of their connection; past it the socket is read no further. */
const MAX_BACKLOG = 64;

interface Received {
  readonly connection: Connection;
  readonly data: RawData;
  readonly isBinary: boolean;
}

interface Admitted {
  readonly token: UserToken;
  readonly limits: ConnectionLimits;
  readonly address: string;
}

const connections = new WeakMap<WebSocket, Connection>();

/** `/chat`: who may connect, and what each frame does (protocols/im.md). */
@Injectable()
export class ImGateway implements OnModuleInit {
  private readonly logger = new Logger(ImGateway.name);
  private readonly bounds: JsonBounds;

  constructor(
    private readonly config: Config,
    private readonly ids: IdGenerator,
    private readonly sockets: SocketServer,
    private readonly tokens: UserTokens,
    private readonly access: AccessWatch,
    private readonly authenticator: Authenticator,
    private readonly tenants: TenantsRepository,
    private readonly conversations: ConversationsRepository,
    private readonly messenger: Messenger,
    private readonly hub: Hub,
    private readonly presence: Presence,
    private readonly delivery: Delivery,
    private readonly publisher: Publisher,
    private readonly shares: FairShares,
    private readonly replays: ReplayAllowances,
  ) {
    this.bounds = jsonBoundsOf(config.env);
  }

  onModuleInit(): void {
    // Shared by all sockets, which come as `this`: closures of its own would cost each idle one.
    const of = (ws: WebSocket): Connection | undefined => connections.get(ws);
    const received = new Turn<Received>((frame) => this.receive(frame));
    const { hub } = this;
    function onMessage(this: WebSocket, data: RawData, isBinary: boolean): void {
      const connection = of(this);
      if (connection) received.add({ connection, data, isBinary });
    }
    function onPong(this: WebSocket, data: Buffer): void {
      const connection = of(this);
      if (connection) hub.pong(connection, data.toString('latin1'));
    }
    function onClose(this: WebSocket): void {
      const connection = of(this);
      if (connection) hub.remove(connection);
    }
    // 'close' follows and does what is to be done; `ws` has told the client by then.
    const onError = (): void => undefined;
    this.sockets.add<Admitted>({
      path: /^\/chat\/?$/,
      protocols: [RICH_PROTOCOL],
      maxFrameBytes: this.config.env.IM_MAX_FRAME_BYTES,
      admit: (handshake) => this.admit(handshake),
      open: (ws, admitted) => {
        const connection = new Connection(ws, {
          ...admitted,
          id: this.ids.next(),
          rich: ws.protocol === RICH_PROTOCOL,
          replays: this.replays,
          maxBufferedBytes: this.config.env.IM_MAX_BUFFERED_BYTES,
          slowAfterMs: this.config.env.IM_SLOW_READER_SECONDS * 1_000,
        });
        connections.set(ws, connection);
        ws.on('message', onMessage).on('pong', onPong).on('close', onClose).on('error', onError);
        this.hub.add(connection);
      },
    });
  }

  private async admit({ url, headers, address }: Handshake): Promise<Admitted> {
    const bearer = /^Bearer\s+(\S+)$/i.exec(headers.authorization ?? '')?.[1];
    const given = url.searchParams.get('token');
    const token = await this.tokenOf(given ?? bearer);
    this.shares.heard(token.tenantId);
    // A wrong credential is refused also beside a good one.
    if (given !== null && bearer !== undefined && bearer !== given) await this.tokenOf(bearer);
    if (headers.authorization !== undefined && bearer === undefined)
      throw unauthorized('A valid token is required.');
    try {
      const apiKey = headers['x-api-key'];
      if (typeof apiKey === 'string') await this.authenticator.authenticate({ apiKey, address });
      if (!(await this.authenticator.tokenStands(token)))
        throw unauthorized('The key of this token does not stand for it any more.');
      const settings = await this.tenants.settings(token.tenantId);
      if (!settings?.active) throw unauthorized('This tenant is suspended.', 'TENANT_SUSPENDED');
      const { origin } = headers;
      const { allowedOrigins } = settings;
      if (origin !== undefined && allowedOrigins.length > 0 && !allowedOrigins.includes(origin)) {
        const error = 'This tenant lets no page of that origin in.';
        throw new HandshakeRefused(403, { error, code: 'ORIGIN_NOT_ALLOWED' });
      }
      const limits = limitsOf(this.config, settings);
      this.limit(token, limits, address);
      return { token, limits, address };
    } catch (error) {
      if (!(error instanceof AppError)) throw error;
      throw new HandshakeRefused(
        error.status,
        { error: error.message, code: error.code },
        error.retryAfterSeconds,
      );
    }
  }

  private async tokenOf(text: string | undefined): Promise<UserToken> {
    const token = text ? await this.tokens.read(text) : null;
    if (!token || this.access.isRevoked(token)) throw unauthorized('A valid token is required.');
    return token;
  }

  private limit({ tenantId, userId, client }: UserToken, limits: ConnectionLimits, address: string): void {
    const clients = this.hub.clientsOf(tenantId, userId);
    const over =
      !clients.includes(client) && clients.length >= limits.connectionsPerUser
        ? 'this user'
        : this.hub.connectionsOf({ tenantId }) >= limits.connectionsPerTenant
          ? 'this tenant'
          : this.hub.connectionsOf({ address }) >= this.config.env.IM_CONNECTIONS_PER_ADDRESS
            ? 'this address'
            : null;
    if (over)
      throw new HandshakeRefused(429, { error: `Too many connections of ${over}.`, code: 'RATE_LIMITED' }, 5);
  }

  private receive({ connection, data, isBinary }: Received): void {
    if (!connection.open) return;
    connection.pingedAt = 0;
    this.shares.heard(connection.tenantId);
    const control = isBinary ? undefined : controlKind(data as Buffer);
    if (!connection.admitFrame(Date.now(), control)) {
      connection.error(CODE.tooManyFrames, TOO_MANY, msgIdIn(data));
      return;
    }
    if (isBinary) {
      connection.error(CODE.badFrame, 'The frame is not a text message.');
      return;
    }
    const buffer = data as Buffer;
    if (buffer.length > connection.settings.limits.frameBytes) {
      connection.error(CODE.badFrame, `The frame is over ${connection.settings.limits.frameBytes} bytes.`);
      return;
    }
    const text = buffer.toString('utf8');
    if (connection.backlog) {
      connection.backlog.push({ text, control });
      if (connection.backlog.length === MAX_BACKLOG) connection.ws.pause();
      return;
    }
    const wait = this.handle(connection, text, control);
    if (wait) void this.inOrder(connection, wait);
  }

  /** While one frame waits for something, those after it wait too: a connection's messages keep their order. */
  private async inOrder(connection: Connection, first: Promise<void>): Promise<void> {
    connection.backlog = [];
    await first;
    for (let next = connection.backlog.shift(); next !== undefined; next = connection.backlog.shift()) {
      await this.handle(connection, next.text, next.control);
      if (connection.backlog.length < MAX_BACKLOG && connection.ws.isPaused) connection.ws.resume();
    }
    connection.backlog = undefined;
  }

  /** Never throws or rejects: what is wrong is told to the client. */
  private handle(
    connection: Connection,
    text: string,
    control: ControlKind | undefined,
  ): void | Promise<void> {
    let frame: ClientFrame | undefined;
    try {
      const parsed = parseFrame(text, connection.rich, this.bounds);
      ({ frame } = parsed);
      if (control !== undefined && frame.type !== control) this.pay(connection);
      const wait = this.dispatch(connection, parsed);
      return wait?.catch((error: unknown) => this.tell(connection, error, frame));
    } catch (error) {
      this.tell(connection, error, frame);
    }
  }

  private dispatch(connection: Connection, { frame, text }: ParsedFrame): void | Promise<void> {
    switch (frame.type) {
      case 'single':
      case 'group':
        return this.message(connection, frame, text);
      case 'join':
      case 'leave':
        return this.membership(connection, frame);
      case 'ping':
        return this.ping(connection);
      case 'ack':
        return this.acknowledge(connection, conversationOf(frame.conversationId), frame.seq);
      default:
        return this.richFrame(connection, frame);
    }
  }

  private message(connection: Connection, frame: MessageFrame, text: string): void | Promise<void> {
    const sender = senderOf(connection, frame);
    if (connection.rich && frame.msg.msgId === undefined) throw new BadFrame('msg.msgId: is missing');
    const route = this.messenger.route(sender, frame);
    const send = (to: Awaited<typeof route>): void =>
      this.messenger.send(sender, to, { frame, text }, (sent, error) => {
        if (sent) this.sent(connection, frame, sent.conversationId, sent.result);
        else this.tell(connection, error, frame);
      });
    if (route instanceof Promise) return route.then(send);
    send(route);
  }

  private sent(
    connection: Connection,
    frame: MessageFrame,
    conversationId: ConversationId,
    result: Appended,
  ): void {
    const { msgId } = frame.msg;
    if (result.outcome === 'conflict') {
      connection.error(
        CODE.conflict,
        'msgId and timestamp were used for another message of this conversation.',
        msgId,
      );
    } else if (result.outcome === 'refused') {
      void this.explainRefusal(connection, conversationId, msgId);
    } else if (connection.rich) {
      const { id, seq } = result;
      connection.write(
        textFrame(
          `{"type":"sent","msgId":${JSON.stringify(msgId)},"id":"${id}","seq":${seq},"conversationId":"${conversationId}","timestamp":${timeOf(id)}}`,
        ),
      );
    }
  }

  private async explainRefusal(connection: Connection, id: ConversationId, msgId: unknown): Promise<void> {
    const member = await this.conversations
      .member(connection.tenantId, id, connection.userId)
      .catch(() => null);
    if (member) connection.error(CODE.forbidden, 'You may not speak in this group now.', msgId);
    else connection.error(CODE.noGroup, 'target: not a member of that group', msgId);
  }

  private async membership(connection: Connection, frame: MembershipFrame): Promise<void> {
    const sender = senderOf(connection, frame);
    const { conversationId, entry } = await this.messenger.changeMembership(sender, frame);
    if (!connection.rich) return;
    const { msgId } = frame.msg ?? {};
    connection.send({
      type: 'sent',
      ...(msgId !== undefined && { msgId }),
      conversationId,
      ...(entry && { id: entry.id, seq: entry.seq, timestamp: timeOf(entry.id) }),
    });
  }

  /** As an ordinary frame: it was taken for a cheaper one. */
  private pay(connection: Connection): void {
    if (!connection.admitFrame(Date.now())) throw new FrameError(CODE.tooManyFrames, TOO_MANY);
  }

  /** Before something is read for a client again: what it drew before must have been made up. */
  private mayDraw({ replay }: Connection): void {
    const seconds = replay.waitSeconds();
    if (seconds > 0) {
      const message = `Too much was asked to be sent again; ask for more in ${seconds} s.`;
      throw new FrameError(CODE.tooManyFrames, message);
    }
  }

  private acknowledge(connection: Connection, id: ConversationId, seq: number): void | Promise<void> {
    // The database is asked for what this connection has seen nothing of.
    if (!connection.positions.has(id) && !connection.behind.has(id)) this.pay(connection);
    return this.hub.acknowledge(connection, id, seq);
  }

  private ping(connection: Connection): void | Promise<void> {
    if (connection.rich) {
      this.mayDraw(connection);
      void this.delivery.look(connection).then(() => {
        const pong = textFrame(
          JSON.stringify({ type: 'pong', conversations: this.hub.unacknowledged(connection) }),
        );
        // Usually it is short; with thousands of conversations it is not.
        if (pong.length > ROW_COST) connection.replay.spend(pong.length);
        connection.write(pong);
      });
      return;
    }
    connection.send({ type: 'pong' });
    void this.delivery.look(connection);
  }

  private async richFrame(connection: Connection, frame: RichFrame): Promise<void> {
    const { tenantId, userId } = connection;
    switch (frame.type) {
      case 'watch':
        this.mayDraw(connection);
        connection.replay.spend(frame.users.length * ROW_COST);
        return this.presence.watch(connection, frame.users.map(idText));
      case 'sync':
        return this.sync(connection, frame.cursors);
      case 'typing':
        return this.typing(connection, frame);
      case 'read': {
        const id = conversationOf(frame.conversationId);
        const read = await this.conversations.markRead(tenantId, id, userId, frame.seq);
        if (!read) throw new FrameError(CODE.noGroup, 'conversationId: no such conversation of yours');
        if (read.moved)
          await this.tellConversation(connection, id, {
            type: 'read',
            conversationId: id,
            seq: read.readSeq,
            source: userId,
          });
        return;
      }
      case 'recall': {
        const id = conversationOf(frame.conversationId);
        const { recallSeconds } = connection.settings.limits;
        await this.conversations.recall(tenantId, id, frame.seq, userId, recallSeconds * 1_000, tombstone);
        await this.tellConversation(
          connection,
          id,
          { type: 'recall', conversationId: id, seq: frame.seq, source: userId },
          '',
        );
      }
    }
  }

  private async sync(connection: Connection, cursors: Readonly<Record<string, number>>): Promise<void> {
    this.mayDraw(connection);
    const { replay } = connection;
    const reached: Record<string, number> = {};
    let hasMore = false;
    let left = SYNC_MESSAGES;
    for (const [id, after] of Object.entries(cursors)) {
      if (!/^\d+$/.test(id)) throw new BadFrame('cursors: must have ids of conversations as keys');
      if (left <= 0 || replay.waitSeconds() > 0) {
        reached[id] = after;
        hasMore = true;
        continue;
      }
      const place = await this.delivery.rewind(connection, conversationOf(id), after, left);
      // Afterwards: something comes of every one that is let in.
      replay.spend(ROW_COST);
      if (!place) throw new FrameError(CODE.noGroup, `cursors.${id}: no such conversation of yours`);
      left -= place.sent;
      reached[id] = place.seq;
      hasMore ||= place.seq < place.lastSeq;
    }
    connection.send({ type: 'sync', cursors: reached, hasMore });
  }

  private async typing(connection: Connection, frame: Extract<RichFrame, { type: 'typing' }>): Promise<void> {
    const { tenantId, userId, id } = connection;
    const target = idText(frame.target);
    const event = {
      frame: { type: 'typing', source: userId, target, kind: frame.kind },
      droppable: true,
      except: id,
    };
    if (frame.kind === 'single') {
      if (!target.startsWith(ASSISTANT_PREFIX))
        this.publisher.publishEvent(tenantId, { users: [target] }, event);
      return;
    }
    const group = await this.conversations.findGroup(tenantId, target);
    if (!group || !connection.groups.has(group.id))
      throw new FrameError(CODE.noGroup, 'target: not a member of that group');
    this.publisher.publishEvent(tenantId, { group: group.id }, event);
  }

  private async tellConversation(
    { tenantId, userId, id: except }: Connection,
    id: ConversationId,
    frame: object,
    notTo = except,
  ): Promise<void> {
    const conversation = await this.conversations.find(tenantId, id);
    if (!conversation) return;
    const to =
      conversation.kind === 'group' ? { group: id } : { users: [userId, peerOf(conversation.key, userId)] };
    this.publisher.publishEvent(tenantId, to, { frame, droppable: false, except: notTo });
  }

  private tell(connection: Connection, error: unknown, frame?: ClientFrame): void {
    const msgId = frame && 'msg' in frame ? frame.msg?.msgId : undefined;
    if (error instanceof BadFrame) connection.error(CODE.badFrame, error.message, error.msgId ?? msgId);
    else if (error instanceof FrameError) connection.error(error.frameCode, error.message, msgId);
    else {
      const known = error instanceof AppError ? error : new AppError('INTERNAL', { cause: error });
      if (known.code === 'INTERNAL') this.logger.error({ err: known.cause ?? known }, 'a frame failed');
      const { frameCode, message } = frameErrorOf(known);
      connection.error(frameCode, message, msgId);
    }
  }
}

function senderOf(
  { tenantId, userId, client, id }: Connection,
  frame: MessageFrame | MembershipFrame,
): Sender {
  if (idText(frame.source) !== userId) {
    throw new FrameError(CODE.foreignSource, "source: is not this token's user");
  }
  return { tenantId, userId, client, origin: id, server: false };
}

/** Throws 4004 for what can't be the id of any. */
function conversationOf(id: string): ConversationId {
  if (!isId(id)) throw new FrameError(CODE.noGroup, 'conversationId: no such conversation of yours');
  return id as ConversationId;
}

function unauthorized(error: string, code = 'UNAUTHENTICATED'): HandshakeRefused {
  return new HandshakeRefused(401, { error, code });
}

/** Of a frame that is not going to be handled: so that its sender knows which message to send again. */
function msgIdIn(data: RawData): unknown {
  try {
    const { msg } = JSON.parse((data as Buffer).toString('utf8')) as { msg?: { msgId?: unknown } };
    return msg?.msgId;
  } catch {
    return undefined;
  }
}
