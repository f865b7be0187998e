import {
  Injectable,
  Logger,
  type BeforeApplicationShutdown,
  type OnApplicationBootstrap,
} from '@nestjs/common';
import { GroupCommit, idAtTime, type ApiKeyId, type ConversationId, type TenantId } from '../common';
import { Config } from '../config';
import { NodeRegistry } from '../database';
import { DevicesRepository, LATE_MS, type DeviceSession, type OpenedDevice } from '../messages';
import { CLOSE, Bus, closeCodeOf } from '../realtime';
import { AccessWatch, tokenGrant, type LostAccess } from '../tenancy';
import { Arrivals, type KnownStandings } from './arrivals';
import type { Connection } from './connection';
import { Delivery } from './delivery';
import { DeviceMarks } from './device-marks';
import type { LiveMessage } from './live-message';
import { OnlineGroups } from './online-groups';
import { Presence } from './presence';
import { Publisher, userKey, userTopic, type Control } from './publisher';
import { conversationRecord } from './records';

const OPENS_A_BATCH = 100;
const PROOF_MS = 1_000;
const SWEEP_MS = 5_000;
const SLICES = 25;
const RETRY_MS = 500;
const MAX_DRAIN_MS = 2_000;

/** Every open connection of this process: its coming and going, its heartbeat, and what the bus has for its user. */
@Injectable()
export class Hub implements OnApplicationBootstrap, BeforeApplicationShutdown {
  private readonly logger = new Logger(Hub.name);
  private readonly connections = new Map<string, Connection>();
  private readonly users = new Map<string, { connections: Connection[]; unsubscribe: () => void }>();
  private readonly perTenant = new Map<TenantId, number>();
  private readonly perKey = new Map<ApiKeyId, number>();
  private readonly perAddress = new Map<string, number>();
  private readonly opening: GroupCommit<Connection, OpenedDevice | null>;
  private readonly closing: GroupCommit<DeviceSession, undefined>;
  private readonly timers: NodeJS.Timeout[] = [];
  private tick = 0;
  private stopping = false;

  constructor(
    private readonly config: Config,
    private readonly bus: Bus,
    private readonly publisher: Publisher,
    private readonly delivery: Delivery,
    private readonly arrivals: Arrivals,
    private readonly groups: OnlineGroups,
    private readonly presence: Presence,
    private readonly devices: DevicesRepository,
    private readonly marks: DeviceMarks,
    private readonly access: AccessWatch,
    private readonly nodes: NodeRegistry,
  ) {
    this.opening = new GroupCommit((batch) => this.openBatch(batch), OPENS_A_BATCH);
    this.closing = new GroupCommit(async (batch) => {
      await this.devices.close(batch);
      return batch.map(() => undefined);
    }, OPENS_A_BATCH);
  }

  onApplicationBootstrap(): void {
    const beat = (this.config.env.IM_HEARTBEAT_SECONDS * 1_000) / SLICES;
    this.timers.push(setInterval(() => this.heartbeat(), beat).unref());
    this.timers.push(setInterval(() => this.prove(), PROOF_MS).unref());
    this.timers.push(setInterval(() => void this.sweep(), SWEEP_MS).unref());
    this.access.watch(
      () => ({ tenants: this.perTenant.keys(), keys: this.perKey.keys() }),
      (lost) => this.loseAccess(lost),
    );
  }

  get size(): number {
    return this.connections.size;
  }

  get catchingUp(): number {
    let behind = 0;
    for (const connection of this.connections.values()) if (connection.behind.size > 0) behind += 1;
    return behind;
  }

  connectionsOf(scope: { tenantId: TenantId } | { address: string }): number {
    return 'tenantId' in scope
      ? (this.perTenant.get(scope.tenantId) ?? 0)
      : (this.perAddress.get(scope.address) ?? 0);
  }

