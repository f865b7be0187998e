import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
  type OnModuleInit,
} from '@nestjs/common';
import type { RawData, WebSocket } from 'ws';
import { AssistantsRepository } from '../assistants';
import {
  asId,
  IdGenerator,
  jsonBoundsOf,
  type JsonBounds,
  type ApiKeyId,
  type MessageId,
  type ModelServiceId,
  type Principal,
  type TenantId,
} from '../common';
import { Config } from '../config';
import { FairShares } from '../fairness';
import { DialoguesRepository } from '../messages';
import {
  CLOSE,
  closeCodeOf,
  ConnectionCounts,
  controlKind,
  HandshakeRefused,
  ReplayAllowances,
  ROW_COST,
  SocketServer,
  type Handshake,
} from '../realtime';
import { ReplyEngine } from '../replies';
import { AccessWatch, grantOf, tokenGrant, type LostAccess } from '../tenancy';
import { Admission, type Admitted } from './admission';
import { ChannelConnection } from './channel-connection';
import { ChannelError, channelErrorOf } from './errors';
import { Feed } from './feed';
import { BadFrame, parseFrame, type ChatFrame, type ClientFrame, type ResumeFrame } from './frames';
import type { Session } from './session';
import { Sessions } from './sessions';
import { EVENT_PROTOCOL, eventView, plainView, type ChannelFailure } from './views';

interface Opening extends Admitted {
  readonly agentId: string;
  /** The client named an agent when it connected: that agent greets it. */
  readonly greet: boolean;
}

export const DEFAULT_AGENT = 'main';
const PATH = /^\/api\/v1\/(?:agents\/([^/]{1,400})\/)?ws\/?$/;
/** Frames of one connection that wait for an earlier one; past it the socket is read no further. */
const MAX_WAITING_FRAMES = 64;
/** Replies that one connection may be shown again at once. */
const MAX_RESUMING = 16;
/** Sessions that one connection may watch. */
const MAX_FEEDS = 100;
const DRAIN_MS = 1_000;

const CHANNEL_SCOPES = ['dialogue'] as const;

/** `/api/v1/ws`: what each frame does (protocols/agent-channel.md). */
@Injectable()
export class AgentChannelGateway implements OnModuleInit, OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(AgentChannelGateway.name);
  private readonly connections = new Set<ChannelConnection>();
  private readonly counts = new ConnectionCounts();
  private readonly bounds: JsonBounds;
  private timer: NodeJS.Timeout | undefined;

  constructor(
    private readonly config: Config,
    private readonly ids: IdGenerator,
    private readonly sockets: SocketServer,
    private readonly admission: Admission,
    private readonly access: AccessWatch,
    private readonly assistants: AssistantsRepository,
    private readonly dialogues: DialoguesRepository,
    private readonly replies: ReplyEngine,
    private readonly sessions: Sessions,
    private readonly shares: FairShares,
    private readonly replays: ReplayAllowances,
  ) {
    this.bounds = jsonBoundsOf(config.env);
  }

  get size(): number {
    return this.connections.size;
  }

  onModuleInit(): void {
    this.sockets.add<Opening>({
      path: PATH,
      protocols: [EVENT_PROTOCOL],
      maxFrameBytes: this.config.env.CHANNEL_MAX_FRAME_BYTES,
      admit: (handshake) => this.admit(handshake),
      open: (ws, opening) => this.open(ws, opening),
    });
  }

  onApplicationBootstrap(): void {
    this.timer = setInterval(() => this.heartbeat(), this.config.env.IM_HEARTBEAT_SECONDS * 1_000).unref();
    this.access.watch(
      () => ({ tenants: this.each(({ principal }) => principal.tenantId), keys: this.keys() }),
      (lost) => this.loseAccess(lost),
    );
  }

  async beforeApplicationShutdown(): Promise<void> {
    clearInterval(this.timer);
    for (const connection of this.connections) {
      connection.close(CLOSE.restarting, 'the server restarts; come back in a moment');
    }
    const deadline = Date.now() + DRAIN_MS;
    while (this.connections.size > 0 && Date.now() < deadline)
      await new Promise((resolve) => setTimeout(resolve, 10));
    for (const { ws } of this.connections) ws.terminate();
  }

  // — coming and going —

  private async admit(handshake: Handshake): Promise<Opening> {
    const admitted = await this.admission.admit(handshake);
    const { limits, principal, address } = admitted;
    const [ofTenant, ofAddress, ofUser] = countedUnder(principal, address);
    const over =
      ofUser !== undefined && this.counts.of(ofUser) >= limits.channelConnectionsPerUser
        ? 'this user'
        : this.counts.of(ofTenant) >= limits.connectionsPerTenant
          ? 'this tenant'
          : this.counts.of(ofAddress) >= this.config.env.IM_CONNECTIONS_PER_ADDRESS
            ? 'this address'
            : null;
    if (over) {
      throw new HandshakeRefused(429, { error: `Too many connections of ${over}.`, code: 'RATE_LIMITED' }, 5);
    }
    const named = agentOf(handshake.url);
    const agentId = named ?? DEFAULT_AGENT;
    // Postgres refuses NUL even in what it is only asked for.
    const known =
      named !== null &&
      !named.includes('\0') &&
      (await this.assistants.findContact(principal.tenantId, { slug: agentId }));
    if (named !== null && !(known && known.versionId)) {
      throw new HandshakeRefused(404, { error: `No agent ${agentId}.`, code: 'NOT_FOUND' });
    }
    return { ...admitted, agentId, greet: named !== null };
  }

  private open(ws: WebSocket, { principal, token, limits, address, agentId, greet }: Opening): void {
    const connection = new ChannelConnection(ws, {
      id: this.ids.next(),
      principal,
      token,
      address,
      limits,
      agentId,
      replays: this.replays,
      view: ws.protocol === EVENT_PROTOCOL ? eventView : plainView,
      maxBufferedBytes: this.config.env.IM_MAX_BUFFERED_BYTES,
      slowAfterMs: this.config.env.IM_SLOW_READER_SECONDS * 1_000,
    });
    this.connections.add(connection);
    this.counts.add(countedUnder(principal, address));
    ws.on('message', (data, isBinary) => this.receive(connection, data, isBinary));
    ws.on('pong', () => (connection.pingedAt = 0));
    ws.on('close', () => this.close(connection));
    // 'close' follows and does what is to be done; `ws` has told the client by then.
    ws.on('error', () => undefined);
    if (greet) void this.greet(connection, agentId, connection.ownSession);
  }

  private close(connection: ChannelConnection): void {
    connection.open = false;
    this.connections.delete(connection);
    this.counts.remove(countedUnder(connection.principal, connection.settings.address));
    for (const [session, feed] of connection.feeds) {
      feed.close();
      (session as Session).feeds.delete(feed);
      this.sessions.release(session as Session);
    }
  }

  private heartbeat(): void {
    const now = Date.now();
    for (const connection of this.connections) {
      const { token } = connection.settings;
      if (token && token.expiresAt <= now) {
        connection.close(CLOSE.unauthorized, 'the token has expired; get another');
      } else if (connection.pingedAt > 0) connection.ws.terminate();
      else {
        connection.pingedAt = now;
        connection.flush();
        connection.ws.ping();
      }
    }
  }

  private loseAccess(lost: LostAccess): void {
    for (const connection of this.connections) {
      const { principal, settings } = connection;
      if (lost.kind === 'suspended' && principal.tenantId === lost.tenantId) {
        connection.lostAccess = true;
        connection.close(CLOSE.suspended, 'this tenant is suspended');
      } else if (lost.kind === 'keys') {
        const { token, address } = settings;
        const error = lost.refusalOf(token ? tokenGrant(token) : grantOf(principal, CHANNEL_SCOPES, address));
        if (!error) continue;
        connection.lostAccess = true;
        connection.close(closeCodeOf(error), error.message);
      } else if (lost.kind === 'revoked' && settings.token && principal.tenantId === lost.tenantId) {
        const { client, issuedAt } = settings.token;
        const meant = principal.userId === lost.userId && (lost.client === null || lost.client === client);
        if (!meant || issuedAt > lost.at) continue;
        connection.lostAccess = true;
        connection.close(CLOSE.unauthorized, 'the token was revoked; get another');
      }
    }
  }

  private each<T>(of: (connection: ChannelConnection) => T): Set<T> {
    return new Set([...this.connections].map(of));
  }

  private keys(): ApiKeyId[] {
    return [...this.each(({ principal }) => principal.keyId)].filter((id) => id !== null);
  }

  // — frames —

  private receive(connection: ChannelConnection, data: RawData, isBinary: boolean): void {
    if (!connection.open) return;
    connection.pingedAt = 0;
    const buffer = data as Buffer;
    const control = isBinary ? undefined : controlKind(buffer);
    if (!connection.admitFrame(Date.now(), control)) return this.tell(connection, tooMany(), {});
    if (isBinary) return this.tell(connection, new BadFrame('the frame is not a text message'), {});
    const { channelFrameBytes } = connection.settings.limits;
    if (buffer.length > channelFrameBytes) {
      return this.tell(
        connection,
        new ChannelError('too_large', `the frame is over ${channelFrameBytes} bytes`),
        {},
      );
    }
    let frame: ClientFrame;
    try {
      frame = parseFrame(buffer.toString('utf8'), this.bounds);
    } catch (error) {
      return this.tell(connection, error, { requestId: (error as BadFrame).requestId });
    }
    // It was taken for a cheaper one.
    if (control !== undefined && frame.type !== control && !connection.admitFrame(Date.now()))
      return this.tell(connection, tooMany(), frame);
    if (frame.type === 'ping') {
      connection.say(connection.view.pong(frame.requestId));
      return;
    }
    this.shares.heard(connection.principal.tenantId);
    // In the order they came: a chat must not overtake the one before it on its way to the session.
    connection.waiting += 1;
    if (connection.waiting >= MAX_WAITING_FRAMES) connection.ws.pause();
    connection.last = connection.last.then(async () => {
      await this.handle(connection, frame).catch((error: unknown) => this.tell(connection, error, frame));
      connection.waiting -= 1;
      if (connection.waiting < MAX_WAITING_FRAMES && connection.ws.isPaused) connection.ws.resume();
    });
  }

  private async handle(
    connection: ChannelConnection,
    frame: Exclude<ClientFrame, { type: 'ping' }>,
  ): Promise<void> {
    if (!connection.open) return;
    const agentId = frame.agentId ?? connection.settings.agentId;
    const name = frame.sessionId ?? connection.ownSession;
    const session = await this.sessions.open(connection.principal, agentId, name);
    try {
      await this.inSession(connection, session, frame, name);
    } finally {
      this.sessions.letGo(session);
    }
  }

  private async inSession(
    connection: ChannelConnection,
    session: Session,
    frame: Exclude<ClientFrame, { type: 'ping' }>,
    name: string,
  ): Promise<void> {
    // It may have gone meanwhile: whatever it watched from now on would stay.
    if (!connection.open) return;
    switch (frame.type) {
      case 'chat':
        return this.chat(connection, session, frame, name);
      case 'subscribe':
        return this.subscribe(connection, session, name, frame.requestId);
      case 'resume':
        return this.resume(connection, session, frame, name);
      case 'cancel': {
        const { principal, view } = connection;
        if (!(await this.sessions.cancel(principal, session))) {
          throw new ChannelError('session_not_found', `no session ${name}`);
        }
        const { requestId } = frame;
        connection.say(
          view.status('cancelled', {
            agentId: session.contact.slug,
            sessionId: name,
            ...(requestId !== undefined && { requestId }),
          }),
        );
      }
    }
  }

  private chat(connection: ChannelConnection, session: Session, frame: ChatFrame, name: string): void {
    const { message, stream = true, requestId } = frame;
    const modelServiceId = asId<ModelServiceId>(frame.modelServiceId);
    if (frame.modelServiceId !== undefined && modelServiceId === null)
      throw new ChannelError('bad_request', 'modelServiceId: is not an id');
    this.watch(connection, session, name);
    this.sessions.say(session, {
      principal: connection.principal,
      content: message.toWellFormed(),
      stream,
      modelServiceId,
      ...(requestId !== undefined && { requestId }),
      failed: (error) => this.tell(connection, error, frame),
      stands: () => !connection.lostAccess,
    });
  }

  private async subscribe(
    connection: ChannelConnection,
    session: Session,
    name: string,
    requestId: string | undefined,
  ): Promise<void> {
    const feed = this.watch(connection, session, name);
    const { principal, view } = connection;
    const { slug } = session.contact;
    connection.say(
      view.status('subscribed', {
        agentId: slug,
        sessionId: name,
        ...(requestId !== undefined && { requestId }),
      }),
    );
    if (session.dialogueId === null) await this.greet(connection, slug, name);
    for (const replyId of await this.sessions.inProgress(principal, session)) {
      feed.show(session.asShown(replyId));
    }
  }

  private async resume(
    connection: ChannelConnection,
    session: Session,
    { messageId, offset = 0, requestId }: ResumeFrame,
    name: string,
  ): Promise<void> {
    const replyId = asId<MessageId>(messageId);
    const { dialogueId } = session;
    const { replay } = connection;
    if (replyId && connection.feeds.get(session)?.isResuming(replyId))
      throw new ChannelError('busy', 'messageId: that reply is being shown again; wait for its end');
    if (connection.resuming >= MAX_RESUMING)
      throw new ChannelError('busy', `a connection is shown ${MAX_RESUMING} replies again at most at once`);
    const seconds = replay.waitSeconds();
    if (seconds > 0)
      throw new ChannelError('rate_limited', `too much was asked to be shown again; resume in ${seconds} s`);
    const stored =
      replyId && dialogueId && (await this.dialogues.findReply(connection.principal.tenantId, replyId));
    // Whose it is its text was read for, too.
    replay.spend(ROW_COST + (stored ? stored.reply.content.length : 0));
    if (!replyId || !stored || stored.dialogue.id !== dialogueId) {
      throw new ChannelError('session_not_found', `messageId: no such reply in the session ${name}`);
    }
    if (!connection.open) return;
    const feed = this.watch(connection, session, name);
    feed.resume({ replyId, stream: true, offset, ...(requestId !== undefined && { requestId }) });
  }

  /** From now on this connection sees every reply of the session. */
  private watch(connection: ChannelConnection, session: Session, name: string): Feed {
    const known = connection.feeds.get(session);
    if (known) return known;
    if (connection.feeds.size >= MAX_FEEDS) {
      throw new ChannelError('busy', `a connection may watch ${MAX_FEEDS} sessions`);
    }
    const about = { agentId: session.contact.slug, sessionId: name };
    const feed = new Feed(connection, this.replies, about, (error) => this.tell(connection, error, about));
    connection.feeds.set(session, feed);
    session.feeds.add(feed);
    return feed;
  }

  private async greet(connection: ChannelConnection, agentId: string, name: string): Promise<void> {
    const { tenantId }: { tenantId: TenantId } = connection.principal;
    try {
      const contact = await this.assistants.findContact(tenantId, { slug: agentId });
      const version = contact?.versionId && (await this.assistants.findVersion(tenantId, contact.versionId));
      if (version && version.greeting)
        connection.say(connection.view.greeting(agentId, name, version.greeting));
    } catch (error) {
      // Nobody waits for a greeting.
      this.logger.debug(`no greeting: ${(error as Error).message}`);
    }
  }

  private tell(
    connection: ChannelConnection,
    error: unknown,
    {
      agentId,
      sessionId,
      requestId,
    }: { agentId?: string | undefined; sessionId?: string | undefined; requestId?: string | undefined },
  ): void {
    const known =
      error instanceof BadFrame ? new ChannelError('bad_request', error.message) : channelErrorOf(error);
    if (!known || known.code === 'internal')
      this.logger.error({ err: error }, 'unexpected, on the agent channel');
    const failure: ChannelFailure = {
      agentId: agentId ?? connection.settings.agentId,
      code: known?.code ?? 'internal',
      message: known?.message ?? 'Something went wrong here; it has been logged.',
      ...(sessionId !== undefined && { sessionId }),
      ...(requestId !== undefined && { requestId }),
    };
    connection.say(connection.view.error(failure));
  }
}

function tooMany(): ChannelError {
  return new ChannelError('rate_limited', 'too many frames; send this one again later');
}

/** A tenant's server holds as many connections as it likes: only users with tokens of their own are counted. */
function countedUnder(
  { tenantId, userId, endUser }: Principal,
  address: string,
): [tenant: string, address: string, ...user: string[]] {
  return [`tenant ${tenantId}`, `address ${address}`, ...(endUser ? [`user ${tenantId} ${userId}`] : [])];
}

/** Named in the path or as `agentId`. */
function agentOf(url: URL): string | null {
  const inPath = PATH.exec(url.pathname)?.[1];
  if (inPath === undefined) return url.searchParams.get('agentId') || null;
  try {
    return decodeURIComponent(inPath);
  } catch {
    return inPath;
  }
}