  /** Device kinds of a user that are connected to this process. */
  clientsOf(tenantId: TenantId, userId: string): string[] {
    return (this.users.get(userKey(tenantId, userId))?.connections ?? []).map(({ client }) => client);
  }

  // — coming and going —

  add(connection: Connection): void {
    if (this.stopping) {
      connection.close(CLOSE.restarting, 'the server restarts; come back in a moment');
      return;
    }
    const { tenantId, userId, client } = connection;
    const key = userKey(tenantId, userId);
    let user = this.users.get(key);
    const older = user?.connections.find((other) => other.client === client);
    if (older) {
      // The newcomer takes over its row, too: between the two the user is never offline.
      connection.replaces = older.id;
      older.close(CLOSE.replaced, 'this user and client connected anew elsewhere');
      this.detach(older);
    }
    user = this.users.get(key);
    if (!user) {
      const unsubscribe = this.bus.subscribe<LiveMessage>(
        userTopic(key),
        (text) => this.toUser(key, text),
        (message) => this.deliver(key, message),
      );
      this.users.set(key, (user = { connections: [], unsubscribe }));
    }
    user.connections.push(connection);
    this.connections.set(connection.id, connection);
    connection.present = true;
    count(this.perTenant, tenantId, 1);
    count(this.perAddress, connection.settings.address, 1);
    const { keyId } = connection.settings.token;
    if (keyId) count(this.perKey, keyId, 1);
    void this.load(connection);
  }

  /** After its socket has closed. */
  remove(connection: Connection): void {
    if (!this.detach(connection) || !connection.ready) return;
    this.tellPresence(connection);
    this.forget(connection);
  }

  /** False: it was not here any more. */
  private detach(connection: Connection): boolean {
    connection.open = false;
    connection.present = false;
    if (!this.connections.delete(connection.id)) return false;
    const { tenantId, userId } = connection;
    const key = userKey(tenantId, userId);
    const user = this.users.get(key);
    if (user) {
      user.connections = user.connections.filter((other) => other !== connection);
      if (user.connections.length === 0) {
        user.unsubscribe();
        this.users.delete(key);
      }
    }
    for (const group of connection.groups) this.groups.leave(connection, group);
    this.presence.forget(connection);
    this.delivery.unproven.delete(connection);
    count(this.perTenant, tenantId, -1);
    count(this.perAddress, connection.settings.address, -1);
    const { keyId } = connection.settings.token;
    if (keyId) count(this.perKey, keyId, -1);
    return true;
  }

  /** Removes its row, and that of the connection whose place it took without ever having one of its own. */
  private forget(connection: Connection): void {
    const session = sessionOf(connection);
    const { replaces } = connection;
    const sessions = replaces === undefined ? [session] : [session, { ...session, connectionId: replaces }];
    for (const one of sessions) void this.removeSession(one);
  }

  private async removeSession(session: DeviceSession): Promise<void> {
    for (;;) {
      try {
        return await this.closing.add(session);
      } catch (error) {
        // Presence is a lease: past the end of this process it falls by itself.
        this.logger.debug(`a session not removed, will be tried again: ${(error as Error).message}`);
        if (this.stopping) return;
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS).unref());
      }
    }
  }

  /** Sessions of processes that died: their users are offline, unless they have come back meanwhile. */
  private async sweep(): Promise<void> {
    if (!this.nodes.mayJudge) return;
    try {
      const dead = await this.devices.orphanedSessions(OPENS_A_BATCH);
      if (dead.length > 0) await this.devices.close(dead);
    } catch (error) {
      this.logger.debug(`sessions not swept, will be tried again: ${(error as Error).message}`);
    }
  }

  private loseAccess(lost: LostAccess): void {
    if (lost.kind === 'revoked') {
      for (const connection of this.users.get(userKey(lost.tenantId, lost.userId))?.connections ?? []) {
        const { client, issuedAt } = connection.settings.token;
        if ((lost.client === null || lost.client === client) && issuedAt <= lost.at)
          connection.close(CLOSE.unauthorized, 'the token was revoked; get another');
      }
      return;
    }
    if (lost.kind === 'keys' && ![...lost.ids].some((id) => this.perKey.has(id))) return;
    for (const connection of this.connections.values()) {
      if (lost.kind === 'suspended') {
        if (connection.tenantId === lost.tenantId)
          connection.close(CLOSE.suspended, 'this tenant is suspended');
        continue;
      }
      const { token } = connection.settings;
      if (token.keyId === null || !lost.ids.has(token.keyId)) continue;
      const error = lost.refusalOf(tokenGrant(token));
      if (error) connection.close(closeCodeOf(error), error.message);
    }
  }

  // — from the log to the socket —

  /** First the live topics, then the log: the other order drops what is stored between the two. */
  private async load(connection: Connection): Promise<void> {
    try {
      const opened = await this.delivery.retrying(connection, () => this.opening.add(connection));
      if (!opened || !connection.open) {
        this.forget(connection);
        return;
      }
      const { page, replaced } = opened;
      if (replaced) {
        const control: Control = { kind: 'replaced', connectionId: replaced.connectionId };
        this.publisher.control(connection.tenantId, connection.userId, control);
      }
      const known = await this.arrivals.place(connection, page);
      if (!known || !connection.open) {
        this.forget(connection);
        return;
      }
      if (connection.rich) connection.send(readyFrame(connection, known));
      connection.ready = true;
      this.tellPresence(connection);
      if (connection.behind.size > 0) void this.delivery.pump(connection);
      // What a group was sent between the reading and the subscribing.
      if (connection.groups.size > 0) await this.delivery.look(connection);
    } catch (error) {
      this.logger.error({ err: error }, 'a connection could not be set up');
      connection.close(CLOSE.failed, 'something went wrong here; come back in a moment');
    }
  }

  private async openBatch(batch: readonly Connection[]): Promise<(OpenedDevice | null)[]> {
    const open = batch.filter((connection) => connection.open);
    if (open.length === 0) return batch.map(() => null);
    const since = idAtTime(Date.now() - LATE_MS);
    const opened = await this.devices.open(open.map(sessionOf), since);
    const byId = new Map(open.map((connection, index) => [connection.id, opened[index]!]));
    return batch.map(({ id }) => byId.get(id) ?? null);
  }

  private toUser(key: string, text: string): void {
    const connections = this.users.get(key)?.connections ?? [];
    if (text.startsWith('c')) {
      const control = JSON.parse(text.slice(1)) as Control;
      for (const connection of [...connections]) this.obey(connection, control);
    } else if (text.startsWith('m')) this.deliver(key, this.publisher.decode(text));
    else this.delivery.event(connections, text);
  }

  private deliver(key: string, message: LiveMessage): void {
    for (const connection of this.users.get(key)?.connections ?? [])
      this.delivery.deliver(connection, message);
  }

  private tellPresence({ tenantId, userId }: Connection): void {
    this.publisher.presence(tenantId, userId, this.clientsOf(tenantId, userId));
  }

  private obey(connection: Connection, control: Control): void {
    if (control.kind === 'replaced') {
      if (connection.id !== control.connectionId) return;
      connection.close(CLOSE.replaced, 'this user and client connected anew elsewhere');
      this.detach(connection);
    } else if (control.kind === 'left') {
      connection.memberships.set(control.conversationId, control.seq);
      this.groups.leave(connection, control.conversationId);
    } else {
      const { conversationId: id, fromSeq, gap } = control;
      connection.memberships.set(id, fromSeq + 1);
      if (gap) this.delivery.rejoin(connection, id, gap);
      else {
        const position = connection.positions.get(id);
        if (position === undefined || position < fromSeq) connection.positions.set(id, fromSeq);
      }
      this.groups.enter(connection, id);
    }
  }

  // — heartbeat —

  /** A part of the connections each time: pings them, and drops those that have been silent since the last one. */
  private heartbeat(): void {
    this.tick = (this.tick + 1) % SLICES;
    const now = Date.now();
    const interval = this.config.env.IM_HEARTBEAT_SECONDS * 1_000;
    let index = 0;
    for (const connection of this.connections.values()) {
      index += 1;
      if (connection.settings.token.expiresAt <= now) {
        connection.close(CLOSE.unauthorized, 'the token has expired; get another');
      }
      if (index % SLICES !== this.tick) continue;
      if (now - connection.pingedAt > 2 * interval && connection.pingedAt > 0) connection.ws.terminate();
      else connection.ping(now);
    }
  }

  private prove(): void {
    const now = Date.now();
    for (const connection of this.delivery.unproven) {
      if (connection.proving) continue;
      this.delivery.unproven.delete(connection);
      connection.ping(now);
    }
  }

  /** A WebSocket pong: everything written before its ping has been read. */
  pong(connection: Connection, data: string): void {
    const proven = connection.proven(data);
    if (proven) this.marks.save(connection, proven);
    else if (connection.ready) void this.delivery.look(connection);
  }

  /** `ack`: the device has everything up to there. Not what it can't have been sent. At once, but for a conversation not seen here. */
  acknowledge(connection: Connection, id: ConversationId, seq: number): void | Promise<void> {
    const most = Math.max(connection.positions.get(id) ?? 0, connection.behind.get(id) ?? 0);
    if (most === 0) return this.acknowledgeUnseen(connection, id, seq);
    // A mark before where the device began would bring it all that it was not to be told.
    if (seq < (connection.beginnings?.get(id) ?? 0)) return;
    const { unproven } = connection;
    if (unproven && (unproven.get(id) ?? 0) <= seq) unproven.delete(id);
    this.marks.saveOne(connection, id, Math.min(seq, most));
  }

  private async acknowledgeUnseen(connection: Connection, id: ConversationId, seq: number): Promise<void> {
    const { tenantId, userId, client } = connection;
    const standing = await this.devices.mark(tenantId, userId, client, id);
    if (standing && seq > standing.mark) this.marks.saveOne(connection, id, Math.min(seq, standing.lastSeq));
  }

  /** What a client that speaks the richer dialect has not acknowledged, so that it notices a lost last message. */
  unacknowledged(connection: Connection): Record<string, number> {
    return Object.fromEntries([...(connection.unproven ?? []), ...connection.behind]);
  }

  // — the end —

  /** Spread over a while: thousands of clients that come back in one instant would fall over the next server. */
  async beforeApplicationShutdown(): Promise<void> {
    this.stopping = true;
    for (const timer of this.timers) clearInterval(timer);
    const all = [...this.connections.values()];
    const window = Math.min(MAX_DRAIN_MS, this.config.env.DRAIN_TIMEOUT_MS, all.length);
    const began = Date.now();
    for (const [index, connection] of all.entries()) {
      connection.close(CLOSE.restarting, 'the server restarts; come back in a moment');
      const due = began + (window * (index + 1)) / all.length;
      if (due - Date.now() > 10) await new Promise((resolve) => setTimeout(resolve, 10));
    }
    const deadline = Date.now() + 1_000;
    while (this.connections.size > 0 && Date.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    for (const connection of this.connections.values()) connection.ws.terminate();
    await this.marks.stop();
  }
}

function count<K>(counts: Map<K, number>, key: K, by: 1 | -1): void {
  const value = (counts.get(key) ?? 0) + by;
  if (value > 0) counts.set(key, value);
  else counts.delete(key);
}

function sessionOf({ tenantId, userId, client, id }: Connection): DeviceSession {
  return { tenantId, userId, client, connectionId: id };
}

function readyFrame({ userId, client }: Connection, { recent, resumed }: KnownStandings): object {
  const conversations = recent.map((standing) => conversationRecord(standing, userId));
  return { type: 'ready', user: userId, client, conversations, resumed };
}
